"""Conformance of a component in a whole model: planned by the composer, trained by the loop, saved, loaded and planned again."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from medvlp_core.data.pipeline import Collate
from medvlp_core.data.tokenizer import Tokenizer
from medvlp_core.errors import MedvlpError
from medvlp_core.evaluation.runner import evaluate_all, find_obstacles
from medvlp_core.model.between_steps import PartFailed
from medvlp_core.model.build import build_model, build_tokenizer
from medvlp_core.model.composed import ComposedModel
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.spec.roles import Role
from medvlp_core.testing.behaviour_checks import difference
from medvlp_core.testing.checks import MODULE_ROLES, CheckFailed, NotApplicable, check, expect
from medvlp_core.testing.subject import Subject
from medvlp_core.testing.whole_model import (
    CPU,
    PAIRS,
    STEPS,
    TESTED,
    Trained,
    host_with_stubs,
    plan_model,
    scratch_folder,
    train_model,
    trained_models,
    without_places,
)
from medvlp_core.training.checkpoint import TOKENIZER, WEIGHTS, load_weights, save_checkpoint
from medvlp_core.training.held_out import evaluation_run
from medvlp_core.training.run_folder import RECIPE


@check("learning")
def trains_in_a_model(subject: Subject) -> None:
    """With the kit's stub components beside it, it is planned, built and trained for two steps; an evaluator gives its card."""
    host = host_with_stubs(subject)
    for example in subject.examples:
        with scratch_folder() as folder:
            plan = plan_model(example, host, folder)
            try:
                trained = train_model(example, plan, folder)
            except PartFailed as error:  # as other checks meet it, so that one fault is said once
                raise (error.__cause__ or error) from None
            except MedvlpError as error:
                raise CheckFailed(f"{example}: {without_places(error)}") from error
            expect(len(trained.steps) == STEPS, f"{example}: {len(trained.steps)} steps were made, expected {STEPS}")
            for step in trained.steps:
                found, declared = sorted(step.losses), sorted(plan.losses)
                expect(found == declared, f"{example}: step {step.step} gave the losses {found}, expected {declared}")
                wild = [name for name, value in step.losses.items() if not math.isfinite(value)]
                expect(not wild, f"{example}: in step {step.step} {', '.join(wild)} is not finite")
            if subject.role is Role.EVALUATOR:
                _expect_card(trained)


def _expect_card(trained: Trained) -> None:
    """The evaluator applies to the model and the data, and gives a result."""
    run = evaluation_run(trained.built, folder=trained.folder, device=CPU)
    unable = [*trained.plan.skipped, *find_obstacles(trained.plan, trained.built.pipeline, run.split)]
    if unable:
        raise NotApplicable(f"{trained.example} cannot look at a model of the kit's stub components: {unable[0].reason}")
    (card,) = evaluate_all(run, on_done=lambda card, seconds: None)
    expect(card.problem is None, f"{trained.example}: it failed on a model of the kit's stub components: {card.problem}")
    expect(card.evaluator == TESTED, f"{trained.example}: its card is that of {card.evaluator!r}")


@check("learning", roles=(*MODULE_ROLES, Role.TOKENIZER))
def reloads_from_a_checkpoint(subject: Subject) -> None:
    """Saved after two steps and loaded again, the model gives the same losses and predictions, the tokenizer the same ids."""
    for trained in trained_models(subject):
        built, folder = trained.built, trained.folder / "checkpoint"
        tokenizer = built.pipeline.tokenizer
        save_checkpoint(folder, plan=trained.plan, state=trained.state, tokenizer=tokenizer, metadata={}, progress={})
        plan = _plan_again(trained.plan, folder / RECIPE)
        loaded = build_tokenizer(plan, folder=folder / TOKENIZER)
        model = build_model(plan, seed=1)  # other weights than those that must come back
        load_weights(model, folder / WEIGHTS)
        unequal = difference(_outputs(trained, built.model, tokenizer), _outputs(trained, model, loaded))
        expect(unequal is None, f"{trained.example}: in the model that was saved and in the one that was loaded {unequal}")


def _plan_again(plan: ModelPlan, path: Path) -> ModelPlan:
    return plan_recipe(path, host=plan.host)


def _outputs(trained: Trained, model: ComposedModel, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Ids, losses and predictions of a few training pairs, with masks from a fixed seed."""
    dataset = trained.built.pipeline.dataset("train", is_training=False)
    batch = Collate(tokenizer)([dataset[index] for index in range(min(len(dataset), PAIRS))])
    torch.manual_seed(7)
    with torch.no_grad():
        output = model.eval()(batch)
    losses = {f"the loss {name}": value for name, value in output.losses.items()}
    predictions = {f"the prediction of {slot}": value for slot, value in output.predictions.items()}
    return {"token_ids": batch["token_ids"], **losses, **predictions}


@check("contract")
def plans_again_from_resolved(subject: Subject) -> None:
    """The recipe that a run saves, with every default written out, is planned again and gives an equal plan."""
    host = host_with_stubs(subject)
    for example in subject.examples:
        with scratch_folder() as folder:
            try:
                plan = plan_model(example, host, folder)
            except CheckFailed as error:
                raise NotApplicable(f"{example} cannot be planned in a model; trains_in_a_model says why") from error
            path = folder / RECIPE
            path.write_text(plan.resolved_yaml(), encoding="utf-8")
            try:
                again = _plan_again(plan, path)
            except MedvlpError as error:
                raise CheckFailed(f"{example}: the recipe that a run saves cannot be planned: {without_places(error)}") from error
            first, second = _facts(plan), _facts(again)
            unequal = [name for name in first if first[name] != second[name]]
            expect(not unequal, f"{example}: planned again from the recipe that a run saves, {', '.join(unequal)} differ")


def _facts(plan: ModelPlan) -> dict[str, object]:
    """What makes two plans equal: paths in them may have become absolute."""
    parts = {path: (one.name, one.contract, plan.dims(path)) for path, one in plan.components.items()}
    return {"the parameters": plan.resolved(), "the contracts": parts, "the steps": plan.steps, "the losses": plan.losses}
