"""``metrics.jsonl``: one line of plain JSON for every ``log_every_steps`` steps."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import torch

from medvlp_core.runtime.files import write_at_once
from medvlp_core.training.events import Event, StepDone, StepSkipped


class StepWindow:
    """Collects the steps of one line: those since the line before. Lines end at step 1, every ``every`` steps and at the last."""

    def __init__(self, every: int, *, pending: Sequence[StepDone] = (), last_line: int = 0) -> None:
        self._every = every
        self.pending = list(pending)
        self.last_line = last_line

    @classmethod
    def resumed(cls, every: int, progress: dict[str, Any] | None) -> StepWindow:
        """The window as it was when :meth:`progress` gave this; None = a new one."""
        if progress is None:
            return cls(every)
        pending = [StepDone(**{**event, "grad_norm": float(event["grad_norm"])}) for event in progress["pending"]]
        return cls(every, pending=pending, last_line=progress["last_line"])

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the next line will be the same: the steps that no line covers yet."""
        pending = [{**attrs.asdict(event), "grad_norm": _json_number(event.grad_norm)} for event in self.pending]
        return {"last_line": self.last_line, "pending": pending}

    def add(self, event: StepDone | StepSkipped) -> tuple[StepDone, ...]:
        """Take one step; the steps of the line that it ends, oldest first, without skipped ones. Empty if it ends none."""
        if isinstance(event, StepDone):
            self.pending.append(event)
        if event.step not in (1, event.steps) and event.step % self._every:
            return ()
        steps = tuple(self.pending)
        self.pending.clear()
        self.last_line = event.step
        return steps


def mean_losses(steps: Sequence[StepDone]) -> dict[str, float]:
    """Every loss term, averaged over some steps."""
    return {name: sum(event.losses[name] for event in steps) / len(steps) for name in steps[-1].losses}


def mean_statistics(steps: Sequence[StepDone]) -> dict[str, float]:
    """The statistics of the modules, averaged over some steps."""
    return {name: sum(event.statistics[name] for event in steps) / len(steps) for name in steps[-1].statistics}


class MetricsFile:
    """An observer that writes the file, line-buffered, so that a running or broken run can be read. A context manager.

    A line holds ``step, epoch, total``, ``losses`` (every term unweighted), ``lr, grad_norm, pairs_per_second, data_time``
    (share of the time in which the loop waited for data), ``memory_mb``, ``bad_steps``, ``seconds`` (since the start),
    ``statistics`` (what modules report). Losses, grad_norm and statistics are means over the steps since the line before
    (``steps_averaged``).
    """

    def __init__(
        self,
        path: Path,
        *,
        log_every_steps: int,
        progress: dict[str, Any] | None = None,
        on_line: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Begin a new file, or resume where ``progress``, what :meth:`progress` gave, stands: later lines are removed.

        ``on_line`` gets every line that is written.
        """
        self._on_line = on_line
        self._window = StepWindow.resumed(log_every_steps, progress)
        self._seconds = progress["seconds"] if progress is not None else 0.0
        self._lines = progress["lines"] if progress is not None else 0
        replace_lines(path, [line for line in read_metrics(path) if line["step"] <= self._window.last_line])
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint keeps. The lines up to here are on the disk before the checkpoint is."""
        os.fsync(self._file.fileno())
        return {**self._window.progress(), "seconds": self._seconds, "lines": self._lines}

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Take one step; write a line when it is time."""
        if isinstance(event, StepDone):
            self._seconds += event.seconds
        if isinstance(event, StepDone | StepSkipped) and (steps := self._window.add(event)):
            line = self._line(steps)
            self._file.write(json.dumps(line) + "\n")
            self._lines += 1
            if self._on_line is not None:
                self._on_line(line)

    def _line(self, steps: Sequence[StepDone]) -> dict[str, Any]:
        last, count = steps[-1], len(steps)
        norms = [event.grad_norm for event in steps if math.isfinite(event.grad_norm)]  # fp16 has others, and no update then
        seconds = sum(event.seconds for event in steps)
        return {
            "step": last.step,
            "epoch": last.epoch,
            "total": sum(event.total for event in steps) / count,
            "losses": mean_losses(steps),
            "lr": last.learning_rate,
            "grad_norm": sum(norms) / len(norms) if norms else None,
            "pairs_per_second": sum(event.pairs for event in steps) / max(seconds, 1e-9),
            "data_time": sum(event.data_seconds for event in steps) / max(seconds, 1e-9),
            "memory_mb": peak_memory_mb(),
            "bad_steps": last.bad_steps,
            "seconds": self._seconds,
            "steps_averaged": count,
            "statistics": mean_statistics(steps),
        }


def peak_memory_mb() -> float | None:
    """The most memory so far, in MiB: of the GPU's allocator if a GPU is used, else resident memory of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows has no such count
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB on Linux


def replace_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write a file of JSON lines at once: it is the old one or the new one, never half."""
    write_at_once(path, "".join(json.dumps(line) + "\n" for line in lines))


class BadStepsFile:
    """An observer that writes ``bad_steps.jsonl``: one line for each skipped step, with the ids of its records.

    Numbers that are not finite stand there as texts, ``nan`` or ``inf``: JSON has no such numbers.
    """

    def __init__(self, path: Path, *, after: int = 0) -> None:
        """Lines of steps later than ``after``, from where a run is resumed, are removed."""
        self._path = path
        if path.exists():
            replace_lines(path, [line for line in read_metrics(path) if line["step"] <= after])

    def __call__(self, event: Event) -> None:
        """Write a line for a skipped step."""
        if isinstance(event, StepSkipped):
            losses = {name: _json_number(value) for name, value in event.losses.items()}
            norm, records = _json_number(event.grad_norm), list(event.records)
            line = {"step": event.step, "losses": losses, "grad_norm": norm, "records": records}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # bad steps are few


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file, oldest first; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
