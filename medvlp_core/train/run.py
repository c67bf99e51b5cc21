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

import math
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from signal import Signals
from typing import Any

import attrs
import torch
from rich.console import Console
from torch.distributed.tensor import DTensor

from medvlp_core.blocks import TrainSpec
from medvlp_core.build import BuiltRun, build_run
from medvlp_core.data.order import seed_of
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.device import autocast, choose_device, to_device
from medvlp_core.distributed import alone, from_main, is_main, process_group, wait_for_all, world_size
from medvlp_core.evaluate.baseline import calibrate
from medvlp_core.evaluate.protocol import Card, EvaluationRun, held_out_split, split_obstacle
from medvlp_core.evaluate.runner import by_reason, evaluate_all, find_obstacles, write_cards
from medvlp_core.evaluate.table import print_cards
from medvlp_core.files import write_at_once
from medvlp_core.model import ComposedModel
from medvlp_core.plan import ModelPlan, SkippedEvaluator
from medvlp_core.train.checkpoint import (
    WEIGHTS,
    checkpoint_name,
    load_run,
    load_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from medvlp_core.train.describe import describe_run
from medvlp_core.train.events import CheckpointSaved, Evaluated, Event, Observer, RunFinished
from medvlp_core.train.folder import (
    BAD_STEPS,
    CHECKPOINTS,
    EVALUATION,
    METRICS,
    RECIPE,
    can_write,
    check_run_folder,
    make_run_folder,
    undone_before_first_step,
)
from medvlp_core.train.init_from import begin_with_weights, starting_vocabulary
from medvlp_core.train.layers import for_processes, prepare
from medvlp_core.train.loop import check_length, train
from medvlp_core.train.metrics_file import BadStepsFile, MetricsFile, StepWindow, read_metrics
from medvlp_core.train.progress import ProgressDisplay
from medvlp_core.train.resume import Resume, set_aside_later
from medvlp_core.train.state import TrainState
from medvlp_core.train.stop import StopRequest
from medvlp_core.train.trackers import RunTrackers, check_trackers


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
    plan: ModelPlan,
    *,
    out: str | Path | None = None,
    device: str | None = None,
    console: Console | None = None,
    resume: Resume | None = None,
) -> RunResult | None:
    """Build what ``plan`` says, train it, save it, check it on the held-out split.

    ``out`` is the run folder (default ``runs/NAME-DATE-TIME``; it must be new or empty), ``device`` a torch device (default: the
    GPU if there is one). Nothing is written before all is built, and nothing stays of a run that fails before its first step.
    ``resume`` (from :func:`~medvlp_core.train.resume.read_resume`) goes on in the folder of an earlier run, with its plan.

    None in all processes but the main one. A signal (Ctrl-C, or SIGTERM) lets the step end and a checkpoint be written before it
    takes effect.

    Raises:
        DataError: the run folder cannot be used (MV508), a checkpoint not written or read (MV507), or data not read (MV5xx).
        KernelError: the recipe or MEDVLP_KERNELS asks for a kernel path that cannot serve (MV401).
        SpecError: the plan cannot be built (MV303, MV206), the device does not exist or the run is too long (MV104).
        MedvlpError: training diverged (MV601).
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM came.
    """
    started = time.perf_counter()
    where = choose_device(device)
    autocast(where, plan.train.precision)  # a precision that the device lacks is found before anything is written
    check_length(plan.train)
    check_trackers(plan.train.trackers)
    if resume is None:
        check_run_folder(out)
    with ExitStack() as at_the_end:
        with process_group(where):
            console = (console or Console()) if is_main() else Console(quiet=True)
            vocabulary = (resume.tokenizer if resume else None) or starting_vocabulary(plan)
            built = build_run(plan, seed=plan.train.seed, tokenizer_folder=vocabulary)
            if resume is not None:
                resume.check(built.pipeline)
            folder = resume.folder if resume else from_main(make_run_folder(out, plan.name) if is_main() else None)
            unable = find_obstacles(plan, built.pipeline, held_out_split(built.pipeline))
            if is_main() and resume is None:
                at_the_end.enter_context(undone_before_first_step(folder))
            trackers = at_the_end.enter_context(RunTrackers(plan, folder, console, resume))
            signal = _train(built, folder, where, console, unable, resume, trackers)
            if signal is not None:
                raise take_effect(signal)
            if not is_main():
                return None
        return _evaluate(built, folder, where, console, unable, started, trackers)


