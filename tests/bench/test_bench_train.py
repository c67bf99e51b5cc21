"""``medvlp bench train`` on the micro model: the check, the result, the limit."""

import json
from pathlib import Path

import attrs
import pytest
import torch
from medvlp_bench.commands.train import above, lines_of, masking_line, speed_lines
from medvlp_bench.rival.benchmark import TrainBenchmark, first_batch, flops_per_pair, masked_pass
from medvlp_bench.rival.laps import Lap, MaskedPass, Overhead, Result, Timing
from medvlp_bench.rival.loop import forward_source
from torch.nn.attention import SDPBackend, sdpa_kernel

import medvlp_core
from medvlp_core.cli import main
from medvlp_core.errors import MedvlpError
from medvlp_core.model.build import build_run

CPU = torch.device("cpu")
#: An image encoder that computes masked cells too, and none that sees a masked image.
CNN = "{use: standard.timm_cnn, model: resnet10t, image_size: 64, channels: 1, stage: 2}"
TWO_TOWERS = """\
medvlp: 1
data: {use: open_cxr.pairs, sources: [nih]}
tokenizer: {use: standard.wordpiece, vocab_size: 300, max_length: 32}
model:
  image_encoder: %s
  text_encoder: {use: standard.bert, width: 32, layers: 1, heads: 2}
  alignments:
    clip: {use: standard.info_nce, dim: 8}
train: {steps: 4, batch_size: 4}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, micro: str) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "micro.yaml"
    path.write_text(micro)
    return path


def benchmark_of(text: str, folder: Path) -> TrainBenchmark:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return TrainBenchmark.over(build_run(medvlp_core.plan(path), seed=0), CPU, steps=3, folder=folder)


def lap(seconds: float) -> Lap:
    return Lap(steps=2, seconds=seconds, cpu_seconds=seconds, data_seconds=0.0)


def test_the_rival_is_written_straight_down(recipe: Path) -> None:
    lines = [line.strip() for line in forward_source(medvlp_core.plan(recipe)).splitlines()]
    image = 'model.image_encoder(image=batch["image"], image_is_masked=masking.image_is_masked)'
    assert f"image_encoder_masked = {image}" in lines
    assert lines[-1] == "return loss, losses"
    assert not any(word in line for line in lines for word in ("for ", "if ", "while ", "plan"))


def test_both_loops_are_timed_and_their_losses_are_equal(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result"
    command = ["bench", "train", str(recipe), "--device", "cpu", "--steps", "3", "--rounds", "2", "--out", str(out)]
    assert main([*command, "--limit", "-99"]) == 1, "no loop takes a hundredth of the other's time"
    text = capsys.readouterr().out
    assert "overhead, CPU time of this process: " in text
    assert text.count("too few rounds for an interval") == 2
    assert "75% of the patches are masked: the image encoder takes " in text
    assert text.splitlines()[-1].endswith("is above the limit of -99 %")
    result = json.loads((out / "train.json").read_text())
    assert result["difference"] < 1e-6
    assert [len(result["timings"][0][side]) for side in ("ours", "rival")] == [2, 2]
    assert all(0 <= lap["data_seconds"] < lap["seconds"] and lap["steps"] == 2 for lap in result["timings"][0]["ours"])
    assert (out / "rival.py").read_text() == forward_source(medvlp_core.plan(recipe))


def test_a_rival_that_computes_something_else_is_not_timed(recipe: Path, tmp_path: Path) -> None:
    built = build_run(medvlp_core.plan(recipe), seed=0)
    benchmark = TrainBenchmark.over(built, CPU, steps=3, folder=tmp_path)
    right = benchmark.rival.forward
    benchmark.rival = attrs.evolve(benchmark.rival, forward=lambda batch: (1.01 * right(batch)[0], right(batch)[1]))
    with pytest.raises(MedvlpError, match="the loop and its rival give different losses") as caught:
        benchmark.check()
    assert caught.value.problems[0].details[0].startswith("step 1: total is ")


def test_the_interval_of_the_median() -> None:
    ours = [1.0 + number / 100 for number in range(20)]
    overhead = Overhead.of(ours, [1.0] * 20)
    # Of 20 rounds, the 6th to the 15th: the median lies outside with a probability of 0.041.
    assert (overhead.low, overhead.high) == (pytest.approx(0.05), pytest.approx(0.14))
    assert (overhead.median, overhead.confidence) == (pytest.approx(0.095), pytest.approx(1 - 0.0414, abs=1e-4))
    few = Overhead.of([1.0, 1.1, 1.2], [1.0, 1.0, 1.0])
    assert (few.low, few.high) == (pytest.approx(0.0), pytest.approx(0.2)), "three rounds: the whole range"
    assert [Overhead.of([1.0] * rounds, [1.0] * rounds).confidence for rounds in (1, 5, 6)] == [0.0, 1 - 2 / 2**5, 1 - 2 / 2**6]


def timing_of(*seconds: float) -> Timing:
    """Rounds of two steps of 4 pairs, beside rounds of one second."""
    ours = tuple(lap(one) for one in seconds)
    return Timing(is_compiled=False, pairs_per_step=4, ours=ours, rival=(lap(1.0),) * len(ours))


def test_few_rounds_have_a_range_and_no_interval() -> None:
    assert speed_lines(timing_of(2.0, 1.0)) == [
        "  medvlp        6.0 images/s (range 4.0 to 8.0), data time 0.0%",
        "  by hand       8.0 images/s (range 8.0 to 8.0), data time 0.0%",
        "  overhead: +50.0% (too few rounds for an interval: range +0.0% to +100.0%)",
        "  overhead, CPU time of this process: +50.0% (too few rounds for an interval: range +0.0% to +100.0%)",
    ]
    five, six = (speed_lines(timing_of(*[1.0] * (rounds - 1), 2.0)) for rounds in (5, 6))
    assert five[2] == "  overhead: +0.0% (too few rounds for an interval: range +0.0% to +100.0%)"
    assert six[2] == "  overhead: +0.0% (95 % interval +0.0% to +100.0%)"
    four = speed_lines(timing_of(8.0, 4.0, 2.0, 1.0))
    assert four[0] == "  medvlp        3.0 images/s (quartiles 1.8 to 5.0), data time 0.0%"


def test_the_share_of_the_device_is_that_of_the_median() -> None:
    result = Result(
        timings=(timing_of(2.0, 1.0),),
        flops_per_pair=1e9,
        matmul_flops=12e9,
        data_sheet_flops=None,
        difference=0.0,
        rival_source="",
    )
    assert "  6.0 GFLOP/s of the model: 50.0% of a large matrix product on this device" in lines_of(result)


def test_the_limit_looks_at_every_setting() -> None:
    rival = (lap(1.0), lap(1.0))
    fast, slow = (Timing(is_compiled=slow, pairs_per_step=4, ours=(lap(1.0 + slow),) * 2, rival=rival) for slow in (False, True))
    assert above(3, [fast, slow]) == ["with torch.compile: the overhead of 100.0 % is above the limit of 3 %"]
    assert above(3, [fast]) == []


def test_operations_that_are_done_again_are_not_counted(micro: str, tmp_path: Path) -> None:
    again = benchmark_of(micro.replace("batch_size: 4", "batch_size: 4, activation_checkpointing: true"), tmp_path)
    assert again.flops_per_pair == benchmark_of(micro, tmp_path).flops_per_pair
    # Counted on the prepared model they would be more.
    assert flops_per_pair(again.built.model, first_batch(again.rival), "fp32") > 1.1 * again.flops_per_pair


def test_the_attention_of_a_cpu_is_counted(micro: str, tmp_path: Path) -> None:
    benchmark = benchmark_of(micro, tmp_path)
    counts = []
    for backends in ([SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        torch.manual_seed(0)  # the same words are hidden
        with sdpa_kernel(backends):
            counts.append(flops_per_pair(benchmark.built.model, first_batch(benchmark.rival), "fp32"))
    # Flash attention computes its scores a second time in backward.
    assert counts[0] < counts[1] < 1.01 * counts[0]


def test_what_masking_saves(micro: str, tmp_path: Path) -> None:
    one = MaskedPass(masked_share=0.75, drops_masked=True, seconds=0.1, seconds_unmasked=0.4)
    timing = Timing(is_compiled=False, pairs_per_step=4, ours=(lap(0.6), lap(0.6)), rival=(lap(0.6), lap(0.6)), masked_pass=one)
    # A step takes 0.3 s, and would take 0.6 s.
    assert timing.saved_by_masking == pytest.approx(0.5)
    assert masking_line(timing).endswith("takes 100.0 ms a step instead of 400.0 ms, which saves 50.0% of a step")

    benchmark = benchmark_of(micro, tmp_path)
    before = {name: value.clone() for name, value in benchmark.built.model.state_dict().items()}
    found = masked_pass(benchmark.built.model, first_batch(benchmark.rival), benchmark.spec)
    assert found is not None
    assert (found.masked_share, found.drops_masked) == (0.75, True)
    assert all(torch.equal(value, before[name]) for name, value in benchmark.built.model.state_dict().items())
    assert all(parameter.grad is None for parameter in benchmark.built.model.parameters())


def test_an_encoder_that_computes_masked_cells_saves_nothing(micro: str, tmp_path: Path) -> None:
    head, _, rest = micro.partition("  image_encoder:")
    text = f"{head}  image_encoder: {CNN}\n  text_encoder:{rest.partition('  text_encoder:')[2]}"
    benchmark = benchmark_of(text, tmp_path)
    before = {name: value.clone() for name, value in benchmark.built.model.state_dict().items()}
    found = masked_pass(benchmark.built.model, first_batch(benchmark.rival), benchmark.spec)
    timing = Timing(is_compiled=False, pairs_per_step=4, ours=(lap(1.0),), rival=(lap(1.0),), masked_pass=found)
    assert masking_line(timing) == "  75% of the image are masked, which saves no time: its encoder computes masked cells too"
    assert all(torch.equal(value, before[name]) for name, value in benchmark.built.model.state_dict().items())


def test_a_recipe_that_masks_nothing_has_nothing_to_save(tmp_path: Path) -> None:
    benchmark = benchmark_of(TWO_TOWERS % CNN, tmp_path)
    found = masked_pass(benchmark.built.model, first_batch(benchmark.rival), benchmark.spec)
    timing = Timing(is_compiled=False, pairs_per_step=4, ours=(lap(1.0),), rival=(lap(1.0),), masked_pass=found)
    assert masking_line(timing) == "  the image encoder sees whole images: no masking saves time"
