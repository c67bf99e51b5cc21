"""What a user calls from Python: plan a recipe, build it, train it, check what came of it. Torch is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.plugins.host import load_plugins
from medvlp_core.recipe.load import Override, parse_overrides

if TYPE_CHECKING:
    from rich.console import Console

    from medvlp_core.evaluation.protocol import Card
    from medvlp_core.model.build import BuiltRun
    from medvlp_core.planning.plan import ModelPlan
    from medvlp_core.spec.host import Host
    from medvlp_core.training.trainer import RunResult


def plan(recipe: str | Path, overrides: Sequence[str | Override] = (), *, host: Host | None = None) -> ModelPlan:
    """Check a recipe completely and plan its model; imports no torch.

    Args:
        recipe: a YAML file, or a preset such as ``mpma:small``.
        overrides: changes as ``--set`` takes them, ``train.steps=100``.
        host: the plugins to plan with; None = those that are installed.

    Raises:
        SpecError: with every problem of the recipe and its place.

    Example:
        >>> plan("mpma:small", ["train.steps=5"]).train.steps
        5
    """
    return plan_recipe(recipe, overrides, host=host or load_plugins())


def build(model_plan: ModelPlan, *, seed: int | None = None) -> BuiltRun:
    """Build the data pipeline and the model of a plan, with weights drawn from ``seed`` (None = that of the recipe).

    Raises:
        SpecError: a component cannot be built (MV303), or its sizes differ from the plan (MV206).
        DataError: the data cannot be read (MV5xx).

    Example:
        >>> model = build(plan("mpma:small")).model  # doctest: +SKIP
    """
    from medvlp_core.model.build import build_run

    return build_run(model_plan, seed=model_plan.train.seed if seed is None else seed)


def pretrain(
    model_plan: ModelPlan, *, out: str | Path | None = None, device: str | None = None, console: Console | None = None
) -> RunResult | None:
    """Train the model of a plan; see :func:`medvlp_core.training.trainer.pretrain`.

    Example:
        >>> result = pretrain(plan("mpma:small"), out="runs/first")  # doctest: +SKIP
    """
    from medvlp_core.training import trainer

    return trainer.pretrain(model_plan, out=out, device=device, console=console)


def resume(
    run: str | Path, overrides: Sequence[str | Override] = (), *, device: str | None = None, console: Console | None = None
) -> RunResult | None:
    """Train a run that was stopped or killed to its end; see :func:`medvlp_core.training.trainer.resume`.

    Example:
        >>> result = resume("runs/first")  # doctest: +SKIP
    """
    from medvlp_core.training import trainer

    diagnostics = Diagnostics()
    parsed = parse_overrides(overrides, diagnostics)
    diagnostics.raise_errors()
    return trainer.resume(run, parsed, device=device, console=console)


def evaluate(
    run: str | Path, *, split: str | None = None, device: str | None = None, out: str | Path | None = None
) -> tuple[Card, ...]:
    """Run the evaluators of a run's recipe on its trained model again: one card for each, in the order of the recipe.

    The data of the recipe must exist on this machine. What the run wrote, ``evaluation.json`` too, stays as it is. An evaluator
    that needs what the model or the data do not have gives a card without rows, whose ``problem`` says why.

    Args:
        run: a run folder (its newest checkpoint), or one checkpoint's folder.
        split: the split to look at; None = the held-out one, ``test``, else ``val``.
        device: a torch device; None = the GPU if there is one.
        out: a folder for ``evaluation.json`` and the pictures; None = nothing is written, and the cards name no pictures.

    Raises:
        DataError: no checkpoint, or a damaged one (MV507); no such split (MV503); ``out`` holds an evaluation (MV508).
        SpecError: the recipe cannot be planned here, or the device does not exist (MV104).

    Example:
        >>> cards = evaluate("runs/first", split="val")  # doctest: +SKIP
    """
    from medvlp_core.training.held_out import evaluate_run

    return evaluate_run(run, split=split, device=device, out=out)
