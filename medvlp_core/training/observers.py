"""Everybody who watches a run, called at once: files, display, trackers, plugins."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from medvlp_core.planning.plan import ModelPlan
from medvlp_core.runtime.distributed import is_main
from medvlp_core.training.events import Event, Observer
from medvlp_core.training.metrics_file import BadStepsFile, MetricsFile, StepWindow
from medvlp_core.training.progress import ProgressDisplay
from medvlp_core.training.resume import Resume
from medvlp_core.training.run_folder import BAD_STEPS, METRICS, translate_write_errors
from medvlp_core.training.trackers import RunTrackers


class RunObservers:
    """Everybody who watches a run: the metrics file, the list of bad steps, the display, plugins. In the main process alone."""

    def __init__(self, folder: Path, plan: ModelPlan, console: Console, resume: Resume | None, trackers: RunTrackers) -> None:
        self._folder = folder
        self._observers: list[Observer] = []
        self._metrics: MetricsFile | None = None
        self._stack = ExitStack()
        if not is_main():
            return
        every = plan.train.log_every_steps
        progress = resume.progress["metrics"] if resume is not None and resume.progress else None
        with translate_write_errors(folder):
            metrics = MetricsFile(folder / METRICS, log_every_steps=every, progress=progress, on_line=trackers.line)
            self._metrics = self._stack.enter_context(metrics)
            bad_steps = BadStepsFile(folder / BAD_STEPS, after=resume.step if resume else 0)
        display = self._stack.enter_context(ProgressDisplay(console, StepWindow.resumed(every, progress)))
        self._observers = [self._metrics, bad_steps, plan_observer(plan, display, trackers)]

    def __call__(self, event: Event) -> None:
        """Hand an event to all of them.

        Raises:
            DataError: a file cannot be written (MV508).
        """
        for observer in self._observers:
            with translate_write_errors(self._folder):
                observer(event)

    def progress(self) -> dict[str, Any]:
        """What the metrics file needs to resume from a checkpoint."""
        return self._metrics.progress() if self._metrics is not None else {}

    def __enter__(self) -> RunObservers:
        return self

    def __exit__(self, *error: Any) -> None:
        with translate_write_errors(self._folder):
            self._stack.__exit__(*error)


def plan_observer(plan: ModelPlan, display: Observer, trackers: Observer) -> Observer:
    """The display, the trackers, then the plugins."""

    def notify(event: Event) -> None:
        display(event)
        trackers(event)
        plan.host.observe("medvlp_train_event", event=event)

    return notify
