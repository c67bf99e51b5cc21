"""The main job: a checked plan becomes a run folder with a trained model, its metrics, pictures and held-out check.

::

    runs/mpma_small-20260101-120000/
        resolved.yaml      the recipe with every default; training from it gives the same plan
        metrics.jsonl      losses, learning rate, throughput
        checkpoints/       step-0000600/: model.safetensors, checkpoint.json, resolved.yaml, tokenizer/
        evaluation.json    every number beside its baselines
        pictures/          what the evaluators drew
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import attrs
import torch
from rich.console import Console

from medvlp_core.build import BuiltRun, build_run
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.device import autocast, choose_device
from medvlp_core.errors import DataError, Problem
from medvlp_core.evaluate.protocol import Card, EvaluationRun
from medvlp_core.evaluate.runner import evaluate_all, write_cards
from medvlp_core.evaluate.table import print_cards
from medvlp_core.plan import ModelPlan
from medvlp_core.train.checkpoint import save_checkpoint
from medvlp_core.train.events import CheckpointSaved, Evaluated, Event, RunFinished
from medvlp_core.train.loop import train
from medvlp_core.train.metrics_file import MetricsFile, read_metrics
from medvlp_core.train.progress import ProgressDisplay

#: The held-out split is the first of these that the data has.
HELD_OUT = ("test", "val")


@attrs.frozen(kw_only=True)
class RunResult:
    """Where the run lies, the trained model, and the cards of the held-out check."""

    folder: Path
    built: BuiltRun
    cards: tuple[Card, ...]
    seconds: float

    @property
    def problems(self) -> tuple[str, ...]:
        """What kept evaluators from giving a result, if anything did."""
        return tuple(f"{card.evaluator}: {card.problem}" for card in self.cards if card.problem)


def pretrain(plan: ModelPlan, *, out: Path | None = None, device: str | None = None, console: Console | None = None) -> RunResult:
    """Build what ``plan`` says, train it, save it, check it on the held-out split.

    ``out`` is the run folder (default ``runs/NAME-DATE-TIME``; it must be new or empty), ``device`` a torch device (default: the
    GPU if there is one).

    Raises:
        DataError: the run folder is not empty (MV508), or data cannot be read (MV5xx).
        SpecError: the plan cannot be built (MV303, MV206), or the device does not exist (MV104).
        MedvlpError: training diverged.
    """
    started = time.perf_counter()
    console = console or Console()
    where = choose_device(device)
    autocast(where, plan.train.precision)  # a precision that the device lacks is found before anything is written
    folder = make_run_folder(out, plan.name)
    (folder / "resolved.yaml").write_text(plan.resolved_yaml(), encoding="utf-8")
    built = build_run(plan, seed=plan.train.seed)
    describe_run(built, folder, where, console)

    every = plan.train.log_every_steps
    with MetricsFile(folder / "metrics.jsonl", log_every_steps=every) as metrics:
        with ProgressDisplay(console, log_every_steps=every) as display:

            def notify(event: Event) -> None:
                metrics(event)
                display(event)
                plan.host.call("medvlp_train_event", event=event)

            def save(step: int) -> None:
                path = folder / "checkpoints" / f"step-{step:07d}"
                facts = {"step": step, "seed": plan.train.seed, "data": built.pipeline.source.fingerprint()}
                save_checkpoint(path, plan=plan, model=built.model, tokenizer=built.pipeline.tokenizer, facts=facts)
                notify(CheckpointSaved(step=step, folder=path))

            train(built.model, built.pipeline, plan.train, device=where, notify=notify, save=save)

        run = evaluation_run(built, folder=folder, device=where)
        cards = evaluate_all(run, on_done=lambda card, seconds: notify(Evaluated(card=card, seconds=seconds)))
        write_cards(folder / "evaluation.json", run, cards)
        seconds = time.perf_counter() - started
        notify(RunFinished(folder=folder, seconds=seconds))

    skipped = [(one.path, one.reason) for one in plan.skipped]
    print_cards(console, cards, skipped, split=run.split)
    console.print(f"run folder: {folder}  ({seconds:.0f} s)", style="bold", markup=False, soft_wrap=True)
    return RunResult(folder=folder, built=built, cards=cards, seconds=seconds)


def evaluation_run(built: BuiltRun, *, folder: Path, device: torch.device) -> EvaluationRun:
    """What evaluators get: the model on the held-out split, and fresh models with another seed for baselines."""
    seed = built.plan.train.seed
    return EvaluationRun(
        model=built.model.to(device),
        plan=built.plan,
        pipeline=built.pipeline,
        device=device,
        seed=seed,
        folder=folder / "pictures",
        split=next((split for split in HELD_OUT if split in built.pipeline.source.splits()), HELD_OUT[0]),
        history=tuple(read_metrics(folder / "metrics.jsonl")),
        fresh_model=lambda: built.fresh_model(seed + 1).to(device).eval(),
    )


def make_run_folder(out: Path | None, name: str) -> Path:
    """Make the folder; without ``out`` a new one below ``runs/``.

    Raises:
        DataError: it exists and holds something, or cannot be made (MV508).
    """
    if out is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"{name}-{stamp}"
        number = 1
        while out.exists():  # two runs in one second
            number += 1
            out = Path("runs") / f"{name}-{stamp}-{number}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        is_used = any(out.iterdir())
    except OSError as error:
        text = f"{out}: the run folder cannot be made ({error.strerror or error})"
        raise DataError(Problem(code="MV508", text=text, hint="choose another --out")) from error
    if is_used:
        text = f"{out}: the run folder is not empty"
        raise DataError(Problem(code="MV508", text=text, hint="choose a new folder with --out, or leave --out away"))
    return out


def describe_run(built: BuiltRun, folder: Path, device: torch.device, console: Console) -> None:
    """Say in three lines what is about to be trained."""
    plan, pipeline = built.plan, built.pipeline
    parameters = sum(parameter.numel() for parameter in built.model.parameters() if parameter.requires_grad)
    console.print(f"{plan.name}: {parameters:,} trainable parameters on {device}, {plan.train.precision}", markup=False)
    console.print(f"data: {', '.join(_split_sizes(pipeline))} image-text pairs", markup=False)
    console.print(f"run folder: {folder}", markup=False, soft_wrap=True)


def _split_sizes(pipeline: InputPipeline) -> list[str]:
    sizes = []
    for split in pipeline.source.splits():
        try:
            sizes.append(f"{split} {len(pipeline.records(split))}")
        except DataError:  # images without texts; only the splits that are used must have pairs
            sizes.append(f"{split} 0")
    return sizes
