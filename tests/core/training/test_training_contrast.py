"""Contrasts over a whole step (``train.contrast_over: step``): many micro-batches do what one large batch does, in float64."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contrast_bundle import CPU, Pairs, Run, plan_of, read, recipe
from forked import in_two_processes
from torch import Tensor, nn

from medvlp_core.cli.explain import explanation
from medvlp_core.errors import SpecError
from medvlp_core.planning.wiring import PortKey
from medvlp_core.runtime.distributed import all_gather_object, process_group
from medvlp_core.training.checkpoint import WEIGHTS, load_state, load_weights, save_checkpoint
from medvlp_core.training.events import StepSkipped
from medvlp_core.training.whole_step import put_together

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
ALIGNMENTS = {
    "info_nce": "use: standard.info_nce, dim: 5, view: masked, same_text: ignore",
    "siglip": "use: standard.siglip, dim: 5, initial_bias: -2.0",
    "gloria": "use: standard.gloria, dim: 5",
    "global and local": "use: mpma.global_local, dim: 5, same_word: ignore",
    "global and gloria": "use: mpma.global_local, dim: 5, local_kind: gloria, align_text: clean, same_text: ignore",
}
STEP = ", contrast_over: step"
FOUR = ", gradient_accumulation_steps: 4"
TWO = ", gradient_accumulation_steps: 2"
#: Name: the alignment, and what else ``train`` has, of two processes.
CASES = {
    **{f"ddp, {name}": (name, TWO + STEP) for name in ALIGNMENTS},
    "ddp, one micro-batch": ("global and local", STEP),
    "fsdp, info_nce": ("info_nce", TWO + STEP + ", parallel: fsdp"),
    "fsdp, global and gloria": ("global and gloria", TWO + STEP + ", parallel: fsdp"),
}
QUEUED = "use: ct.nce"


@functools.cache
def large(alignment: str, **others: str) -> Run:
    """One process with one micro-batch."""
    return Run.of(recipe(alignment, **others)).train()


def check_equal(found: dict[str, Any], run: Run) -> None:
    """The same losses, gradients and weights as in a run."""
    assert found["losses"] == [pytest.approx(one, rel=1e-6) for one in run.losses]  # they are summed in single precision
    close(found["gradients"], run.gradients)
    close(found["weights"], run.weights)


def what(run: Run) -> dict[str, Any]:
    """What :func:`check_equal` looks at."""
    return {"losses": run.losses, "gradients": run.gradients, "weights": run.weights}


# ---------------------------------------------------------------------------------------------------------- as one large batch


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_four_micro_batches_do_what_one_large_batch_does(name: str) -> None:
    run = Run.of(recipe(ALIGNMENTS[name], FOUR + STEP)).train()
    check_equal(what(run), large(ALIGNMENTS[name]))
    narrow = Run.of(recipe(ALIGNMENTS[name], FOUR)).train()
    assert narrow.losses[0]["a.global"] < 0.8 * run.losses[0]["a.global"]  # fewer negatives


def one_of_two(rank: int, folder: Path) -> None:
    """What each of two processes does."""
    found: dict[str, Any] = {}
    with process_group(CPU):
        for case, (name, train) in CASES.items():
            run = Run.of(recipe(ALIGNMENTS[name], train)).train()
            found[case] = what(run)
            texts = [str([(name, one.tolist()) for name, one in run.weights.items()])]
            found[case]["is_equal_everywhere"] = len(set(all_gather_object(str(texts)))) == 1
        run = Run.of(recipe(QUEUED, TWO + STEP)).train()
        found["queued"] = {"handed": run.state.model.alignments["a"].handed, **what(run)}
        bad = Run.of(recipe(ALIGNMENTS["info_nce"], TWO + STEP, images=", has_batch_norm: true"))
        bad.pairs.bad_rows = (3,)
        found["bad"] = {"skipped": [type(event).__name__ for event in bad.train().events], "weights": bad.weights}
    if rank == 0:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found, by case."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(one_of_two, folder)
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_large_batch_does(two: dict[str, Any], case: str) -> None:
    check_equal(two[case], large(ALIGNMENTS[CASES[case][0]]))
    assert two[case]["is_equal_everywhere"]


@pytest.mark.parametrize("count", [1, 4])
def test_modules_with_a_state_get_the_rows_of_the_whole_step(count: int, two: dict[str, Any]) -> None:
    run = Run.of(recipe(QUEUED, f", gradient_accumulation_steps: {count}{STEP}")).train()
    handed: Any = run.state.model.alignments["a"].handed
    wanted: Any = large(QUEUED).state.model.alignments["a"].handed
    assert [len(vectors) for vectors, _ in handed] == [8, 5, 8]
    close(handed, wanted)
    close(two["queued"]["handed"], wanted)
    check_equal(two["queued"], large(QUEUED))


def test_a_single_micro_batch_is_the_step() -> None:
    found = Run.of(recipe(ALIGNMENTS["gloria"], STEP)).train()
    torch.testing.assert_close(what(found), what(large(ALIGNMENTS["gloria"])), rtol=0, atol=0)


def test_layers_may_compute_their_activations_again() -> None:
    found = Run.of(recipe(ALIGNMENTS["gloria"], FOUR + STEP + ", activation_checkpointing: true")).train()
    check_equal(what(found), large(ALIGNMENTS["gloria"]))


def test_projections_alone_may_be_trained() -> None:
    frozen = ", freeze: ['image_encoder.*', 'text_encoder.*', 'decoders.*']"
    found = Run.of(recipe(ALIGNMENTS["siglip"], FOUR + STEP + frozen)).train()
    check_equal(what(found), Run.of(recipe(ALIGNMENTS["siglip"], frozen)).train())
    assert all(name.startswith("alignments.") for name in found.gradients[0])


def test_a_loss_scale_changes_nothing() -> None:
    found = Run.of(recipe(ALIGNMENTS["gloria"], FOUR + STEP))
    found.state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    check_equal(what(found.train()), large(ALIGNMENTS["gloria"]))


def test_autocast_comes_near() -> None:
    found = Run.of(recipe(ALIGNMENTS["global and local"], FOUR + STEP + ", precision: bf16"), torch.float32)
    found.pairs.images = Pairs.images.float()
    found.train()
    for mine, wanted in zip(found.losses, large(ALIGNMENTS["global and local"]).losses, strict=True):
        assert mine == pytest.approx(wanted, rel=0.05)


# ------------------------------------------------------------------------------------------------------------------ two passes


def outputs_of(run: Run, *names: str) -> dict[str, list[Tensor]]:
    """All that modules give from now on."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        found[name].append(first.detach().clone())

    for name in names:
        run.state.model.get_submodule(name).register_forward_hook(functools.partial(keep, name))
    return found


