"""What a user calls from Python: plan a recipe, build it, train it, check what came of it. Torch is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.plugins.host import load_plugins
from medvlp_core.recipe.load import Change, parse_overrides

if TYPE_CHECKING:
    from rich.console import Console

    from medvlp_core.evaluation.protocol import Card
    from medvlp_core.model.build import BuiltRun
    from medvlp_core.planning.plan import ModelPlan
    from medvlp_core.spec.host import Host
    from medvlp_core.training.trainer import RunResult


def plan(recipe: str | Path, overrides: Sequence[Change] = (), *, host: Host | None = None) -> ModelPlan:
    """Check a recipe completely and plan its model; imports no torch.

    Args:
        recipe: a YAML file, or a preset such as ``mpma:small``.
        overrides: changes as ``--set`` takes them, ``train.steps=100``; or with the option, ``("unset", "model.fusion")``.
        host: the plugins to plan with; None = those that are installed.

    Raises:
        SpecError: with every problem of the recipe and its place.

    Example:
        >>> plan("mpma:small", ["train.steps=5"]).train.steps
        5
    """
    return plan_recipe(recipe, overrides, host=host or load_plugins())


def build(recipe: ModelPlan | str | Path, *, seed: int | None = None) -> BuiltRun:
    """Build the data pipeline and the model of a plan (or of a recipe, as :func:`plan` takes it).

    Args:
        recipe: what :func:`plan` gave, or a recipe.
        seed: what weights are drawn from; None = the seed of the recipe.

    Raises:
        SpecError: a component cannot be built (MV303), or its sizes differ from the plan (MV206).
        DataError: the data cannot be read (MV5xx).

    Example:
        >>> model = build(plan("mpma:small")).model  # doctest: +SKIP
    """
    from medvlp_core.model.build import build_run

    planned = _planned(recipe)
    return build_run(planned, seed=planned.train.seed if seed is None else seed)


def pretrain(
    recipe: ModelPlan | str | Path, *, out: str | Path | None = None, device: str | None = None, console: Console | None = None
) -> RunResult | None:
    """Build what a plan says, train it, save it, check it on the held-out split.

    Nothing is written before all is built, and nothing stays of a run that fails before its first step. A signal (Ctrl-C, or
    SIGTERM) lets the step end and a checkpoint be written before it takes effect.

    Args:
        recipe: what :func:`plan` gave, or a recipe as it takes one.
        out: the run folder, new or empty; None = ``runs/NAME-DATE-TIME``.
        device: a torch device; None = the GPU if there is one.
        console: where progress and results are printed; None = the terminal.

    Returns:
        The run folder, the trained model and the cards of the held-out check; None in all processes but the main one.

    Raises:
        DataError: the run folder cannot be used (MV508), a checkpoint not written or read (MV507), or data not read (MV5xx).
        KernelError: the recipe or MEDVLP_KERNELS asks for a kernel backend that cannot serve (MV401).
        SpecError: the plan cannot be built (MV303, MV206), the device does not exist or the run is too long (MV104).
        MedvlpError: training diverged (MV601), memory is full (MV606), or another process is gone (MV607).
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM came; or the message is that of another process.

    Example:
        >>> result = pretrain(plan("mpma:small"), out="runs/first")  # doctest: +SKIP
    """
    from medvlp_core.training import trainer

    return trainer.pretrain(_planned(recipe), out=out, device=device, console=console)


def resume(
    run: str | Path,
    overrides: Sequence[Change] = (),
    *,
    device: str | None = None,
    console: Console | None = None,
) -> RunResult | None:
    """Train a run that was stopped or killed in its folder, to the end that it would have had.

    Args:
        run: the run folder (its newest checkpoint), or one of its checkpoints.
        overrides: changes as ``--set`` takes them, of ``data``, ``evaluators`` and those settings of ``train`` that change no
            number, such as ``num_workers``; the message of MV508 lists them.
        device: a torch device; None = the GPU if there is one.
        console: where progress and results are printed; None = the terminal.

    Returns:
        As :func:`pretrain`.

    Raises:
        DataError: there is no such run, it is finished, or it began in another way (MV508); the checkpoint is damaged (MV507).
        SpecError: its recipe cannot be planned here, or an override has not the right form (MV007).
        MedvlpError: as in :func:`pretrain`, which also says what interrupts it.

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


def _planned(recipe: ModelPlan | str | Path) -> ModelPlan:
    return plan(recipe) if isinstance(recipe, (str, Path)) else recipe
