"""The main job: a checked plan becomes a run folder with a trained model, its metrics, pictures and held-out check.

::

    runs/mpma_small-20260101-120000/
        start.json         metadata of data, processes and machine
        resolved.yaml      the recipe with every default; training from it gives the same plan
        metrics.jsonl      losses, learning rate, throughput
        checkpoints/       step-0000600/: model.safetensors, checkpoint.json, resolved.yaml, tokenizer/
        evaluation.json    every number beside its baselines
        pictures/          what the evaluators drew

:class:`Trainer` goes through four phases: start, build, train, evaluate. The loop itself is :mod:`medvlp_core.training.loop`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from torch import nn
from torch.distributed.tensor import DTensor

from medvlp_core.display import Displayed, DisplayRow
from medvlp_core.evaluation.protocol import Card, held_out_split
from medvlp_core.evaluation.runner import by_reason, evaluate_all, find_obstacles, write_cards
from medvlp_core.evaluation.table import print_cards
from medvlp_core.model.build import BuiltRun, build_run
from medvlp_core.planning.plan import ModelPlan, SkippedEvaluator
from medvlp_core.recipe.load import Override
from medvlp_core.runtime.device import autocast, choose_device
from medvlp_core.runtime.distributed import broadcast_object, is_main, process_group, sync_errors, world_size
from medvlp_core.runtime.files import write_at_once
from medvlp_core.training import run_folder
from medvlp_core.training.checkpoint import (
    WEIGHTS,
    checkpoint_name,
    load_run,
    load_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from medvlp_core.training.describe_run import describe_resume, describe_run, run_metadata, warn
from medvlp_core.training.events import CheckpointSaved, Evaluated, RunFinished
from medvlp_core.training.held_out import evaluation_run
from medvlp_core.training.init_from import check_init_source, load_initial_weights, starting_vocabulary
from medvlp_core.training.lock import locked
from medvlp_core.training.loop import check_length, count_steps, data_order, train
from medvlp_core.training.metrics_file import StepWindow
from medvlp_core.training.observers import RunObservers, plan_observer
from medvlp_core.training.parallel import for_processes, prepare
from medvlp_core.training.progress import ProgressDisplay
from medvlp_core.training.resume import Resume, find_run, read_resume, set_aside_later
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest, raise_for_signal
from medvlp_core.training.trackers import RunTrackers, check_trackers
from medvlp_core.training.translate_errors import translate_errors
from medvlp_core.training.validation import validation_loss


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
        KernelError: the recipe or MEDVLP_KERNELS asks for a kernel backend that cannot serve (MV401).
        SpecError: the plan cannot be built (MV303, MV206), the device does not exist or the run is too long (MV104).
        MedvlpError: training diverged (MV601), memory is full (MV606), or another process is gone (MV607).
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM came; or the message is that of another process.
    """
    return Trainer(plan, out=out, device=device, console=console).run()


def resume(
    run: str | Path, overrides: Sequence[Override] = (), *, device: str | None = None, console: Console | None = None
) -> RunResult | None:
    """Train a run that was stopped or killed in its folder, to the end that it would have had.

    See :func:`~medvlp_core.training.resume.read_resume` for ``run`` and ``overrides``, and :func:`pretrain` for the rest.

    Raises:
        DataError: there is no such run, it is finished, or it began in another way (MV508).
    """
    return Trainer.resuming(run, overrides, device=device, console=console).run()


@attrs.frozen(kw_only=True, repr=False)
class RunResult(Displayed):
    """Where the run lies, the trained model, and the cards of the held-out check."""

    folder: Path
    built: BuiltRun
    cards: tuple[Card, ...]
    seconds: float

    @property
    def problems(self) -> tuple[str, ...]:
        """What kept evaluators from giving a result, if anything did."""
        return tuple(f"{card.evaluator}: {card.problem}" for card in self.cards if card.problem)

    def display(self) -> tuple[str, list[DisplayRow]]:
        """The folder, the time, and the numbers of every card, or what kept it from giving one."""
        rows = [("folder", str(self.folder)), ("seconds", f"{self.seconds:.0f}")]
        for card in self.cards:
            numbers = ", ".join(f"{row.metric} {row.value:.3f}" for row in card.rows)
            rows.append((card.evaluator, card.problem or numbers or f"{len(card.pictures)} pictures"))
        return f"RunResult {self.built.plan.name}", rows