def test_both_passes_over_a_micro_batch_draw_the_same_masks_and_dropout() -> None:
    fused = "use: mpma.global_local, dim: 5"
    text = recipe(fused, TWO + STEP, masking=", draws: true", images=", dropout: 0.3", texts=", dropout: 0.3")
    text = text.replace(
        "  decoders:\n", "  fusion: {use: mpma.memory_fusion, heads: 2, slots: 4, topk: 2, layers: 1, dropout: 0.3}\n  decoders:\n"
    )
    text = text.replace("    pixels:", "    words: {use: kit.report_decoder}\n    pixels:")
    run = Run.of(text)
    found = outputs_of(run, "masking", "image_encoder.blocks.1", "text_encoder.blocks.1", "fusion")
    run.train(stop_after=1)
    assert len(found["fusion"]) == 2  # no contrast needs it
    for name in ("masking", "image_encoder.blocks.1", "text_encoder.blocks.1"):
        outputs = found[name]
        assert len(outputs) % 4 == 0
        first, second = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
        torch.testing.assert_close(second, first, rtol=0, atol=0)
        if name != "masking":
            assert not torch.equal(first[0][:4], first[len(first) // 2][:4])  # micro-batches draw numbers of their own


def test_batch_norms_count_each_micro_batch_once() -> None:
    norms = {}
    for mode in ("", STEP):
        run = Run.of(recipe(ALIGNMENTS["siglip"], FOUR + mode, images=", has_batch_norm: true")).train(stop_after=1)
        norms[mode] = {name: one for name, one in run.weights.items() if "batch_norm" in name and "weight" not in name}
        del norms[mode]["image_encoder.batch_norm.bias"]
    assert set(norms[""]) >= {"image_encoder.batch_norm.num_batches_tracked", "image_encoder.batch_norm.running_var"}
    torch.testing.assert_close(norms[STEP], norms[""], rtol=0, atol=0)


def test_a_skipped_step_changes_nothing(two: dict[str, Any]) -> None:
    alone = Run.of(recipe(ALIGNMENTS["info_nce"], FOUR + STEP, images=", has_batch_norm: true"))
    alone.pairs.bad_rows = (3,)
    before: list[dict[str, Tensor]] = [alone.weights]
    alone.train(stop_after=1)
    before.append(alone.weights)
    skipped = isinstance(alone.events[0], StepSkipped)
    assert skipped == all(torch.equal(before[0][name], before[1][name]) for name in before[0])
    alone = Run.of(recipe(ALIGNMENTS["info_nce"], FOUR + STEP, images=", has_batch_norm: true"))
    alone.pairs.bad_rows = (3,)
    alone.train()
    assert [type(event).__name__ for event in alone.events] == two["bad"]["skipped"]
    assert "StepSkipped" in two["bad"]["skipped"]
    assert "StepDone" in two["bad"]["skipped"]
    assert all(torch.isfinite(one).all() for one in two["bad"]["weights"].values())


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    drawn = {"masking": ", draws: true", "images": ", dropout: 0.3, has_batch_norm: true", "texts": ", dropout: 0.3"}
    text = recipe(ALIGNMENTS["global and local"], TWO + STEP, **drawn)
    through = Run.of(text).train()
    half = Run.of(text).train(stop_after=2)
    tokenizer: Any = SimpleNamespace(save=lambda folder: None)
    folder = tmp_path / "checkpoints" / "step-2"
    save_checkpoint(folder, plan=half.plan, state=half.state, tokenizer=tokenizer, metadata={}, progress={})
    resumed = Run.of(text)
    load_weights(resumed.state.model, folder / WEIGHTS)
    load_state(resumed.state, folder)
    assert resumed.state.step == 2
    resumed.train()
    torch.testing.assert_close(resumed.weights, through.weights, rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------------- what is said, refused


def test_explain_says_what_is_contrasted_over_what() -> None:
    lines = {mode: "\n".join(explanation(plan_of(recipe(ALIGNMENTS["siglip"], mode)))) for mode in ("", FOUR, FOUR + STEP)}
    assert "mixes" not in lines[""]
    assert "       losses global\n       mixes the rows of one micro-batch, of all processes\n" in lines[FOUR]
    assert "       losses global\n       mixes all rows of a step, of all micro-batches and processes\n" in lines[FOUR + STEP]


def errors(text: str) -> list[str]:
    """The errors of a recipe, as a user reads them."""
    return [str(problem) for problem in read(text)[1].errors]


def test_what_needs_a_port_of_a_contrast_is_refused() -> None:
    text = recipe(QUEUED, STEP).replace("    pixels:", "    scores: {use: ct.scores}\n    pixels:")
    assert errors(text) == [
        "recipe.yaml:10:19 [MV212] model.decoders.scores (ct.scores) needs a.score, which model.alignments.a gives for "
        "all rows of a step at once, after every other call: train.contrast_over is step\n"
        "    hint: take a port of a call that mixes no rows, or take `contrast_over: step` out of train"
    ]
    assert plan_of(text.replace(STEP, ""))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "ragged",
            "model.alignments.a (ct.picky) takes text_encoder.text_tokens (B L 6), whose axis L has another length in every "
            "micro-batch, and nothing that says where it is padding\n"
            "    hint: the call must need a port ..._is_valid with this axis as well, or take `contrast_over: step` out of train",
        ),
        (
            "no rows",
            "model.alignments.a (ct.picky) takes mean.middle (6), which has no row for each record: nobody knows which "
            "micro-batch's the whole step should take\n"
            "    hint: its first axis must be the batch, or take `contrast_over: step` out of train",
        ),
    ],
)
def test_rows_that_cannot_be_put_together_are_refused(kind: str, message: str) -> None:
    more = "  parts:\n    mean: {use: ct.middle}\n" if kind == "no rows" else ""
    text = recipe(f"use: ct.picky, kind: {kind}", STEP).replace("  alignments:\n", f"{more}  alignments:\n")
    (found,) = errors(text)
    assert found.partition("] ")[2] == message
    assert plan_of(text.replace(STEP, ""))


def test_micro_batches_with_other_numbers_of_visible_tokens_are_refused() -> None:
    contrast = plan_of(recipe(ALIGNMENTS["info_nce"], STEP)).contrast
    assert contrast is not None
    key = PortKey("image_encoder.image_tokens", "masked")
    assert key in contrast.ports
    parts = [{str(one): torch.zeros(2, 3, 6) for one in contrast.ports} for _ in range(2)]
    parts[1][str(key)] = torch.zeros(2, 2, 6)
    with pytest.raises(
        SpecError, match=r"MV206\] image_encoder.image_tokens@masked has 2 entries along axis 1 .* 3 in another one"
    ):
        put_together(parts, contrast, [[2, 2]])
