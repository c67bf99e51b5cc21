"""The run folder: a new one that holds nothing, and the names of what goes into it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from medvlp_core.errors import DataError, Problem
from medvlp_core.runtime.distributed import launched_processes
from medvlp_core.training.lock import LOCK
from medvlp_core.training.metrics_file import read_metrics

RECIPE, METRICS, BAD_STEPS, EVALUATION = "resolved.yaml", "metrics.jsonl", "bad_steps.jsonl", "evaluation.json"
INIT_SUMMARY, START = "init_from.json", "start.json"
CHECKPOINTS = "checkpoints"


def check_run_folder(out: str | Path | None) -> None:
    """Refuse a run folder that cannot be used, without making anything.

    Raises:
        DataError: it is empty text, exists and holds something, or cannot be made (MV508).
    """
    if out == "":
        raise DataError(Problem(code="MV508", text="the run folder's name is empty", hint="give --out a name, or leave it away"))
    folder = Path("runs") if out is None else Path(out)
    try:
        # What a run that was killed in its first moment left, before its recipe was there, is not in the way.
        first = {LOCK, START, f".{START}.partial", f".{RECIPE}.partial"}
        is_used = out is not None and folder.exists() and any(path.name not in first for path in folder.iterdir())
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise _cannot_make(folder, error.strerror or str(error)) from error
    if is_used:
        hint = "choose a new folder with --out, or leave --out away"
        raise DataError(Problem(code="MV508", text=f"{folder}: the run folder is not empty", hint=hint))
    if not nearest.is_dir():
        raise _cannot_make(folder, f"{nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _cannot_make(folder, f"{nearest} may not be written")


def make_run_folder(out: str | Path | None, name: str) -> Path:
    """Make the folder; without ``out`` a new one below ``runs/``.

    Raises:
        DataError: see :func:`check_run_folder`.
    """
    check_run_folder(out)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{name}-{stamp}" if out is None else Path(out)
    number = 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            return folder
        except FileExistsError as error:
            if out is not None:  # a file of that name came up just now
                raise _cannot_make(folder, "there is a file of that name") from error
            number += 1  # two runs in one second
            folder = Path("runs") / f"{name}-{stamp}-{number}"
        except OSError as error:
            raise _cannot_make(folder, error.strerror or str(error)) from error


def _cannot_make(folder: Path, why: str) -> DataError:
    return DataError(Problem(code="MV508", text=f"{folder}: the run folder cannot be made ({why})", hint="choose another --out"))


def read_start(folder: Path) -> dict[str, Any]:
    """What ``start.json`` says of the data, processes and machine of a run.

    Raises:
        DataError: they are missing or damaged (MV508).
    """
    try:
        metadata = json.loads((folder / START).read_text(encoding="utf-8"))
        if set(metadata) != {"name", "seed", "data", "processes", "machine"}:
            raise ValueError("other metadata than a run writes")
    except (OSError, ValueError) as error:
        text = f"{folder / START}: how the run began cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataError(Problem(code="MV508", text=text, hint="the run has no checkpoint yet: start a new one")) from error
    content: dict[str, Any] = metadata
    return content


def resume_command(run: Path, processes: int | None = None) -> str:
    """The command that resumes a run of some processes (by default as many as there are now)."""
    count = launched_processes() if processes is None else processes
    start = "medvlp" if count == 1 else f"torchrun --nproc-per-node {count} -m medvlp_core.cli"
    return f"{start} pretrain --resume {run}"


@contextmanager
def translate_write_errors(folder: Path) -> Iterator[None]:
    """Turn what keeps a file of a run from being written into a message.

    Raises:
        DataError: the disk is full, for instance (MV508).
    """
    try:
        yield
    except OSError as error:
        text = f"{error.filename or folder}: the file cannot be written ({error.strerror or error})"
        hint = f"make room or make it writable, then resume with: {resume_command(folder)}"
        raise DataError(Problem(code="MV508", text=text, hint=hint)) from error


@contextmanager
def cleanup_on_failed_start(folder: Path) -> Iterator[None]:
    """Take the run folder away again if training fails before its first step: the command can then simply be repeated."""
    try:
        yield
    except BaseException:
        # Step 1 writes a line in the one file or the other.
        if not read_metrics(folder / METRICS) and not (folder / BAD_STEPS).exists():
            for name in (METRICS, START, RECIPE, INIT_SUMMARY, LOCK):
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # it holds something else after all, or is the working folder
                folder.rmdir()
        raise
