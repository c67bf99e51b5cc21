"""Resuming a run that was stopped or killed: from its newest checkpoint, to the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import attrs

from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.errors import DataError, Problem, SpecError
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import load_plugins
from medvlp_core.recipe.diff import differences
from medvlp_core.recipe.load import Override
from medvlp_core.runtime.distributed import launched_processes
from medvlp_core.spec.pretrained import skip_pretrained_init
from medvlp_core.training.checkpoint import (
    METADATA,
    TOKENIZER,
    check_files,
    checkpoint_name,
    list_checkpoints,
    read_progress,
    set_aside,
)
from medvlp_core.training.metrics_file import read_metrics
from medvlp_core.training.run_folder import CHECKPOINTS, EVALUATION, METRICS, RECIPE, read_start, resume_command

#: Settings that may be others when a run is resumed: they change nothing in what it learns. Of the data, ids, texts, labels and
#: splits must be the same.
CHANGEABLE = (
    "data",
    "evaluators",
    "train.activation_checkpointing",
    "train.num_workers",
    "train.log_every_steps",
    "train.trackers",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.max_bad_steps",
)


@attrs.frozen(kw_only=True)
class Resume:
    """Where a run is resumed: its folder and the checkpoint, None if it was killed before the first one was written.

    ``metadata``: what the checkpoint, or else the run folder since its start, says of data, processes and machine.
    ``data_changes``: what the recipe says of the data in another way than before.
    """

    folder: Path
    plan: ModelPlan
    checkpoint: Path | None
    metadata: dict[str, Any]
    progress: dict[str, Any]
    data_changes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Optimiser steps that are done."""
        return int(self.metadata.get("step", 0))

    @property
    def tokenizer(self) -> Path | None:
        """The saved vocabulary; None means that it is learned again, from the same texts to the same result."""
        return self.checkpoint / TOKENIZER if self.checkpoint is not None else None

    def skip_initial_weights(self) -> AbstractContextManager[None]:
        """Build the model in this context: a checkpoint replaces all weights, so files that the run began with may be gone."""
        return _skip_initial_weights(self.checkpoint)

    def check_compatible(self, pipeline: InputPipeline) -> None:
        """Refuse what would not end in the same weights.

        Raises:
            DataError: other data, or another number of processes (MV508).
        """
        problems = []
        if self.metadata["data"] != pipeline.source.fingerprint():
            text = f"{self.folder}: the data are not those of the run: ids, texts, labels or splits have changed"
            problems.append(Problem(code="MV508", text=text, hint="restore the data, or start a new run"))
        before, here = self.metadata["processes"], launched_processes()
        if before != here:
            text = f"{self.folder}: the run has {_processes(before)}, and {here} would resume it"
            details = ("masks and dropout are drawn for each process, so another number would not give the same weights",)
            hint = f"resume with: {resume_command(self.folder, before)}"
            problems.append(Problem(code="MV508", text=text, details=details, hint=hint))
        if problems:
            raise DataError(*problems)

    def missing_lines(self) -> int:
        """How many lines of ``metrics.jsonl`` up to here are not there any more."""
        if not self.progress:
            return 0
        saved = self.progress["metrics"]
        lines = [line for line in read_metrics(self.folder / METRICS) if line["step"] <= saved["last_line"]]
        missing: int = max(0, saved["lines"] - len(lines))
        return missing

    def environment_changes(self, machine: dict[str, Any]) -> Iterator[str]:
        """What is not as it was when the run began, and may change how numbers are rounded. ``machine``: what it is now."""
        for name, before, now in differences(self.metadata["machine"], machine):
            yield f"{name} was {before} and is {now}"


def _processes(count: int) -> str:
    return f"{count} training process{'' if count == 1 else 'es'}"


