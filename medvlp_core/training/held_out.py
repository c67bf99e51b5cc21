"""The held-out check of a trained model: as a run ends, and whenever somebody asks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch

from medvlp_core.errors import DataError, Problem
from medvlp_core.evaluation.baseline import calibrate
from medvlp_core.evaluation.protocol import Card, EvaluationRun, held_out_split
from medvlp_core.evaluation.runner import evaluate_all, find_obstacles, write_cards
from medvlp_core.model.build import BuiltRun
from medvlp_core.model.composed import ComposedModel
from medvlp_core.runtime.device import choose_device
from medvlp_core.spec.roles import Role
from medvlp_core.training.checkpoint import METADATA, check_files, find_checkpoint, load_run
from medvlp_core.training.metrics_file import read_metrics
from medvlp_core.training.run_folder import CHECKPOINTS, EVALUATION, METRICS, translate_write_errors

PICTURES = "pictures"


def evaluate_run(
    run: str | Path, *, split: str | None = None, device: str | None = None, out: str | Path | None = None
) -> tuple[Card, ...]:
    """See :func:`medvlp_core.evaluate`."""
    checkpoint = find_checkpoint(Path(run))
    if out is not None:
        _check_unused(Path(out))
    where = choose_device(device)
    loaded = load_run(checkpoint, device=where)
    built = BuiltRun(plan=loaded.plan, pipeline=loaded.pipeline(), model=loaded.model)
    if split is not None:
        built.pipeline.records(split)  # says which splits there are, if this is none of them
    split = split or held_out_split(built.pipeline)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch if out is None else out)
        evaluation = evaluation_run(built, folder=folder, device=where, split=split, history=_history(checkpoint))
        skipped = find_obstacles(built.plan, built.pipeline, split)
        with translate_write_errors(folder):
            cards = evaluate_all(evaluation, skipped, on_done=lambda card, seconds: None)
            if out is not None:
                write_cards(folder / EVALUATION, evaluation, cards, skipped)
    if out is None:  # the pictures are gone
        cards = tuple(attrs.evolve(card, pictures=()) for card in cards)
    found = {card.evaluator: card for card in cards}
    for one in (*built.plan.skipped, *skipped):
        slot = built.plan.components[one.path].slot
        found[slot] = Card(evaluator=slot, problem=f"skipped: {one.reason}")
    return tuple(found[slot] for slot in built.plan.of_role(Role.EVALUATOR))


def _check_unused(out: Path) -> None:
    if (out / EVALUATION).exists() or (out / PICTURES).exists():
        text = f"{out}: there is an evaluation already, and none is overwritten"
        raise DataError(Problem(code="MV508", text=text, hint="give `out` another folder"))


def _history(checkpoint: Path) -> tuple[dict[str, Any], ...]:
    """The lines of metrics.jsonl up to a checkpoint; none if it lies in no run folder."""
    if checkpoint.absolute().parent.name != CHECKPOINTS:
        return ()
    step = check_files(checkpoint, METADATA)["step"]
    lines = read_metrics(Path(os.path.normpath(checkpoint / "../..")) / METRICS)
    return tuple(line for line in lines if line["step"] <= step)


def evaluation_run(
    built: BuiltRun,
    *,
    folder: Path,
    device: torch.device,
    split: str | None = None,
    history: Sequence[dict[str, Any]] | None = None,
) -> EvaluationRun:
    """What evaluators get: the model on a split, and a fresh model with another seed for baselines.

    ``folder`` takes the pictures. By default the split is the held-out one, and the history that in the folder's metrics.jsonl.
    """
    seed = built.plan.train.seed
    return EvaluationRun(
        model=built.model.to(device),
        plan=built.plan,
        pipeline=built.pipeline,
        device=device,
        seed=seed,
        folder=folder / PICTURES,
        split=split or held_out_split(built.pipeline),
        history=tuple(read_metrics(folder / METRICS) if history is None else history),
        # One model serves all evaluators: building and calibrating it takes a pass over the training images.
        fresh_model=cache(lambda: untrained_model(built, seed=seed + 1, device=device)),
    )


def untrained_model(built: BuiltRun, *, seed: int, device: torch.device) -> ComposedModel:
    """A baseline: the same architecture with random weights, its batch norms calibrated on the training images."""
    batches = built.pipeline.loader("train", batch_size=64)
    return calibrate(built.fresh_model(seed).to(device), batches, device)
