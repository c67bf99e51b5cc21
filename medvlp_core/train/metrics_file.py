"""``metrics.jsonl``: one line of plain JSON for every ``log_every_steps`` steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from medvlp_core.train.events import Event, StepDone


class StepWindow:
    """Collects the steps of one line: those since the line before. Lines come at step 1, every ``every`` steps and at the end."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._pending: list[StepDone] = []

    def add(self, event: StepDone) -> tuple[StepDone, ...] | None:
        """Take one step; the steps of the line that it ends, oldest first, or None if it ends none."""
        self._pending.append(event)
        if event.step != 1 and event.step % self._every != 0 and event.step != event.steps:
            return None
        steps = tuple(self._pending)
        self._pending.clear()
        return steps


def mean_losses(steps: Sequence[StepDone]) -> dict[str, float]:
    """Every loss term, averaged over some steps."""
    return {name: sum(event.losses[name] for event in steps) / len(steps) for name in steps[-1].losses}


class MetricsFile:
    """An observer that writes the file, line-buffered, so that a running or broken run can be read. A context manager.

    A line holds ``step, epoch, total``, ``losses`` (every term unweighted), ``lr, grad_norm, pairs_per_second, seconds``
    (since the start). Losses and grad_norm are means over the steps since the line before (``steps_averaged``).
    """

    def __init__(self, path: Path, *, log_every_steps: int) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._window = StepWindow(log_every_steps)
        self._seconds = 0.0

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Take one step; write a line when it is time."""
        if not isinstance(event, StepDone):
            return
        self._seconds += event.seconds
        if steps := self._window.add(event):
            self._file.write(json.dumps(self._line(steps)) + "\n")

    def _line(self, steps: Sequence[StepDone]) -> dict[str, Any]:
        last, count = steps[-1], len(steps)
        seconds = sum(event.seconds for event in steps)
        return {
            "step": last.step,
            "epoch": last.epoch,
            "total": sum(event.total for event in steps) / count,
            "losses": mean_losses(steps),
            "lr": last.learning_rate,
            "grad_norm": sum(event.grad_norm for event in steps) / count,
            "pairs_per_second": sum(event.pairs for event in steps) / max(seconds, 1e-9),
            "seconds": self._seconds,
            "steps_averaged": count,
        }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file, oldest first; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
