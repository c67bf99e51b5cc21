"""Runs that are killed, stopped or cheated of their disk go on to the same bits."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import killing
import pytest
import safetensors.torch

from medvlp_core.cli import main
from medvlp_core.compose import plan_recipe
from medvlp_core.errors import DataError
from medvlp_core.train.checkpoint import list_checkpoints
from medvlp_core.train.resume import read_resume
from medvlp_core.train.run import pretrain

#: For each kind. ``MEDVLP_KILLS=40 pytest tests/e2e/test_e2e_resume.py -k killed`` kills dozens of times.
KILLS = os.environ.get("MEDVLP_KILLS", "3")


@pytest.mark.parametrize("kind", ["one", "workers", "ddp"])
def test_a_run_that_is_killed_ends_with_the_same_bits(kind: str) -> None:
    command = [sys.executable, killing.__file__, "--kind", kind, "--kills", KILLS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{kind}: {KILLS} kills of ")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(killing.RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["pretrain", str(recipe), "--out", str(run), "--device", "cpu"]) == 0
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it whose evaluation did not begin; the checkpoints of steps 12 and 14 are there, and maybe the best one."""
    copy = shutil.copytree(whole, tmp_path / "run")
    (copy / "evaluation.json").unlink()
    assert {"step-0000012", "step-0000014"} <= {path.name for path in list_checkpoints(copy)}
    return copy


def go_on(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["pretrain", "--resume", str(run), "--device", "cpu"])
    return code, capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ a damaged checkpoint


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (Path.unlink, "the file is missing"),
    (cut, "bytes, and"),
    (flip, "hash differs"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "average.safetensors", "progress.json"])
def test_a_damaged_file_is_named_with_the_checkpoint_before_it(
    run: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(run / "checkpoints/step-0000014" / name)
    with pytest.raises(DataError) as caught:
        read_resume(run)
    text = str(caught.value)
    assert text.startswith(f"[MV507] {run}/checkpoints/step-0000014/{name}: ")
    assert message in text
    hint = f"go on from the checkpoint before it: medvlp pretrain --resume {run}/checkpoints/step-0000012"
    assert text.endswith(f"    hint: {hint}")
    assert read_resume(run / "checkpoints/step-0000012").step == 12


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
def test_damaged_facts_are_named(run: Path, damage: Callable[[Path], None]) -> None:
    damage(run / "checkpoints/step-0000014/checkpoint.json")
    with pytest.raises(DataError, match=r"MV507.*step-0000014/checkpoint.json: [\s\S]*--resume .*step-0000012"):
        read_resume(run)


def test_the_checkpoint_before_a_damaged_one_leads_to_the_same_end(
    run: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints/step-0000014"
    flip(newest / "model.safetensors")
    torn = run / "checkpoints/.step-0000013.partial"
    shutil.copytree(newest, torn)
    (torn / "checkpoint.json").unlink()
    assert go_on(run / "checkpoints/step-0000012", capsys)[0] == 0
    assert killing.content(run) == killing.content(whole)
    assert not torn.exists(), "left-overs are cleared away"


def test_a_torn_checkpoint_is_never_picked_up(run: Path) -> None:
    shutil.copytree(run / "checkpoints/step-0000014", run / "checkpoints/.step-0000099.partial")
    assert read_resume(run).step == 14
    shutil.rmtree(run / "checkpoints")
    assert read_resume(run).checkpoint is None, "killed before the first one: from the start"


# ------------------------------------------------------------------------------------------------------------ refused


def test_what_cannot_go_on_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go_on(whole, capsys) == (
        1,
        f"[MV508] {whole}: the run is finished\n"
        "    hint: to train longer, start a new run with init_from; to repeat the end, give one of its checkpoints\n",
    )
    assert go_on(tmp_path, capsys) == (
        1,
        f"[MV508] {tmp_path}: there is no run to go on with: resolved.yaml is missing\n"
        "    hint: give the folder of a run, such as runs/mpma_small-20260101-120000\n",
    )


def test_a_changed_recipe_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = run / "resolved.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    code, err = go_on(run, capsys)
    assert code == 1
    assert f"[MV508] {recipe}: the recipe was changed after the run began\n" in err


def test_other_data_and_processes_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = read_resume(run)
    pipeline = type("Pipeline", (), {"source": type("Source", (), {"fingerprint": lambda self: "other"})()})()
    monkeypatch.setattr("medvlp_core.train.resume.launched_processes", lambda: 3)
    with pytest.raises(DataError) as caught:
        resume.check(pipeline)  # type: ignore[arg-type]
    text = str(caught.value)
    assert f"[MV508] {run}: the data are not those of the run: ids, texts, labels or splits have changed\n" in text
    assert f"[MV508] {run}: the run has 1 training processes, and 3 would go on\n" in text
    assert "    hint: start 1 processes" in text


def test_options_that_would_change_the_run_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "mpma:small", "--resume", "run", "--set", "train.steps=9", "--out", "x"]) == 2
    assert "--resume takes no RECIPE, --set, --use or --unset, --out" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ no room


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def short(recipe: Path) -> Any:
    """Its plan without evaluators."""
    plan = plan_recipe(recipe)
    return attrs.evolve(plan, components={path: one for path, one in plan.components.items() if not path.startswith("eval")})


