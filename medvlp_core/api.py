"""What a user calls from Python: plan a recipe, build it, train it, check what came of it. Torch is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.plugins.host import load_plugins
from medvlp_core.recipe.load import Override, parse_override

if TYPE_CHECKING:
    from rich.console import Console

    from medvlp_core.model.build import BuiltRun
    from medvlp_core.planning.plan import ModelPlan
    from medvlp_core.spec.host import Host
    from medvlp_core.training.run import RunResult


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
    return plan_recipe(recipe, _overrides(overrides), host=host or load_plugins())


def build(plan: ModelPlan, *, seed: int | None = None) -> BuiltRun:
    """Build the data pipeline and the model of a plan, with weights drawn from ``seed`` (None = that of the recipe).

    Raises:
        SpecError: a component cannot be built (MV303), or its sizes differ from the plan (MV206).
        DataError: the data cannot be read (MV5xx).

    Example:
        >>> model = build(plan("mpma:small")).model  # doctest: +SKIP
    """
    from medvlp_core.model.build import build_run

    return build_run(plan, seed=plan.train.seed if seed is None else seed)


def pretrain(
    plan: ModelPlan, *, out: str | Path | None = None, device: str | None = None, console: Console | None = None
) -> RunResult | None:
    """Train the model of a plan; see :func:`medvlp_core.training.run.pretrain`.

    Example:
        >>> result = pretrain(plan("mpma:small"), out="runs/first")  # doctest: +SKIP
    """
    from medvlp_core.training import run

    return run.pretrain(plan, out=out, device=device, console=console)


def resume(
    run: str | Path, overrides: Sequence[str | Override] = (), *, device: str | None = None, console: Console | None = None
) -> RunResult | None:
    """Train a run that was stopped or killed to its end; see :func:`medvlp_core.training.run.resume`.

    Example:
        >>> result = resume("runs/first")  # doctest: +SKIP
    """
    from medvlp_core.training import run as training

    return training.resume_run(run, _overrides(overrides), device=device, console=console)


def _overrides(changes: Sequence[str | Override]) -> list[Override]:
    diagnostics = Diagnostics()
    parsed = [parse_override("set", one, diagnostics) if isinstance(one, str) else one for one in changes]
    diagnostics.raise_errors()
    return [one for one in parsed if one is not None]
