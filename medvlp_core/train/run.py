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

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path

import attrs
import torch
from rich.console import Console
from torch import nn

from medvlp_core.build import BuiltRun, build_run
from medvlp_core.contract import Symbol
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.device import AUTOCAST_DTYPES, autocast, choose_device
from medvlp_core.errors import DataError, Problem
from medvlp_core.evaluate.baseline import calibrate
from medvlp_core.evaluate.protocol import Card, EvaluationRun, held_out_split
from medvlp_core.evaluate.runner import by_reason, evaluate_all, find_obstacles, write_cards
from medvlp_core.evaluate.table import print_cards
from medvlp_core.interfaces import ChoosesKernels
from medvlp_core.model import ComposedModel
from medvlp_core.plan import ModelPlan
from medvlp_core.train.checkpoint import RECIPE, save_checkpoint
from medvlp_core.train.events import CheckpointSaved, Evaluated, Event, RunFinished
from medvlp_core.train.loop import check_length, train
from medvlp_core.train.metrics_file import MetricsFile, read_metrics
from medvlp_core.train.progress import ProgressDisplay

METRICS = "metrics.jsonl"

#: So many training texts are counted at the start: a few seconds at most.
COUNTED_TEXTS = 10_000


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


def pretrain(
    plan: ModelPlan, *, out: str | Path | None = None, device: str | None = None, console: Console | None = None
) -> RunResult:
    """Build what ``plan`` says, train it, save it, check it on the held-out split.

    ``out`` is the run folder (default ``runs/NAME-DATE-TIME``; it must be new or empty), ``device`` a torch device (default: the
    GPU if there is one). Nothing is written before all is built, and nothing stays of a run that fails before its first step.

    Raises:
        DataError: the run folder is not empty or cannot be made (MV508), or data cannot be read (MV5xx).
        KernelError: the recipe or MEDVLP_KERNELS asks for a kernel path that cannot serve (MV401).
        SpecError: the plan cannot be built (MV303, MV206), the device does not exist or the run is too long (MV104).
        MedvlpError: training diverged.
    """
    started = time.perf_counter()
    console = console or Console()
    where = choose_device(device)
    autocast(where, plan.train.precision)  # a precision that the device lacks is found before anything is written
    check_length(plan.train)
    check_run_folder(out)
    built = build_run(plan, seed=plan.train.seed)
    folder = make_run_folder(out, plan.name)
    every = plan.train.log_every_steps
    with undone_before_first_step(folder), MetricsFile(folder / METRICS, log_every_steps=every) as metrics:
        (folder / RECIPE).write_text(plan.resolved_yaml(), encoding="utf-8")
        describe_run(built, folder, where, console)
        unable = find_obstacles(plan, built.pipeline, held_out_split(built.pipeline))
        for names, reason in by_reason(unable):
            console.print(f"warning: will be skipped: {names}: {reason}", style="yellow", markup=False, soft_wrap=True)
        with ProgressDisplay(console, log_every_steps=every) as display:

            def notify(event: Event) -> None:
                metrics(event)
                display(event)
                plan.host.observe("medvlp_train_event", event=event)

            def save(step: int) -> None:
                path = folder / "checkpoints" / f"step-{step:07d}"
                facts = {"step": step, "seed": plan.train.seed, "data": built.pipeline.source.fingerprint()}
                save_checkpoint(path, plan=plan, model=built.model, tokenizer=built.pipeline.tokenizer, facts=facts)
                notify(CheckpointSaved(step=step, folder=path))

            train(built.model, built.pipeline, plan.train, device=where, notify=notify, save=save)

        run = evaluation_run(built, folder=folder, device=where)
        cards = evaluate_all(run, unable, on_done=lambda card, seconds: notify(Evaluated(card=card, seconds=seconds)))
        write_cards(folder / "evaluation.json", run, cards, unable)
        seconds = time.perf_counter() - started
        notify(RunFinished(folder=folder, seconds=seconds))

    skipped = [*((one.path, one.reason) for one in plan.skipped), *by_reason(unable)]
    print_cards(console, cards, skipped, split=run.split)
    for problem in plan.host.observer_problems.values():
        console.print(str(problem), style="yellow", markup=False, soft_wrap=True)
    took = f"training and evaluation took {seconds:.0f} s"
    console.print(f"run folder: {folder}  ({took})", style="bold", markup=False, soft_wrap=True)
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
        split=held_out_split(built.pipeline),
        history=tuple(read_metrics(folder / METRICS)),
        # One model serves all evaluators: building and calibrating it takes a pass over the training images.
        fresh_model=cache(lambda: untrained_model(built, seed=seed + 1, device=device)),
    )


