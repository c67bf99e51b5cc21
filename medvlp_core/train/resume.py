"""Going on with a run that was stopped or killed: from its newest checkpoint, to the same bits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import torch

import medvlp_core
from medvlp_core.compose import plan_recipe
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.distributed import launched_processes
from medvlp_core.errors import DataError, Problem
from medvlp_core.plan import ModelPlan
from medvlp_core.train.checkpoint import FACTS, TOKENIZER, check_files, list_checkpoints, read_progress, set_aside
from medvlp_core.train.folder import CHECKPOINTS, EVALUATION, RECIPE


@attrs.frozen(kw_only=True)
class Resume:
    """Where a run goes on: its folder and the checkpoint, None if it was killed before the first one was written."""

    folder: Path
    plan: ModelPlan
    checkpoint: Path | None
    facts: dict[str, Any]
    progress: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps that are done."""
        return int(self.facts.get("step", 0))

    @property
    def tokenizer(self) -> Path | None:
        """The saved vocabulary; None means that it is learned again, from the same texts to the same result."""
        return self.checkpoint / TOKENIZER if self.checkpoint is not None else None

    def check(self, pipeline: InputPipeline) -> None:
        """Refuse what would not end in the same weights.

        Raises:
            DataError: other data, or another number of processes (MV508).
        """
        problems = []
        if self.checkpoint is not None and self.facts["data"] != pipeline.source.fingerprint():
            text = f"{self.folder}: the data are not those of the run: ids, texts, labels or splits have changed"
            problems.append(Problem(code="MV508", text=text, hint="restore the data, or start a new run"))
        processes = launched_processes()
        if self.checkpoint is not None and self.facts["processes"] != processes:
            text = f"{self.folder}: the run has {self.facts['processes']} training processes, and {processes} would go on"
            details = ("masks and dropout are drawn for each process, so another number would not give the same weights",)
            hint = f"start {self.facts['processes']} processes"
            problems.append(Problem(code="MV508", text=text, details=details, hint=hint))
        if problems:
            raise DataError(*problems)

    def changes(self, device: torch.device) -> list[str]:
        """What is not as it was when the checkpoint was written, and may change how numbers are rounded."""
        if self.checkpoint is None:
            return []
        here = {"device": device.type, "medvlp": medvlp_core.__version__, "torch": torch.__version__}
        before = {"device": self.facts["device"], **self.facts["versions"]}
        return [f"the run began with {key} {before[key]} and goes on with {here[key]}" for key in here if here[key] != before[key]]


def read_resume(run: str | Path) -> Resume:
    """Find out where a run (its folder, or one of its checkpoints) goes on. Reads and checks files, and builds nothing.

    Raises:
        DataError: no run, or one that is finished (MV508); the checkpoint is damaged (MV507).
        SpecError: its recipe cannot be planned here.
    """
    given = Path(run)
    is_checkpoint = (given / FACTS).is_file() or given.absolute().parent.name == CHECKPOINTS
    folder = Path(os.path.normpath(given / "../..")) if is_checkpoint else given
    if not (folder / RECIPE).is_file():
        hint = "give the folder of a run, such as runs/mpma_small-20260101-120000"
        raise DataError(Problem(code="MV508", text=f"{run}: there is no run to go on with: {RECIPE} is missing", hint=hint))
    if (folder / EVALUATION).is_file() and not is_checkpoint:
        hint = "to train longer, start a new run with init_from; to repeat the end, give one of its checkpoints"
        raise DataError(Problem(code="MV508", text=f"{folder}: the run is finished", hint=hint))
    found = list_checkpoints(folder)
    checkpoint = given if is_checkpoint else next(iter(reversed(found)), None)
    facts: dict[str, Any] = {}
    progress: dict[str, Any] = {}
    if checkpoint is not None:
        facts = _checked(checkpoint, found)
        progress = read_progress(checkpoint)
        if (checkpoint / RECIPE).read_bytes() != (folder / RECIPE).read_bytes():
            text = f"{folder / RECIPE}: the recipe was changed after the run began"
            hint = f"put {checkpoint / RECIPE} back in its place, or start a new run with the changed recipe"
            raise DataError(Problem(code="MV508", text=text, hint=hint))
    plan = attrs.evolve(plan_recipe(folder / RECIPE), name=facts.get("name", folder.name))
    return Resume(folder=folder, plan=plan, checkpoint=checkpoint, facts=facts, progress=progress)


def _checked(checkpoint: Path, found: list[Path]) -> dict[str, Any]:
    try:
        return check_files(checkpoint)
    except DataError as error:
        earlier = [path for path in found if path.name < checkpoint.name]
        if not earlier:
            raise
        hint = f"go on from the checkpoint before it: medvlp pretrain --resume {earlier[-1]}"
        raise DataError(*(attrs.evolve(problem, hint=hint) for problem in error.problems)) from error


def set_aside_later(resume: Resume) -> None:
    """Take what is newer than the checkpoint to go on from out of the way: the run will write it anew."""
    for path in list_checkpoints(resume.folder):
        if resume.checkpoint is not None and path.name > resume.checkpoint.name:
            set_aside(path)
    (resume.folder / EVALUATION).unlink(missing_ok=True)