def find_run(run: str | Path) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint if ``run`` is one.

    Raises:
        DataError: there is no run (MV508).
    """
    given = Path(run)
    is_checkpoint = (given / METADATA).is_file() or given.absolute().parent.name == CHECKPOINTS
    folder = Path(os.path.normpath(given / "../..")) if is_checkpoint else given
    if (folder / RECIPE).is_file():
        return folder, given if is_checkpoint else None
    text = f"there is no run to resume with: {RECIPE} is missing"
    hint = "give the folder of a run, such as runs/mpma_small-20260101-120000"
    if given.is_file():
        text = "this is a file, and no run to resume"
    elif given.name == CHECKPOINTS and (given.parent / RECIPE).is_file():
        text, hint = "this is the folder of all checkpoints", f"give the run, {given.parent}, or one of its checkpoints"
    elif (given / METADATA).is_file():
        text, hint = "this checkpoint lies in no run folder", "begin a new run from it, with init_from"
    raise DataError(Problem(code="MV508", text=f"{run}: {text}", hint=hint))


def read_resume(run: str | Path, overrides: Sequence[Override] = ()) -> Resume:
    """Find out where a run (its folder, or one of its checkpoints) is resumed. Reads and checks files, and builds nothing.

    ``overrides`` may change the settings in :data:`CHANGEABLE`.

    Raises:
        DataError: no run, one that is finished, or settings that may not change (MV508); the checkpoint is damaged (MV507).
        SpecError: its recipe cannot be planned here.
    """
    folder, chosen = find_run(run)
    if (folder / EVALUATION).is_file() and chosen is None:
        hint = "to train longer, start a new run with init_from; to repeat the end, give one of its checkpoints"
        raise DataError(Problem(code="MV508", text=f"{folder}: the run is finished", hint=hint))
    if not os.access(folder, os.W_OK | os.X_OK):
        hint = "make it writable, or resume a copy of the folder"
        raise DataError(Problem(code="MV508", text=f"{folder}: the run folder may not be written", hint=hint))
    found = list_checkpoints(folder)
    checkpoint = chosen or next(iter(reversed(found)), None)
    metadata = _checked(checkpoint, found) if checkpoint is not None else read_start(folder)
    progress = read_progress(checkpoint) if checkpoint is not None else {}
    with _skip_initial_weights(checkpoint):
        saved = plan_recipe((checkpoint or folder) / RECIPE, host=load_plugins())
        try:
            plan = attrs.evolve(plan_recipe(folder / RECIPE, overrides, host=load_plugins()), name=metadata["name"])
        except SpecError:
            # Where the changed recipe does not fit together, that it was changed comes first.
            _check_changes([(one.path, "as it is", one.kind) for one in overrides], folder)
            raise
    changes = list(differences(saved.resolved(), plan.resolved()))
    _check_changes(changes, folder)
    data_changes = tuple(f"{path} was {old} and is {new}" for path, old, new in changes if path.startswith("data."))
    return Resume(folder=folder, plan=plan, checkpoint=checkpoint, metadata=metadata, progress=progress, data_changes=data_changes)


def _skip_initial_weights(checkpoint: Path | None) -> AbstractContextManager[None]:
    return skip_pretrained_init() if checkpoint is not None else nullcontext()


def _checked(checkpoint: Path, found: list[Path]) -> dict[str, Any]:
    try:
        return check_files(checkpoint)
    except DataError as error:
        earlier = [path for path in found if path.name < checkpoint.resolve().name]
        hint = next(
            filter(None, map(_proposal, reversed(earlier))), "no earlier checkpoint of this run can be read: start a new run"
        )
        raise DataError(*(attrs.evolve(problem, hint=hint) for problem in error.problems)) from error


def _proposal(checkpoint: Path) -> str | None:
    """To resume from a checkpoint; None if it is damaged."""
    try:
        processes = check_files(checkpoint)["processes"]
    except DataError:
        return None
    return f"resume from an earlier checkpoint: {resume_command(checkpoint, processes)}"


def _check_changes(changes: Sequence[tuple[str, str, str]], folder: Path) -> None:
    details = tuple(
        f"{path}: {old} in the run, {new} now"
        for path, old, new in changes
        if not any(path == one or path.startswith(f"{one}.") for one in CHANGEABLE)
    )
    if details:
        text = f"{folder}: the recipe is not that of the run"
        free = f"{', '.join(CHANGEABLE[:-1])} and {CHANGEABLE[-1]}"
        hint = f"a resumed run may change {free}; for the rest start a new run, with init_from"
        raise DataError(Problem(code="MV508", text=text, details=details, hint=hint))


def set_aside_later(resume: Resume) -> list[str]:
    """Take what is newer than the checkpoint to resume from out of the way, for the run will write it anew; the names."""
    later = [path for path in list_checkpoints(resume.folder) if path.name > checkpoint_name(resume.step)]
    for path in later:
        set_aside(path)
    (resume.folder / EVALUATION).unlink(missing_ok=True)
    return [path.name for path in later]
