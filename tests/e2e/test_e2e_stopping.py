"""Runs that a signal or a full disk stops keep what they have."""

from __future__ import annotations

import errno
import functools
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import attrs
import killing
import pytest
import safetensors.torch
from forked import Forked
from running import resume_run, wait_for_metrics

import medvlp_core
from medvlp_core.cli import main
from medvlp_core.errors import DataError
from medvlp_core.training.resume import read_resume
from medvlp_core.training.trainer import pretrain


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def short(recipe: Path) -> Any:
    """Its plan without evaluators."""
    plan = medvlp_core.plan(recipe)
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
        f"    hint: make room or make it writable, then resume with: medvlp pretrain --resume {run}\n"
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000003"]
    assert resume_run(run, capsys)[0] == 0
    assert killing.content(run) == killing.content(whole)


def test_a_limit_on_the_size_of_files_is_a_message(recipe: Path, tmp_path: Path) -> None:
    """The operating system itself says no, in the middle of the weights."""
    run = tmp_path / "run"
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    process = Forked("medvlp_core.cli", "pretrain", str(recipe), "--out", str(run), "--device", "cpu", before=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"[MV507] {run}/checkpoints/step-0000003: the checkpoint cannot be written (" in err
    assert "File too large" in err
    assert not list((run / "checkpoints").iterdir())


def test_metrics_that_cannot_be_written_are_a_message(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("medvlp_core.training.metrics_file.MetricsFile._line", full_disk)
    with pytest.raises(DataError) as caught:
        pretrain(short(recipe), out=run, device="cpu")
    assert str(caught.value).startswith(f"[MV508] {run}: the file cannot be written (No space left on device)\n")


def test_a_folder_that_cannot_hold_checkpoints_is_a_message(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("a file")
    code, err = resume_run(run, capsys)
    assert code == 1
    assert "step-0000003: the checkpoint cannot be written (Not a directory)" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(
    recipe: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = Forked("medvlp_core.cli", "pretrain", str(recipe), "--out", str(run), "--device", "cpu")
    wait_for_metrics(process, run, lines=1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    step = read_resume(run).step
    assert f"stopped by {number.name} after step {step}\n" in out
    assert f"resume with: medvlp pretrain --resume {run}\n" in out
    assert resume_run(run, capsys)[0] == 0
    ours, theirs = killing.content(run), killing.content(whole)
    last = [name for name in theirs if "step-0000014" in name or "checkpoints" not in name]
    assert all(ours[name] == theirs[name] for name in last), "one checkpoint more may be the best"