def _train(
    built: BuiltRun,
    folder: Path,
    device: torch.device,
    console: Console,
    unable: tuple[SkippedEvaluator, ...],
    resume: Resume | None,
    trackers: RunTrackers,
) -> str | None:
    """Train to the end (None) or to a signal (its name), whichever comes first."""
    plan, spec = built.plan, built.plan.train
    if is_main() and resume is None:
        with can_write(folder):
            write_at_once(folder / RECIPE, plan.resolved_yaml())
    describe_run(built, folder, device, console)
    if resume is not None:
        console.print(f"going on after step {resume.step}", markup=False)
        for change in resume.changes(device):
            console.print(f"warning: {change}: the last digits may differ", style="yellow", markup=False, soft_wrap=True)
        if is_main():
            with can_write(folder):
                set_aside_later(resume)
                prune_checkpoints(folder, keep=spec.keep_checkpoints)
    for names, reason in by_reason(unable):
        console.print(f"warning: will be skipped: {names}: {reason}", style="yellow", markup=False, soft_wrap=True)

    if resume is None or resume.checkpoint is None:
        begin_with_weights(built.model, folder if is_main() else None, console)
    model = built.model.to(device)
    if resume is not None and resume.checkpoint is not None:
        load_weights(model, resume.checkpoint / WEIGHTS)
    prepare(model, spec)
    forward = for_processes(model, spec, device, world_size())
    state = TrainState.fresh(model, spec, device)
    if resume is not None and resume.checkpoint is not None:
        load_state(state, resume.checkpoint)

    trackers.start()
    with RunObservers(folder, plan, console, resume, trackers) as observers, StopRequest() as stop:

        def save() -> None:
            facts = {**run_facts(built, device), "validation": validation_loss(state, built.pipeline, spec, device)}
            path = folder / CHECKPOINTS / checkpoint_name(state.step)
            progress = {"metrics": observers.progress()}
            save_checkpoint(path, plan=plan, state=state, tokenizer=built.pipeline.tokenizer, facts=facts, progress=progress)
            if is_main():
                prune_checkpoints(folder, keep=spec.keep_checkpoints)
            observers(CheckpointSaved(step=state.step, folder=path, validation=facts["validation"]))
            wait_for_all()

        signal = train(state, built.pipeline, spec, forward=forward, device=device, notify=observers, save=save, stop=stop)
    signal = from_main(signal or stop.signal)  # it may have come during the last checkpoint
    if signal is not None:
        console.print(f"go on with: medvlp pretrain --resume {folder}", markup=False, soft_wrap=True)
    elif state.average is not None:
        state.average.exchange(model)
    return signal


def take_effect(signal: str) -> BaseException:
    """What a signal would have done at once."""
    return KeyboardInterrupt() if signal == "SIGINT" else SystemExit(128 + Signals[signal])


def _evaluate(
    built: BuiltRun,
    folder: Path,
    device: torch.device,
    console: Console,
    unable: tuple[SkippedEvaluator, ...],
    started: float,
    trackers: RunTrackers,
) -> RunResult:
    """Check the trained model on the held-out split, in the main process alone."""
    plan = built.plan
    if any(isinstance(parameter, DTensor) for parameter in built.model.parameters()):
        built.model = load_run(folder, device=device).model  # other processes had shards of the trained one
    notify = plan_observer(plan, ProgressDisplay(console, StepWindow(plan.train.log_every_steps)), trackers)
    run = evaluation_run(built, folder=folder, device=device)
    cards = evaluate_all(run, unable, on_done=lambda card, seconds: notify(Evaluated(card=card, seconds=seconds)))
    with can_write(folder):
        write_cards(folder / EVALUATION, run, cards, unable)
    seconds = time.perf_counter() - started
    notify(RunFinished(folder=folder, seconds=seconds))
    skipped = [*((one.path, one.reason) for one in plan.skipped), *by_reason(unable)]
    print_cards(console, cards, skipped, split=run.split)
    for problem in plan.host.observer_problems.values():
        console.print(str(problem), style="yellow", markup=False, soft_wrap=True)
    took = f"training and evaluation took {seconds:.0f} s"
    console.print(f"run folder: {folder}  ({took})", style="bold", markup=False, soft_wrap=True)
    return RunResult(folder=folder, built=built, cards=cards, seconds=seconds)


