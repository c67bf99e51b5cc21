"""Runs the evaluators of a plan on a trained model."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from medvlp_core.errors import MedvlpError
from medvlp_core.evaluation.protocol import Card, EvaluationRun, Evaluator
from medvlp_core.model.build import build_component
from medvlp_core.planning.fields import input_plan
from medvlp_core.planning.plan import ModelPlan, SkippedEvaluator
from medvlp_core.planning.wiring import PlannedComponent, PortKey
from medvlp_core.runtime.files import write_at_once
from medvlp_core.spec.contract import CLEAN

if TYPE_CHECKING:
    from medvlp_core.data.pipeline import InputPipeline


def narrowed_run(run: EvaluationRun, component: PlannedComponent) -> EvaluationRun:
    """The run as one evaluator sees it: its batches hold, and its records have, what the ports that it needs come from.

    An evaluator that needs no port sees the records that training counts.
    """
    needs = component.calls["forward"].needs
    if not needs:
        return attrs.evolve(run, evaluator=component.path)
    wiring = run.plan.wiring
    found = (wiring.source(component, argument, need, CLEAN) for argument, need in needs.items())
    keys = [key for key in found if isinstance(key, PortKey)]
    if not keys:
        return attrs.evolve(run, evaluator=component.path)
    taken = [key for call in wiring.route(keys) for _, key in call.takes]
    return attrs.evolve(run, evaluator=component.path, pipeline=run.pipeline.narrowed(input_plan(wiring, [*keys, *taken])))


def find_obstacles(plan: ModelPlan, pipeline: InputPipeline, split: str) -> tuple[SkippedEvaluator, ...]:
    """The evaluators that cannot work on this data, each with its reason. Asked before anything is trained."""
    found = []
    for component in plan.evaluators.values():
        evaluator: Evaluator = build_component(plan, component)
        if (reason := evaluator.obstacle(pipeline, split)) is not None:
            found.append(SkippedEvaluator(component.path, component.name, reason))
    return tuple(found)


def by_reason(skipped: Iterable[SkippedEvaluator]) -> list[tuple[str, str]]:
    """``(names, reason)``: evaluators with the same reason are said together."""
    names: dict[str, list[str]] = {}
    for one in skipped:
        names.setdefault(one.reason, []).append(one.path)
    return [(", ".join(paths), reason) for reason, paths in names.items()]


def evaluate_all(
    run: EvaluationRun, skipped: Iterable[SkippedEvaluator] = (), *, on_done: Callable[[Card, float], None]
) -> tuple[Card, ...]:
    """One card for each evaluator that applies, in the recipe's order; ``on_done(card, seconds)`` follows each.

    Those in ``skipped`` (see :func:`find_obstacles`) do not run. An evaluator that fails all the same gives a card with its
    problem; the others still run. The model's mode and torch's random state are put back.
    """
    cards = []
    paths = {one.path for one in skipped}
    run.folder.mkdir(parents=True, exist_ok=True)
    was_training = run.model.training
    run.model.eval()
    try:
        for slot, component in run.plan.evaluators.items():
            if component.path in paths:
                continue
            started = time.perf_counter()
            evaluator: Evaluator = build_component(run.plan, component)
            try:
                with torch.random.fork_rng(), torch.no_grad():
                    card = attrs.evolve(evaluator.evaluate(narrowed_run(run, component)), evaluator=slot)
            except MedvlpError as error:
                card = Card(evaluator=slot, problem=str(error))
            except Exception as error:  # a fault of one evaluator must not cost the results of the others
                where = traceback.extract_tb(error.__traceback__)[-1]
                problem = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                card = Card(evaluator=slot, problem=problem)
            cards.append(card)
            on_done(card, time.perf_counter() - started)
    finally:
        run.model.train(was_training)
    return tuple(cards)


def write_cards(path: Path, run: EvaluationRun, cards: tuple[Card, ...], skipped: Iterable[SkippedEvaluator] = ()) -> None:
    """Save the cards and what was skipped as JSON."""
    absent = (*run.plan.skipped, *skipped)
    document: dict[str, Any] = {
        "split": run.split,
        "results": [card.as_json() for card in cards],
        "skipped": [{"evaluator": one.path, "component": one.name, "reason": one.reason} for one in absent],
    }
    write_at_once(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
