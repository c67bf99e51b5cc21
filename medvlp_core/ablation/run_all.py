"""Trains what an ablation asks for, one run after the other. Imports torch."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from rich.console import Console

import medvlp_core
from medvlp_core.ablation.ablation_folder import (
    Outcome,
    check_same,
    clear,
    is_ablation,
    is_done,
    manifest,
    read_outcome,
    write_manifest,
    write_outcome,
)
from medvlp_core.ablation.grid import Ablation, Run, with_places
from medvlp_core.errors import Diagnostics, MedvlpError
from medvlp_core.model.build import build_source
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.runtime.device import autocast, choose_device
from medvlp_core.training.loop import NOT_FINITE, check_length
from medvlp_core.training.resume import read_resume
from medvlp_core.training.run_folder import make_run_folder
from medvlp_core.training.trainer import pretrain, resume


def open_ablation(ablation: Ablation, *, out: str | None, device: str | None) -> Path:
    """The folder to work in: new, or with the same ablation begun. Nothing is written if a run could not start.

    Raises:
        SpecError: the device does not exist; or it, or the data, does not do for a combination (MV104, MV105, MV5xx).
        DataError: the folder holds something else, or another ablation (MV508).
    """
    where = str(choose_device(device))
    check_start(ablation, where)
    asked = manifest(ablation, device=where, versions={"medvlp": medvlp_core.__version__, "torch": torch.__version__})
    if out and is_ablation(Path(out)):
        check_same(Path(out), asked)
        return Path(out)
    folder = make_run_folder(out, f"ablation-{ablation.name}")
    write_manifest(folder, asked)
    return folder


def check_start(ablation: Ablation, device: str) -> None:
    """What can be known of the machine and the data before anything runs, for all combinations.

    Raises:
        SpecError: with every problem, and the combinations that it was found in.
    """
    diagnostics = Diagnostics()
    found = [_obstacles(next(iter(one.plans.values())), device) for one in ablation.combinations]
    diagnostics.problems += with_places([one.label for one in ablation.combinations], found)
    diagnostics.raise_errors()


def _obstacles(plan: ModelPlan, device: str) -> Diagnostics:
    diagnostics = Diagnostics()
    for check in (
        lambda: autocast(choose_device(device), plan.train.precision),
        lambda: check_length(plan.train),
        lambda: build_source(plan),
    ):
        try:
            check()
        except MedvlpError as error:
            diagnostics.problems += error.problems
    return diagnostics


def run_all(ablation: Ablation, folder: Path, *, device: str | None, console: Console) -> None:
    """Do every run that is not done yet. One that fails is noted in its folder and keeps no other from running."""
    runs = ablation.runs()
    for number, run in enumerate(runs, start=1):
        head = f"run {number} of {len(runs)}: {run.label}"
        if is_done(folder / run.folder):
            console.print(f"{head}: done before", style="dim", markup=False, highlight=False, soft_wrap=True)
            continue
        console.print(f"\n{head}", style="bold", markup=False, highlight=False, soft_wrap=True)
        outcome = train_one(run, folder / run.folder, device=device, console=console)
        if outcome.status != "finished":
            console.print(f"{outcome.status}: {outcome.reasons[0]}", style="red", markup=False, highlight=False, soft_wrap=True)
        write_outcome(folder / run.folder, outcome)


def was_killed(folder: Path) -> bool:
    """Whether there is a run that did not end and has a checkpoint to resume from."""
    if read_outcome(folder) is not None:
        return False
    try:
        return read_resume(folder).checkpoint is not None
    except MedvlpError:
        return False


def train_one(run: Run, folder: Path, *, device: str | None, console: Console) -> Outcome:
    """Train and evaluate one combination with one seed, as ``medvlp pretrain`` does; one that was killed is resumed."""
    try:
        if was_killed(folder):
            result = resume(folder, device=device, console=console)
        else:
            clear(folder)
            result = pretrain(run.plan, out=folder, device=device, console=console)
    except MedvlpError as error:
        has_diverged = any(problem.code == NOT_FINITE for problem in error.problems)
        return Outcome(status="diverged" if has_diverged else "failed", reasons=(str(error),))
    except Exception as error:  # out of memory, or a fault of one component: the other combinations may do all the same
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(status="failed", reasons=(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})",))
    assert result is not None, "a single process gives a result"
    return Outcome(status="finished", reasons=result.problems)