def check_run_folder(out: str | Path | None) -> None:
    """Refuse a run folder that cannot be used, without making anything.

    Raises:
        DataError: it is empty text, exists and holds something, or cannot be made (MV508).
    """
    if out == "":
        raise DataError(Problem(code="MV508", text="the run folder's name is empty", hint="give --out a name, or leave it away"))
    folder = Path("runs") if out is None else Path(out)
    try:
        is_used = out is not None and folder.exists() and any(folder.iterdir())
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise _cannot_make(folder, error.strerror or str(error)) from error
    if is_used:
        hint = "choose a new folder with --out, or leave --out away"
        raise DataError(Problem(code="MV508", text=f"{folder}: the run folder is not empty", hint=hint))
    if not nearest.is_dir():
        raise _cannot_make(folder, f"{nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise _cannot_make(folder, f"{nearest} may not be written")


def untrained_model(built: BuiltRun, *, seed: int, device: torch.device) -> ComposedModel:
    """A baseline: the same architecture with random weights, its batch norms calibrated on the training images."""
    batches = built.pipeline.loader("train", batch_size=64, is_training=False)
    return calibrate(built.fresh_model(seed).to(device), batches, device)


def make_run_folder(out: str | Path | None, name: str) -> Path:
    """Make the folder; without ``out`` a new one below ``runs/``.

    Raises:
        DataError: see :func:`check_run_folder`.
    """
    check_run_folder(out)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path("runs") / f"{name}-{stamp}" if out is None else Path(out)
    number = 1
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=out is not None)
            return folder
        except FileExistsError as error:
            if out is not None:  # a file of that name came up just now
                raise _cannot_make(folder, "there is a file of that name") from error
            number += 1  # two runs in one second
            folder = Path("runs") / f"{name}-{stamp}-{number}"
        except OSError as error:
            raise _cannot_make(folder, error.strerror or str(error)) from error


def _cannot_make(folder: Path, why: str) -> DataError:
    return DataError(Problem(code="MV508", text=f"{folder}: the run folder cannot be made ({why})", hint="choose another --out"))


@contextmanager
def undone_before_first_step(folder: Path) -> Iterator[None]:
    """Take the run folder away again if training fails before its first step: the command can then simply be repeated."""
    try:
        yield
    except BaseException:
        if not read_metrics(folder / METRICS):  # step 1 always writes a line
            for name in (METRICS, RECIPE):
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # it holds something else after all, or is the working folder
                folder.rmdir()
        raise


def describe_run(built: BuiltRun, folder: Path, device: torch.device, console: Console) -> None:
    """Say in a few lines what is about to be trained."""
    plan, pipeline = built.plan, built.pipeline
    parameters = sum(parameter.numel() for parameter in built.model.parameters() if parameter.requires_grad)
    console.print(f"{plan.name}: {parameters:,} trainable parameters on {device}, {plan.train.precision}", markup=False)
    console.print(f"data: {', '.join(_split_sizes(pipeline))} image-text pairs", markup=False)
    if kernels := kernels_in_use(built.model, device, plan.train.precision):
        console.print(f"kernels: {kernels}", markup=False, soft_wrap=True)
    if cut := cut_texts(built):
        console.print(cut, markup=False, soft_wrap=True)
    console.print(f"run folder: {folder}", markup=False, soft_wrap=True)


def kernels_in_use(model: nn.Module, device: torch.device, precision: str) -> str:
    """Every op that parts of the model call and the path that serves it, e.g. ``mpma.memory_topk composite``; empty if none does.

    Raises:
        KernelError: a path that was asked for cannot serve (MV401).
    """
    dtype = str(AUTOCAST_DTYPES.get(precision, torch.float32)).removeprefix("torch.")
    found: dict[str, set[str]] = {}
    for module in model.modules():
        if isinstance(module, ChoosesKernels):
            for op, path in module.kernel_choices(device.type, dtype).items():
                found.setdefault(op, set()).add(path)
    return ", ".join(f"{op} {' and '.join(sorted(paths))}" for op, paths in sorted(found.items()))


def cut_texts(built: BuiltRun) -> str | None:
    """How many training texts are as long as the tokenizer allows, so that what is longer was cut; None if there is none.

    A tokenizer gives no more than its maximum, so a text that just fits is counted too.
    """
    provider = built.plan.wiring.providers[("token_ids", "clean")]
    dim = provider.spec.dims[1]
    length = built.plan.wiring.table.value(Symbol(provider.path, dim)) if isinstance(dim, str) else dim
    if length is None:
        return None
    records = built.pipeline.records("train")
    texts = [record.text for record in records[:: -(-len(records) // COUNTED_TEXTS)]]
    full = 0
    for start in range(0, len(texts), 500):
        is_valid = built.pipeline.tokenizer.encode(texts[start : start + 500]).text_is_valid
        full += int((is_valid.sum(dim=1) >= length).sum())
    return f"texts: {full} of {len(texts)} training texts fill all {length} tokens; what is longer is cut" if full else None


def _split_sizes(pipeline: InputPipeline) -> list[str]:
    sizes = []
    for split in pipeline.source.splits():
        try:
            sizes.append(f"{split} {len(pipeline.records(split))}")
        except DataError:  # images without texts; only the splits that are used must have pairs
            sizes.append(f"{split} 0")
    return sizes
