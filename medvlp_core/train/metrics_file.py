"""``metrics.jsonl``: one line of plain JSON for every ``log_every_steps`` steps."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from medvlp_core.train.events import Event, StepDone


class MetricsFile:
    """An observer that writes the file, line-buffered, so that a running or broken run can be read. A context manager.

    A line holds ``step, epoch, total``, ``losses`` (every term unweighted), ``lr, grad_norm, pairs_per_second, seconds``
    (since the start). Losses and grad_norm are means over the steps since the line before (``steps_averaged``).
    """

    def __init__(self, path: Path, *, log_every_steps: int) -> None:
        self._file = path.open("w", encoding="utf-8", buffering=1)
        self._every = log_every_steps
        self._pending: list[StepDone] = []
        self._seconds = 0.0

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __call__(self, event: Event) -> None:
        """Take one step; write a line when it is time."""
        if not isinstance(event, StepDone):
            return
        self._pending.append(event)
        self._seconds += event.seconds
        if event.step == 1 or event.step % self._every == 0 or event.step == event.steps:
            self._file.write(json.dumps(self._line(event)) + "\n")
            self._pending.clear()

    def _line(self, last: StepDone) -> dict[str, Any]:
        count = len(self._pending)
        seconds = sum(event.seconds for event in self._pending)
        return {
            "step": last.step,
            "epoch": last.epoch,
            "total": sum(event.total for event in self._pending) / count,
            "losses": {name: sum(event.losses[name] for event in self._pending) / count for name in last.losses},
            "lr": last.learning_rate,
            "grad_norm": sum(event.grad_norm for event in self._pending) / count,
            "pairs_per_second": sum(event.pairs for event in self._pending) / max(seconds, 1e-9),
            "seconds": self._seconds,
            "steps_averaged": count,
        }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file, oldest first; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
