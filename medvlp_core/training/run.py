"""The main job: a checked plan becomes a run folder with a trained model, its metrics, pictures and held-out check.

::

    runs/mpma_small-20260101-120000/
        start.json         facts of data, processes and machine
        resolved.yaml      the recipe with every default; training from it gives the same plan
        metrics.jsonl      losses, learning rate, throughput
        checkpoints/       step-0000600/: model.safetensors, checkpoint.json, resolved.yaml, tokenizer/
        evaluation.json    every number beside its baselines
        pictures/          what the evaluators drew
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import cache
from pathlib import Path
from signal import Signals
from typing import Any

import attrs
import torch
from rich.console import Console
from torch.distributed.tensor import DTensor

import medvlp_core
from medvlp_core.evaluation.baseline import calibrate
from medvlp_core.evaluation.protocol import Card, EvaluationRun, held_out_split
from medvlp_core.evaluation.runner import by_reason, evaluate_all, find_obstacles, write_cards
from medvlp_core.evaluation.table import print_cards
from medvlp_core.kernels.machine import device_label
from medvlp_core.model.build import BuiltRun, build_run
from medvlp_core.model.composed import ComposedModel
from medvlp_core.planning.plan import ModelPlan, SkippedEvaluator
from medvlp_core.recipe.load import Override
from medvlp_core.runtime.device import autocast, choose_device
from medvlp_core.runtime.distributed import broadcast_object, is_main, process_group, sync_errors, world_size
from medvlp_core.runtime.files import write_at_once
from medvlp_core.training.checkpoint import (
    WEIGHTS,
    checkpoint_name,
    load_run,
    load_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from medvlp_core.training.describe_run import describe_run, kernels_in_use, warn
from medvlp_core.training.events import CheckpointSaved, Evaluated, RunFinished
from medvlp_core.training.folder import (
    CHECKPOINTS,
    EVALUATION,
    METRICS,
    RECIPE,
    START,
    can_write,
    check_run_folder,
    cleanup_on_failed_start,
    make_run_folder,
    resume_command,
)
from medvlp_core.training.init_from import check_source, load_initial_weights, starting_vocabulary
from medvlp_core.training.lock import locked
from medvlp_core.training.loop import check_length, count_steps, data_order, train
from medvlp_core.training.metrics_file import StepWindow, read_metrics
from medvlp_core.training.observers import RunObservers, plan_observer
from medvlp_core.training.parallel import for_processes, prepare
from medvlp_core.training.progress import ProgressDisplay
from medvlp_core.training.resume import Resume, find_run, read_resume, set_aside_later
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest
from medvlp_core.training.trackers import RunTrackers, check_trackers
from medvlp_core.training.translate_errors import translate_errors
from medvlp_core.training.validation import validation_loss


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
) -> RunResult | None:
    """Build what ``plan`` says, train it, save it, check it on the held-out split.

    ``out`` is the run folder (default ``runs/NAME-DATE-TIME``; it must be new or empty), ``device`` a torch device (default: the
    GPU if there is one). Nothing is written before all is built, and nothing stays of a run that fails before its first step.

    None in all processes but the main one. A signal (Ctrl-C, or SIGTERM) lets the step end and a checkpoint be written before it
    takes effect.

    Raises:
        DataError: the run folder cannot be used (MV508), a checkpoint not written or read (MV507), or data not read (MV5xx).
        KernelError: the recipe or MEDVLP_KERNELS asks for a kernel path that cannot serve (MV401).
        SpecError: the plan cannot be built (MV303, MV206), the device does not exist or the run is too long (MV104).
        MedvlpError: training diverged (MV601), memory is full (MV606), or another process is gone (MV607).
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM came; or the message is that of another process.
    """
    return _run(lambda at_the_end: (plan, None), out=out, device=device, console=console)


def resume_run(
    run: str | Path, changes: Sequence[Override] = (), *, device: str | None = None, console: Console | None = None
) -> RunResult | None:
    """Go on with a run that was stopped or killed, in its folder, to the end that it would have had.

    See :func:`~medvlp_core.training.resume.read_resume` for ``run`` and ``changes``, and :func:`pretrain` for the rest.

    Raises:
        DataError: there is no such run, it is finished, or it began in another way (MV508).
    """

    def start(at_the_end: ExitStack) -> tuple[ModelPlan, Resume]:
        if is_main():
            at_the_end.enter_context(locked(find_run(run)[0]))
        resume = read_resume(run, changes)
        return resume.plan, resume

    return _run(start, out=None, device=device, console=console)


def _run(
    start: Callable[[ExitStack], tuple[ModelPlan, Resume | None]],
    *,
    out: str | Path | None,
    device: str | None,
    console: Console | None,
) -> RunResult | None:
    started = time.perf_counter()
    where = choose_device(device)
    with ExitStack() as at_the_end:
        with process_group(where):
            console = (console or Console()) if is_main() else Console(quiet=True)
            with sync_errors():
                plan, resume = start(at_the_end)
                check_start(plan, where)
                if resume is None:
                    check_run_folder(out)
                if resume is None or resume.checkpoint is None:
                    check_source(plan)
                vocabulary = (resume.tokenizer if resume else None) or starting_vocabulary(plan)
                with resume.building() if resume else nullcontext():
                    built = build_run(plan, seed=plan.train.seed, tokenizer_folder=vocabulary)
                count_steps(plan.train, data_order(plan.train, built.pipeline))
                if resume is not None:
                    resume.check(built.pipeline)
                unable = find_obstacles(plan, built.pipeline, held_out_split(built.pipeline))
                made = make_run_folder(out, plan.name) if is_main() and resume is None else None
            folder = resume.folder if resume else broadcast_object(made)
            if is_main() and resume is None:
                at_the_end.enter_context(cleanup_on_failed_start(folder))
                at_the_end.enter_context(locked(folder))
            trackers = at_the_end.enter_context(RunTrackers(plan, folder, console, resume))
            with translate_errors(folder):
                signal = _train(built, folder, where, console, unable, resume, trackers)
            if signal is not None:
                raise raise_for_signal(signal)
            if not is_main():
                return None
        return _evaluate(built, folder, where, console, unable, started, trackers)


def check_start(plan: ModelPlan, device: torch.device) -> None:
    """What can be known of the machine and the length of a run, before anything is built.

    Raises:
        SpecError: the device lacks the precision, or the run is too long (MV104).
        MedvlpError: the package of a tracker is missing (MV605).
    """
    autocast(device, plan.train.precision)
    check_length(plan.train)
    check_trackers(plan.train.trackers)


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
    checkpoint = resume.checkpoint if resume is not None else None
    with sync_errors():
        facts = run_facts(built, device)
        later = start_folder(folder, plan, facts, resume) if is_main() else []
        describe_run(built, folder, device, console)
        if resume is not None:
            console.print(f"resumed after step {resume.step}", markup=False)
            for name in later:
                console.print(f"{name} is set aside, and deleted when it is written anew", markup=False)
            if lost := resume.lost_lines():
                warn(console, f"{lost} lines of {METRICS} are not there any more")
            for change in resume.changes(facts["machine"]):
                warn(console, f"{change}: the last digits may differ")
            for change in resume.moved_data:
                warn(console, f"{change}: the pixels of the images are not compared")
        for names, reason in by_reason(unable):
            warn(console, f"will be skipped: {names}: {reason}")
        if checkpoint is None:
            load_initial_weights(built.model, folder if is_main() else None, console)
        else:
            load_weights(built.model, checkpoint / WEIGHTS)
    model = built.model.to(device)
    prepare(model, spec)
    forward = for_processes(model, spec, device, world_size())
    state = TrainState.fresh(model, spec, device)
    if checkpoint is not None:
        load_state(state, checkpoint)
    with sync_errors():
        trackers.start()
        observers = RunObservers(folder, plan, console, resume, trackers)
    with observers, StopRequest() as stop:

        def save(is_stopping: bool) -> None:
            # Who asks a run to stop may not wait for long.
            validation = None if is_stopping else validation_loss(state, built.pipeline, spec, device)
            path = folder / CHECKPOINTS / checkpoint_name(state.step)
            with sync_errors():
                save_checkpoint(
                    path,
                    plan=plan,
                    state=state,
                    tokenizer=built.pipeline.tokenizer,
                    facts={**facts, "validation": validation},
                    progress={"metrics": observers.progress()},
                )
                if is_main():
                    prune_checkpoints(folder, keep=spec.keep_checkpoints)
                observers(CheckpointSaved(step=state.step, folder=path, validation=validation))

        signal = train(state, built.pipeline, spec, forward=forward, device=device, notify=observers, save=save, stop=stop)
    signal = broadcast_object(signal or stop.signal)  # it may have come during the last checkpoint
    if signal is not None:
        console.print(f"resume with: {resume_command(folder)}", markup=False, soft_wrap=True)
    elif state.ema is not None:
        state.ema.exchange(model)
    return signal


def start_folder(folder: Path, plan: ModelPlan, facts: dict[str, Any], resume: Resume | None) -> list[str]:
    """Write what stands in the folder from the start; of a run that goes on, take away what it will write anew: the names.

    Raises:
        DataError: it cannot be written (MV508).
    """
    with can_write(folder):
        begun = facts if resume is None else {name: resume.facts[name] for name in facts}
        write_at_once(folder / START, json.dumps(begun, indent=2) + "\n")
        write_at_once(folder / RECIPE, plan.resolved_yaml())  # of a run that goes on, it may have changed a little
        later = set_aside_later(resume) if resume is not None else []
        if resume is not None:
            prune_checkpoints(folder, keep=plan.train.keep_checkpoints)
    return later


def raise_for_signal(signal: str) -> BaseException:
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


def run_facts(built: BuiltRun, device: torch.device) -> dict[str, Any]:
    """What a run that goes on must have in common with this one; of ``machine`` the last digits may depend."""
    return {
        "name": built.plan.name,
        "seed": built.plan.train.seed,
        "data": built.pipeline.source.fingerprint(),
        "processes": world_size(),
        "machine": {
            "device": device.type,
            "hardware": device_label(device),
            "threads": torch.get_num_threads(),
            "kernels": kernels_in_use(built.model, device, built.plan.train.precision),
            "versions": {"medvlp": medvlp_core.__version__, "torch": torch.__version__},
        },
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
