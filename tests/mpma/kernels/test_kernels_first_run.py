"""The first time on a GPU, `medvlp bench kernels --first-run`: a rehearsal runs all of it, and no rehearsal looks like a result."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from medvlp_mpma.kernels import sweep
from medvlp_mpma.kernels.memory_attention import tuning as attention_tuning
from medvlp_mpma.kernels.memory_topk import tuning as topk_tuning
from triton_patch import at_startup

COMMAND = ("-m", "medvlp_core.cli", "bench", "kernels", "--first-run")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = at_startup({**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    command = [sys.executable, *COMMAND, "--out", str(folder / "out"), *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a rehearsal."""
    folder = tmp_path_factory.mktemp("rehearsal")
    done = run(folder, "--rehearse")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


def test_a_rehearsal_does_every_step(rehearsal: Path) -> None:
    measured = json.loads((rehearsal / "measurements.json").read_text())
    assert list(measured["steps"]) == ["device", "correctness", "timings", "sweep", "crossover", "model"]
    assert all(text.startswith("done") for text in measured["steps"].values()), measured["steps"]
    assert {row["kernel"] for row in measured["sweep"]} == set(sweep.KERNELS)
    assert {row["reason"] for row in measured["sweep"]} == {""}
    assert [row["S"] for row in measured["crossover"] if row["direction"] == "both"] == [4, 20]
    assert all(row["images_per_s"] > 0 for row in measured["model"])
    files = [path for path in rehearsal.rglob("*") if path.is_file()]
    assert len(files) <= 8, "few enough to look through"


def test_what_it_checks_is_green(rehearsal: Path) -> None:
    with (rehearsal / "correctness.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["verdict"] for row in rows} == {"green"}
    assert {(row["op"], row["backend"]) for row in rows} == {
        (op, backend) for op in ("mpma.memory_attention", "mpma.memory_topk") for backend in ("composite", "triton")
    }
    assert {row["dtype"] for row in rows} == {"float32", "float16"}
    assert {row["tensor"] for row in rows} >= {"out", "lse", "grad q", "grad mem_k", "grad mem_bias", "same bits twice"}


def test_what_it_times_is_marked(rehearsal: Path) -> None:
    with (rehearsal / "kernels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["shape"] for row in rows} == set("ABCDEFG")
    assert all(row["median_ms"] for row in rows if row["contender"] in ("triton", "composite"))
    assert all(row["device"].startswith("REHEARSAL") for row in rows)
    assert json.loads((rehearsal / "device.json").read_text())["rehearsal"] is True
    summary = (rehearsal / "summary.md").read_text()
    assert summary.startswith("# REHEARSAL")
    goals = summary.partition("## Goals")[2].partition("\n## ")[0]
    verdicts = {line.split("|")[-2].strip() for line in goals.splitlines() if line.startswith("| ")} - {"", "---"}
    assert verdicts == {"rehearsal"}


def test_its_tables_keep_what_was_not_swept(rehearsal: Path) -> None:
    for module in (attention_tuning, topk_tuning):
        name = module.TABLES.parent.name
        (path,) = (rehearsal / name / "tables").iterdir()
        assert path.stem == "rehearsal", "no name that could be copied over a real table"
        found, known = (json.loads(one.read_text()) for one in (path, module.TABLES / "interpreter.json"))
        assert found.keys() == known.keys()
        for kernel, rules in known.items():
            if isinstance(rules, list):
                assert [rule for rule in found[kernel] if rule in rules] == rules
                assert all(rule["head_width"] == 64 for rule in found[kernel] if rule not in rules)


@pytest.mark.parametrize(
    "path",
    [*attention_tuning.TABLES.glob("*.json"), *topk_tuning.TABLES.glob("*.json")],
    ids=lambda path: f"{path.parents[1].name}-{path.stem}",
)
def test_tables_are_written_as_they_are_kept(path: Path) -> None:
    assert sweep.table_text(json.loads(path.read_text())) == path.read_text()


def test_a_new_rule_takes_the_place_of_the_old_one_or_stands_in_front_of_a_wider_one() -> None:
    exact, wide = {"bits": 16, "head_width": 64, "warps": 4}, {"bits": 16, "head_width": 256, "warps": 4}
    table = {"programs": 4, "forward": [exact, wide]}
    assert sweep.replaced(table, "forward", exact, {**exact, "warps": 8})["forward"] == [{**exact, "warps": 8}, wide]
    assert sweep.replaced(table, "forward", wide, {**wide, "warps": 8})["forward"] == [exact, {**exact, "warps": 8}, wide]


def test_a_rehearsal_out_of_time_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "--rehearse", "--minutes", "0", "--steps", "timings,crossover")
    assert done.returncode == 0, done.stderr
    steps = json.loads((tmp_path / "out" / "measurements.json").read_text())["steps"]
    assert all("no time for" in text for text in steps.values()), steps
    assert "not measured" in (tmp_path / "out" / "summary.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["medvlp bench: torch finds no GPU here (--rehearse tries the first run without one)"]
    assert not (tmp_path / "out").exists()
