"""``medvlp bench train`` on the micro model: the check, the result, the limit."""

import json
from pathlib import Path

import attrs
import pytest
import torch

from medvlp_core.build import build_run
from medvlp_core.cli import main
from medvlp_core.compose import plan_recipe
from medvlp_core.errors import MedvlpError
from medvlp_core.train.benchmark import Overhead, TrainBenchmark
from medvlp_core.train.plain import forward_source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, micro: str) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "micro.yaml"
    path.write_text(micro)
    return path


def test_the_rival_is_written_straight_down(recipe: Path) -> None:
    lines = [line.strip() for line in forward_source(plan_recipe(recipe)).splitlines()]
    assert "encode_image_masked = part_1(image=batch.image, image_is_masked=mask.image_is_masked)" in lines
    assert lines[-1] == "return forward"
    assert not any(word in line for line in lines for word in ("for ", "if ", "while ", "plan"))


def test_both_loops_are_timed_and_their_losses_are_equal(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result"
    command = ["bench", "train", str(recipe), "--device", "cpu", "--steps", "3", "--rounds", "2", "--out", str(out)]
    assert main([*command, "--limit", "-99"]) == 1, "no loop takes a hundredth of the other's time"
    text = capsys.readouterr().out
    assert "overhead, CPU time of this process: " in text
    assert text.splitlines()[-1].endswith("is above the limit of -99 %")
    result = json.loads((out / "train.json").read_text())
    assert result["difference"] < 1e-6
    assert [len(result["timings"][0][side]) for side in ("ours", "rival")] == [2, 2]
    assert all(0 <= lap["waiting"] < lap["seconds"] and lap["steps"] == 2 for lap in result["timings"][0]["ours"])
    assert (out / "rival.py").read_text() == forward_source(plan_recipe(recipe))


def test_a_rival_that_computes_something_else_is_not_timed(recipe: Path, tmp_path: Path) -> None:
    built = build_run(plan_recipe(recipe), seed=0)
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
    assert overhead.median == pytest.approx(0.095)
    few = Overhead.of([1.0, 1.1, 1.2], [1.0, 1.0, 1.0])
    assert (few.low, few.high) == (pytest.approx(0.0), pytest.approx(0.2)), "three rounds: the whole range"