def test_a_full_disk_keeps_the_checkpoint_before(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, save, calls = tmp_path / "run", safetensors.torch.save_file, []

    def save_some(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        (save if len(calls) < 6 else full_disk)(*arguments, **named)  # three files each: in the middle of the second

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", save_some)
        assert main(["pretrain", str(recipe), "--out", str(run), "--device", "cpu"]) == 1
    assert capsys.readouterr().err == (
        f"[MV507] {run}/checkpoints/step-0000006: the checkpoint cannot be written (No space left on device)\n"
        f"    hint: make room or make it writable, then go on with: medvlp pretrain --resume {run}\n"
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000003"]
    assert go_on(run, capsys)[0] == 0
    assert killing.content(run) == killing.content(whole)


def test_a_limit_on_the_size_of_files_is_a_message(recipe: Path, tmp_path: Path) -> None:
    """The operating system itself says no, in the middle of the weights."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "medvlp_core.cli", "pretrain", str(recipe), "--out", str(run), "--device", "cpu"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert f"[MV507] {run}/checkpoints/step-0000003: the checkpoint cannot be written (" in done.stderr
    assert "File too large" in done.stderr
    assert not list((run / "checkpoints").iterdir())


def test_metrics_that_cannot_be_written_are_a_message(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("medvlp_core.train.metrics_file.MetricsFile._line", full_disk)
    with pytest.raises(DataError) as caught:
        pretrain(short(recipe), out=run, device="cpu")
    assert str(caught.value).startswith(f"[MV508] {run}: the file cannot be written (No space left on device)\n")


def test_a_folder_that_cannot_hold_checkpoints_is_a_message(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("a file")
    code, err = go_on(run, capsys)
    assert code == 1
    assert "step-0000003: the checkpoint cannot be written (Not a directory)" in err


# ------------------------------------------------------------------------------------------------------------ signals


def begin(*command: str, run: Path, lines: int) -> subprocess.Popen[str]:
    """Start a command; returns when the run has so many lines of metrics."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= lines):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(
    recipe: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = begin("medvlp_core.cli", "pretrain", str(recipe), "--out", str(run), "--device", "cpu", run=run, lines=1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    step = read_resume(run).step
    assert f"stopped by {number.name} after step {step}\n" in out
    assert f"go on with: medvlp pretrain --resume {run}\n" in out
    assert go_on(run, capsys)[0] == 0
    ours, theirs = killing.content(run), killing.content(whole)
    last = [name for name in theirs if "step-0000014" in name or "checkpoints" not in name]
    assert all(ours[name] == theirs[name] for name in last), "one checkpoint more may be the best"


def test_torchrun_hands_sigterm_on(recipe: Path, tmp_path: Path) -> None:
    """As a scheduler's preemption arrives; then the run goes on under torchrun, to the end."""
    run = tmp_path / "run"
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medvlp_core.cli", "pretrain")
    process = begin(*torchrun, str(recipe), "--out", str(run), "--device", "cpu", run=run, lines=1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert out.count("stopped by SIGTERM after step") == 1, "the main process alone speaks"
    assert not (run / "evaluation.json").exists()
    step = read_resume(run).step
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "--resume", str(run), "--device", "cpu"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"going on after step {step}\n") == 1
    assert json.loads((run / "evaluation.json").read_text())["results"]
