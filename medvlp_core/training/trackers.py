"""Trackers that show a run elsewhere: TensorBoard, Weights & Biases, MLflow, through accelerate's tracker classes.

They get what ``metrics.jsonl`` gets, line by line; that file stays the truth. Only the main process has trackers.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from medvlp_core.errors import MedvlpError, Problem, describe_error
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.recipe.diff import leaves
from medvlp_core.runtime.distributed import is_main
from medvlp_core.runtime.files import write_at_once
from medvlp_core.spec.blocks import TRACKERS
from medvlp_core.training.describe_run import warn
from medvlp_core.training.events import CheckpointSaved, Evaluated, Event
from medvlp_core.training.resume import Resume

#: Where the run folder remembers which runs of the trackers are its own, so that a resumed run continues them.
IDS = "trackers.json"


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        MedvlpError: a package is missing (MV605).
    """
    problems = []
    for name in names:
        missing = [package for package in ("accelerate", TRACKERS[name]) if importlib.util.find_spec(package) is None]
        if missing:
            hint = f"pip install {' '.join(missing)}, or leave it away: --set 'train.trackers=[]'"
            text = f"train.trackers: {name} needs {' and '.join(missing)}, not installed here"
            problems.append(Problem(code="MV605", text=text, hint=hint))
    if problems:
        raise MedvlpError(*problems)


class RunTrackers:
    """All trackers of a run: an observer, and ``line`` for the metrics file. A context manager that closes them.

    A tracker that fails later than its start is dropped from then on, with a warning: a server that is away for an hour must not
    end a run of two weeks.
    """

    def __init__(self, plan: ModelPlan, folder: Path, console: Console, resume: Resume | None) -> None:
        self._plan, self._folder, self._console, self._resume = plan, folder, console, resume
        self._trackers: dict[str, Any] = {}
        self._step: int | None = None
        self._is_unused = False

    def start(self) -> None:
        """Start them all, in the main process.

        Raises:
            MedvlpError: one cannot start (MV605).
        """
        if not is_main():
            return
        self._is_unused = self._resume is None
        path = self._folder / IDS
        ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name in self._plan.train.trackers:
            try:
                self._trackers[name] = start_tracker(name, self._plan, self._folder, ids.get(name), self._resume)
                if name not in ids:  # it gets the recipe once
                    self._trackers[name].store_init_configuration(settings_of(self._plan.resolved()))
            except Exception as error:
                text = f"train.trackers: {name} cannot start: {describe_error(error)}"
                hint = "see to its settings, or leave it away: --set 'train.trackers=[]'"
                raise MedvlpError(Problem(code="MV605", text=text, hint=hint)) from error
        if self._trackers:
            ids |= {name: run_id_of(name, tracker) for name, tracker in self._trackers.items()}
            write_at_once(path, json.dumps(ids) + "\n")

    def line(self, line: Mapping[str, Any]) -> None:
        """Take a line of ``metrics.jsonl``."""
        self._step, self._is_unused = int(line["step"]), False
        self._log(numbers_of(line), self._step)

    def __call__(self, event: Event) -> None:
        """Take what is no line: the loss on the split ``val``, and the held-out check."""
        if isinstance(event, CheckpointSaved) and event.validation is not None:
            self._log({"validation": event.validation}, event.step)
        elif isinstance(event, Evaluated):
            rows = {f"evaluation/{event.card.evaluator}/{row.metric}": row.value for row in event.card.rows}
            self._log(rows, self._step)

    def __enter__(self) -> RunTrackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in list(self._trackers):
            self._call(name, "finish")
        if self._is_unused:  # so the run folder may be taken away again
            for name in self._plan.train.trackers:
                shutil.rmtree(self._folder / name, ignore_errors=True)
            (self._folder / IDS).unlink(missing_ok=True)

    def _log(self, values: dict[str, float], step: int | None) -> None:
        for name in list(self._trackers):
            self._call(name, "log", values, step=step)

    def _call(self, name: str, method: str, *arguments: Any, **options: Any) -> None:
        try:
            getattr(self._trackers[name], method)(*arguments, **options)
        except Exception as error:
            del self._trackers[name]
            warn(self._console, f"the tracker {name} gets no more numbers: {describe_error(error)}; metrics.jsonl has them all")


def start_tracker(name: str, plan: ModelPlan, folder: Path, run_id: str | None, resume: Resume | None) -> Any:
    """One of accelerate's trackers, started."""
    from accelerate import PartialState, tracking

    # The log of accelerate asks for its state. Beside a process group that exists, making it exchanges nothing.
    PartialState()
    tracker: Any
    if name == "tensorboard":
        # Steps of a killed run that are taken again are masked.
        again = resume.step + 1 if resume is not None else None
        tracker = tracking.TensorBoardTracker(name, logging_dir=folder, purge_step=again)
    elif name == "wandb":
        tracker = tracking.WandBTracker(plan.name, name=folder.name, dir=str(folder), id=run_id, resume="allow")
    else:
        tracker = tracking.MLflowTracker(plan.name, run_name=folder.name, run_id=run_id)
    tracker.start()
    return tracker


def run_id_of(name: str, tracker: Any) -> str | None:
    """The id under which a tracker's server knows the run; TensorBoard has files in the run folder instead."""
    if name == "wandb":
        return str(tracker.tracker.id)
    return str(tracker.tracker.info.run_id) if name == "mlflow" else None


def numbers_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a line by flat names, without its step.

    Example:
        >>> numbers_of({"step": 3, "lr": 0.1, "losses": {"gla.global": 2.0}, "memory_mb": None})
        {'lr': 0.1, 'losses/gla.global': 2.0}
    """
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= numbers_of(value, f"{prefix}{name}/")
        elif value is not None and f"{prefix}{name}" != "step":
            found[f"{prefix}{name}"] = value
    return found


def settings_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe as flat names and plain values, as all trackers take them.

    Example:
        >>> settings_of({"train": {"steps": 3, "betas": [0.9, 0.95], "epochs": None}})
        {'train.steps': 3, 'train.betas': '[0.9, 0.95]', 'train.epochs': 'None'}
    """
    return {path: value if isinstance(value, (bool, int, float, str)) else str(value) for path, value in leaves(document)}