class RunObservers:
    """Everybody who watches a run: the metrics file, the list of bad steps, the display, plugins. In the main process alone."""

    def __init__(self, folder: Path, plan: ModelPlan, console: Console, resume: Resume | None, trackers: RunTrackers) -> None:
        self._folder = folder
        self._observers: list[Observer] = []
        self._metrics: MetricsFile | None = None
        self._stack = ExitStack()
        if not is_main():
            return
        every = plan.train.log_every_steps
        progress = resume.progress["metrics"] if resume is not None and resume.progress else None
        with can_write(folder):
            metrics = MetricsFile(folder / METRICS, log_every_steps=every, progress=progress, on_line=trackers.line)
            self._metrics = self._stack.enter_context(metrics)
            bad_steps = BadStepsFile(folder / BAD_STEPS, after=resume.step if resume else 0)
        display = self._stack.enter_context(ProgressDisplay(console, StepWindow.going_on(every, progress)))
        self._observers = [self._metrics, bad_steps, plan_observer(plan, display, trackers)]

    def __call__(self, event: Event) -> None:
        """Tell everybody.

        Raises:
            DataError: a file cannot be written (MV508).
        """
        for observer in self._observers:
            with can_write(self._folder):
                observer(event)

    def progress(self) -> dict[str, Any]:
        """What the metrics file needs to go on from a checkpoint."""
        return self._metrics.progress() if self._metrics is not None else {}

    def __enter__(self) -> RunObservers:
        return self

    def __exit__(self, *error: Any) -> None:
        with can_write(self._folder):
            self._stack.__exit__(*error)


def plan_observer(plan: ModelPlan, display: Observer, trackers: Observer) -> Observer:
    """The display, the trackers, then the plugins."""

    def notify(event: Event) -> None:
        display(event)
        trackers(event)
        plan.host.observe("medvlp_train_event", event=event)

    return notify


@torch.no_grad()
def validation_loss(state: TrainState, pipeline: InputPipeline, spec: TrainSpec, device: torch.device) -> float | None:
    """The weighted loss on the split ``val``, mean over its pairs, always with the same masks, of the averaged weights if there
    are some; None if there is no such split, or if the loss is not finite.

    Computed only where several checkpoints compete for the best one. Every process computes all of it.
    """
    if spec.checkpoint_every_steps is None or split_obstacle(pipeline, "val") is not None:
        return None
    model = state.model.eval()
    total = count = 0.0
    pairs = max(1, spec.batch_size // (spec.accumulate * world_size()))  # as many as fit in training
    torch.manual_seed(seed_of(spec.seed))
    with alone(), state.averaged():
        for batch in pipeline.loader("val", batch_size=pairs):
            with autocast(device, spec.precision):
                loss = model(to_device(batch, device)).loss
            total += loss.item() * len(batch.image)
            count += len(batch.image)
    model.train()
    return total / count if math.isfinite(total) else None


def run_facts(built: BuiltRun, device: torch.device) -> dict[str, Any]:
    """What a run that goes on must have in common with this one."""
    return {
        "name": built.plan.name,
        "seed": built.plan.train.seed,
        "data": built.pipeline.source.fingerprint(),
        "processes": world_size(),
        "device": device.type,
    }


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


def untrained_model(built: BuiltRun, *, seed: int, device: torch.device) -> ComposedModel:
    """A baseline: the same architecture with random weights, its batch norms calibrated on the training images."""
    batches = built.pipeline.loader("train", batch_size=64)
    return calibrate(built.fresh_model(seed).to(device), batches, device)