class Trainer:
    """One run from its plan, or from the run to resume, to its result: :meth:`run` goes through all phases, once.

    Every process makes one. What a phase finds is kept for the next: ``plan``, ``resume_point`` (None for a new run), ``built``,
    ``skipped`` (evaluators that cannot work on the data), ``folder``, ``trackers``.
    """

    plan: ModelPlan
    resume_point: Resume | None
    built: BuiltRun
    skipped: tuple[SkippedEvaluator, ...]
    folder: Path
    trackers: RunTrackers
    _out: str | Path | None = None

    def __init__(
        self, plan: ModelPlan, *, out: str | Path | None = None, device: str | None = None, console: Console | None = None
    ) -> None:
        """Train ``plan`` in the folder ``out``; :meth:`resuming` makes one for a run that was stopped."""
        self._prepare(device, console)
        self.plan = plan
        self._out = out

    @classmethod
    def resuming(
        cls, run: str | Path, overrides: Sequence[Override] = (), *, device: str | None = None, console: Console | None = None
    ) -> Trainer:
        """Train ``run`` in its own folder, with ``overrides``; what they may change, :meth:`start` sees."""
        trainer = cls.__new__(cls)
        trainer._prepare(device, console)
        trainer._stopped_run = (run, overrides)
        return trainer

    def _prepare(self, device: str | None, console: Console | None) -> None:
        self._started = time.perf_counter()
        self._stopped_run: tuple[str | Path, Sequence[Override]] | None = None
        self._resources = ExitStack()  # locks and trackers: open until the run has its result
        self.device = choose_device(device)
        self.console = console or Console()
        self.resume_point = None

    def run(self) -> RunResult | None:
        """Start, build, train, evaluate. None in all processes but the main one."""
        with self._resources:
            with process_group(self.device):
                if not is_main():
                    self.console = Console(quiet=True)
                with sync_errors():
                    self.start()
                    self.build()
                    made = self._make_folder()
                self._open_folder(made)
                with translate_errors(self.folder):
                    raise_for_signal(self.train())
                if not is_main():
                    return None
            return self.evaluate()

    # ------------------------------------------------------------------------------------------------------- start and build

    def start(self) -> None:
        """Read the run to resume, if it is one, and refuse what is known to fail before anything is built.

        Raises:
            SpecError: the device lacks the precision, or the run is too long (MV104); there is nothing to init from (MV509).
            DataError: the run folder cannot be used, or the run not be resumed (MV508).
            MedvlpError: the package of a tracker is missing (MV605).
        """
        if self._stopped_run is not None:
            run, overrides = self._stopped_run
            if is_main():
                self._resources.enter_context(locked(find_run(run)[0]))
            self.resume_point = read_resume(run, overrides)
            self.plan = self.resume_point.plan
        autocast(self.device, self.plan.train.precision)
        check_length(self.plan.train)
        check_trackers(self.plan.train.trackers)
        if self.resume_point is None:
            run_folder.check_run_folder(self._out)
        if self.checkpoint is None:
            check_init_source(self.plan)

    def build(self) -> None:
        """Build data and model, and see whether the data do for the length of the run and for its evaluators.

        Raises:
            SpecError: a component cannot be built (MV303), or its sizes differ from the plan (MV206).
            DataError: the data cannot be read (MV5xx), or are not those of the run to resume (MV508).
        """
        plan, resume = self.plan, self.resume_point
        vocabulary = (resume.tokenizer if resume else None) or starting_vocabulary(plan)
        with resume.skip_initial_weights() if resume else nullcontext():
            self.built = build_run(plan, seed=plan.train.seed, tokenizer_folder=vocabulary)
        pipeline = self.built.pipeline
        count_steps(plan.train, data_order(plan.train, pipeline))
        if resume is not None:
            resume.check_compatible(pipeline)
        self.skipped = find_obstacles(plan, pipeline, held_out_split(pipeline))

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to resume from; None if training begins with its first step."""
        return self.resume_point.checkpoint if self.resume_point is not None else None

    def _make_folder(self) -> Path | None:
        return run_folder.make_run_folder(self._out, self.plan.name) if is_main() and self.resume_point is None else None

    def _open_folder(self, made: Path | None) -> None:
        """Keep the folder for this process: the one that the main process just ``made``, or that of the run to resume."""
        self.folder = self.resume_point.folder if self.resume_point is not None else broadcast_object(made)
        if is_main() and self.resume_point is None:
            self._resources.enter_context(run_folder.cleanup_on_failed_start(self.folder))
            self._resources.enter_context(locked(self.folder))
        self.trackers = self._resources.enter_context(RunTrackers(self.plan, self.folder, self.console, self.resume_point))

    # ----------------------------------------------------------------------------------------------------------------- train

    def train(self) -> str | None:
        """Train to the end (None) or to a signal (its name), whichever comes first."""
        spec, pipeline = self.plan.train, self.built.pipeline
        with sync_errors():
            metadata = run_metadata(self.built, self.device)
            set_aside = self._write_start(metadata) if is_main() else []
            self._describe(metadata, set_aside)
            self._load_weights()
        state, forward = self._make_state()
        with sync_errors():
            self.trackers.start()
            observers = RunObservers(self.folder, self.plan, self.console, self.resume_point, self.trackers)
        with observers, StopRequest() as stop:

            def save(is_stopping: bool) -> None:
                self._save_checkpoint(state, observers, metadata, is_stopping=is_stopping)

            stopped_by = train(state, pipeline, spec, forward=forward, device=self.device, notify=observers, save=save, stop=stop)
        signal: str | None = broadcast_object(stopped_by or stop.signal)  # it may have come during the last checkpoint
        if signal is not None:
            self.console.print(f"resume with: {run_folder.resume_command(self.folder)}", markup=False, soft_wrap=True)
        elif state.ema is not None:
            state.ema.swap(self.built.model)
        return signal

    def _write_start(self, metadata: dict[str, Any]) -> list[str]:
        """Write what stands in the folder from the start; set aside what a resumed run will write anew: the names.

        Raises:
            DataError: it cannot be written (MV508).
        """
        folder, resume = self.folder, self.resume_point
        with run_folder.translate_write_errors(folder):
            first = metadata if resume is None else {name: resume.metadata[name] for name in metadata}
            write_at_once(folder / run_folder.START, json.dumps(first, indent=2) + "\n")
            write_at_once(folder / run_folder.RECIPE, self.plan.resolved_yaml())  # of a resumed run, it may have changed a little
            if resume is None:
                return []
            set_aside = set_aside_later(resume)
            prune_checkpoints(folder, keep=self.plan.train.keep_checkpoints)
        return set_aside

    def _describe(self, metadata: dict[str, Any], set_aside: list[str]) -> None:
        describe_run(self.built, self.folder, self.device, self.console)
        if self.resume_point is not None:
            describe_resume(self.resume_point, metadata["machine"], set_aside, self.console)
        for names, reason in by_reason(self.skipped):
            warn(self.console, f"will be skipped: {names}: {reason}")

    def _load_weights(self) -> None:
        """The weights of the checkpoint, or those that the recipe begins with."""
        if self.checkpoint is None:
            load_initial_weights(self.built.model, self.folder if is_main() else None, self.console)
        else:
            load_weights(self.built.model, self.checkpoint / WEIGHTS)

    def _make_state(self) -> tuple[TrainState, nn.Module]:
        """The state before the first step, or that of the checkpoint; and the model as it is called in training."""
        spec = self.plan.train
        model = self.built.model.to(self.device)
        prepare(model, spec)
        forward = for_processes(model, spec, self.device, world_size())
        state = TrainState.fresh(model, spec, self.device)
        if self.checkpoint is not None:
            load_state(state, self.checkpoint)
        return state, forward

    def _save_checkpoint(self, state: TrainState, observers: RunObservers, metadata: dict[str, Any], *, is_stopping: bool) -> None:
        # Who asks a run to stop may not wait for long.
        pipeline, spec = self.built.pipeline, self.plan.train
        validation = None if is_stopping else validation_loss(state, pipeline, spec, self.device)
        path = self.folder / run_folder.CHECKPOINTS / checkpoint_name(state.step)
        with sync_errors():
            save_checkpoint(
                path,
                plan=self.plan,
                state=state,
                tokenizer=pipeline.tokenizer if pipeline.has_tokenizer else None,
                metadata={**metadata, "validation": validation},
                progress={"metrics": observers.progress()},
            )
            if is_main():
                prune_checkpoints(self.folder, keep=spec.keep_checkpoints)
            observers(CheckpointSaved(step=state.step, folder=path, validation=validation))

    # -------------------------------------------------------------------------------------------------------------- evaluate

    def evaluate(self) -> RunResult:
        """Check the trained model on the held-out split, in the main process alone."""
        plan, built, folder, console = self.plan, self.built, self.folder, self.console
        if any(isinstance(parameter, DTensor) for parameter in built.model.parameters()):
            built.model = load_run(folder, device=self.device).model  # other processes had shards of the trained one
        notify = plan_observer(plan, ProgressDisplay(console, StepWindow(plan.train.log_every_steps)), self.trackers)
        evaluation = evaluation_run(built, folder=folder, device=self.device)
        cards = evaluate_all(evaluation, self.skipped, on_done=lambda card, seconds: notify(Evaluated(card=card, seconds=seconds)))
        with run_folder.translate_write_errors(folder):
            write_cards(folder / run_folder.EVALUATION, evaluation, cards, self.skipped)
        seconds = time.perf_counter() - self._started
        notify(RunFinished(folder=folder, seconds=seconds))
        skipped = [*((one.path, one.reason) for one in plan.skipped), *by_reason(self.skipped)]
        print_cards(console, cards, skipped, split=evaluation.split)
        for problem in plan.host.observer_problems.values():
            console.print(str(problem), style="yellow", markup=False, soft_wrap=True)
        took = f"training and evaluation took {seconds:.0f} s"
        console.print(f"run folder: {folder}  ({took})", style="bold", markup=False, soft_wrap=True)
        return RunResult(folder=folder, built=built, cards=cards, seconds=seconds)
