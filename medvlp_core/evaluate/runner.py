"""Runs the evaluators of a plan on a trained model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch

from medvlp_core.build import build_component
from medvlp_core.errors import MedvlpError
from medvlp_core.evaluate.protocol import Card, EvaluationRun
from medvlp_core.interfaces import Evaluator


def evaluate_all(run: EvaluationRun, *, on_done: Callable[[Card, float], None]) -> tuple[Card, ...]:
    """One card for each evaluator that applies, in the recipe's order; ``on_done(card, seconds)`` follows each.

    An evaluator that cannot answer (a label that nobody has) gives a card with its problem; the others still run. The model's
    mode and torch's random state are put back.
    """
    cards = []
    run.folder.mkdir(parents=True, exist_ok=True)
    was_training = run.model.training
    run.model.eval()
    try:
        for slot, component in run.plan.evaluators.items():
            started = time.perf_counter()
            evaluator: Evaluator = build_component(run.plan, component)
            try:
                with torch.random.fork_rng(), torch.no_grad():
                    card = attrs.evolve(evaluator.evaluate(run), evaluator=slot)
            except MedvlpError as error:
                card = Card(evaluator=slot, problem=str(error))
            cards.append(card)
            on_done(card, time.perf_counter() - started)
    finally:
        run.model.train(was_training)
    return tuple(cards)


def write_cards(path: Path, run: EvaluationRun, cards: tuple[Card, ...]) -> None:
    """Save the cards and what was skipped as JSON."""
    document: dict[str, Any] = {
        "split": run.split,
        "results": [card.as_json() for card in cards],
        "skipped": [{"evaluator": one.path, "component": one.name, "reason": one.reason} for one in run.plan.skipped],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
