"""Conformance of evaluators: asked before training, honest about what they measure, without a trace in model and random state."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from medvlp_core.errors import MedvlpError
from medvlp_core.evaluation.protocol import Card, EvaluationRun, Evaluator, Row
from medvlp_core.model.build import build_component
from medvlp_core.model.composed import ComposedModel
from medvlp_core.spec.roles import Role
from medvlp_core.testing.behaviour_checks import difference
from medvlp_core.testing.checks import NotApplicable, check, expect
from medvlp_core.testing.subject import Example, Subject
from medvlp_core.testing.whole_model import CPU, trained_models
from medvlp_core.training.held_out import evaluation_run

NO_SPLIT = "no_such_split"
UNUSUAL_SEED = 987_654_321
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def evaluations(subject: Subject) -> Iterator[tuple[Example, Evaluator, EvaluationRun]]:
    """Every example that applies to a model of the kit's stub components, with what it evaluates.

    Raises:
        NotApplicable: none does.
    """
    reasons = []
    for trained in trained_models(subject):
        run = evaluation_run(trained.built, folder=trained.folder, device=CPU)
        run.folder.mkdir()
        run.model.eval()
        evaluators = trained.plan.of_role(Role.EVALUATOR)
        reasons += [one.reason for one in trained.plan.skipped]
        if trained.plan.skipped:
            continue
        (component,) = evaluators.values()
        evaluator: Evaluator = build_component(trained.plan, component)
        obstacle = _obstacle(evaluator, run)
        if obstacle is None:
            yield trained.example, evaluator, run
        else:
            reasons.append(obstacle)
    if len(reasons) == len(subject.examples):
        raise NotApplicable(f"it cannot look at a model of the kit's stub components: {reasons[0]}")


def _obstacle(evaluator: Evaluator, run: EvaluationRun) -> str | None:
    try:
        return evaluator.obstacle(run.pipeline, run.split)
    except Exception as error:
        raise NotApplicable("obstacle() fails; finds_obstacles_without_images says why") from error


def evaluate(example: Example, evaluator: Evaluator, run: EvaluationRun) -> Card:
    """The card of one evaluation, without gradients as ``medvlp pretrain`` does it.

    Raises:
        NotApplicable: there is none.
    """
    try:
        with torch.no_grad():
            return evaluator.evaluate(run)
    except Exception as error:
        raise NotApplicable(f"{example} fails; trains_in_a_model says why") from error


@check("evaluator", roles=(Role.EVALUATOR,))
def finds_obstacles_without_images(subject: Subject) -> None:
    """``obstacle`` gives None or a reason, for a split that does not exist too, and opens no image: it is asked before training."""
    for trained in trained_models(subject):
        example, pipeline = trained.example, trained.built.pipeline
        run = evaluation_run(trained.built, folder=trained.folder, device=CPU)
        for component in trained.plan.evaluators.values():
            evaluator: Evaluator = build_component(trained.plan, component)
            for split in (run.split, NO_SPLIT):
                with mock.patch.object(Image, "open", wraps=Image.open) as opened:
                    try:
                        reason = evaluator.obstacle(pipeline, split)
                    except MedvlpError as error:
                        expect(False, f"{example}: for the split {split!r} obstacle() raised {error}; expected a reason as text")
                expect(not opened.called, f"{example}: obstacle() opened {opened.call_count} images")
                is_reason = reason is None or (isinstance(reason, str) and bool(reason.strip()))
                expect(is_reason, f"{example}: obstacle() gave {reason!r}, expected None or a reason")


@contextmanager
def _unchanged(example: Example, model: ComposedModel, name: str) -> Iterator[None]:
    """Compare a model before and after: weights, buffers, modes, what is trained, gradients."""
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [one.requires_grad for one in model.parameters()]
    yield
    unequal = difference(weights, model.state_dict())
    expect(unequal is None, f"{example}: evaluate() changed the {name}: {unequal}")
    expect(modes == [module.training for module in model.modules()], f"{example}: evaluate() left the {name} in another mode")
    is_same = flags == [one.requires_grad for one in model.parameters()]
    expect(is_same, f"{example}: evaluate() left other parameters of the {name} to be trained")


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _random_states() -> dict[str, Any]:
    kind, numbers, *rest = np.random.get_state(legacy=True)
    return {"torch": torch.get_rng_state().tolist(), "numpy": (kind, list(numbers), *rest), "python": random.getstate()}


@check("evaluator", roles=(Role.EVALUATOR,))
def leaves_no_trace(subject: Subject) -> None:
    """Evaluating changes nothing: the model, the fresh model of all evaluators, and the random state of torch, numpy and python."""
    for example, evaluator, run in evaluations(subject):
        for parameter in run.model.parameters():
            parameter.grad = None
        fresh = run.fresh_model()
        _seed(UNUSUAL_SEED)  # so that an evaluator that sets a seed of its own is found
        before = _random_states()
        with _unchanged(example, run.model, "model"), _unchanged(example, fresh, "fresh model"):
            evaluate(example, evaluator, run)
        after = _random_states()
        moved = [name for name, state in before.items() if state != after[name]]
        expect(not moved, f"{example}: evaluate() leaves another random state of {', '.join(moved)}")
        given = [name for name, one in run.model.named_parameters() if one.grad is not None]
        expect(not given, f"{example}: evaluate() leaves gradients at {', '.join(given[:3])}")


@check("evaluator", roles=(Role.EVALUATOR,))
def gives_sound_rows(subject: Subject) -> None:
    """A card has rows, pictures or a note; each row has a name of its own, a count, a baseline, and numbers that are finite."""
    for example, evaluator, run in evaluations(subject):
        card = evaluate(example, evaluator, run)
        expect(isinstance(card, Card), f"{example}: evaluate() gave {type(card).__name__}, expected a Card")
        is_empty = not (card.rows or card.pictures or card.note)
        expect(not is_empty, f"{example}: the card has no row, no picture and no note")
        names = [row.metric for row in card.rows]
        expect(len(set(names)) == len(names), f"{example}: two rows have the same name: {', '.join(names)}")
        for row in card.rows:
            _expect_sound(example, row, note=row.note or card.note)


def _expect_sound(example: Example, row: Row, note: str | None) -> None:
    who = f"{example}: the row {row.metric!r}"
    expect(bool(row.baselines), f"{who} has no baseline: a number says little without what a model that learned nothing reaches")
    expect(row.count >= 1, f"{who} has the count {row.count}, expected the number of items behind it")
    numbers = {"value": row.value, **row.baselines}
    unknown = [name for name, number in numbers.items() if not math.isfinite(number)]
    expect(not unknown or note is not None, f"{who}: {', '.join(unknown)} is not finite, and no note says why")
    others = sorted(set(row.gain_intervals) - set(row.baselines))
    expect(not others, f"{who} has intervals of the gain over {', '.join(others)}, which is no baseline of it")
    for name, interval in {"interval": row.interval, **row.gain_intervals}.items():
        is_sound = interval is None or interval[0] <= interval[1]
        expect(is_sound, f"{who}: the interval {name!r} is {interval}, expected the lower end first and finite numbers, or None")


@check("evaluator", roles=(Role.EVALUATOR,))
def writes_its_pictures(subject: Subject) -> None:
    """Every picture that the card names lies in the folder of the run and can be opened."""
    for example, evaluator, run in evaluations(subject):
        for name in evaluate(example, evaluator, run).pictures:
            path = run.folder / name
            expect(path.parent == run.folder, f"{example}: the picture {name!r} is no plain file name")
            expect(path.is_file(), f"{example}: the card names the picture {name!r}, and there is no such file")
            if path.suffix.lower() in PICTURES:
                try:
                    with Image.open(path) as picture:
                        picture.load()
                except (OSError, SyntaxError) as error:
                    expect(False, f"{example}: the picture {name!r} cannot be opened: {error}")


@check("evaluator", roles=(Role.EVALUATOR,))
def repeats_its_numbers(subject: Subject) -> None:
    """Evaluated twice with one seed, whatever the random state is, the rows are the same."""
    for example, evaluator, run in evaluations(subject):
        found = []
        for seed in (1, 2):
            _seed(seed)
            found.append(evaluate(example, evaluator, run).as_json()["rows"])
        for first, second in zip(*found, strict=False):
            name = first["metric"]
            expect(first == second, f"{example}: the row {name!r} is {first['value']}, and {second['value']} the second time")
        expect(len(found[0]) == len(found[1]), f"{example}: {len(found[0])} rows, and {len(found[1])} the second time")
