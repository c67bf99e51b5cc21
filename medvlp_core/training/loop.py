"""The training loop, to be read top to bottom: ``train`` calls ``forward_backward``, ``reduce_metrics`` and ``apply_update``.
Contrasts over a whole step have passes of their own (medvlp_core.training.whole_step).

A step is a function of the state before it and of its number: the pairs, their crops, masks and dropout are drawn from seeds that
the number gives (medvlp_core.data.order). So a run that is killed and resumed from a checkpoint ends with the same bits.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from medvlp_core.data.order import DataOrder, Share, seed_of
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.errors import DataError, MedvlpError, Problem, SpecError
from medvlp_core.nn.batch import Batch, StepOutput
from medvlp_core.nn.interfaces import ReportsStatistics
from medvlp_core.runtime.device import autocast, to_device
from medvlp_core.runtime.distributed import all_gather_object, rank, sum_over_ranks, world_size
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.events import Observer, StepDone, StepSkipped, Stopped
from medvlp_core.training.local_step import LocalStep, with_progress
from medvlp_core.training.optim import TimedFreeze, set_learning_rate
from medvlp_core.training.parallel import sync_gradients, warm_up_ddp_buckets
from medvlp_core.training.rows import rows_of_step
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest
from medvlp_core.training.whole_step import contrast_over_step, forward_backward_over_step

#: Names of checkpoints hold a step in seven digits, so that they sort by step.
MAX_STEPS = 9_999_999

#: Code of the error for losses or gradients that are not finite.
NOT_FINITE = "MV601"


@attrs.frozen(kw_only=True)
class StepMetrics:
    """The numbers of one step, the same in every process.

    ``total`` is the weighted sum of the ``losses``; ``grad_norm`` was measured before clipping. ``is_stopping``: a process was
    asked to stop.
    """

    total: float
    losses: dict[str, float]
    statistics: dict[str, float]
    grad_norm: float
    is_stopping: bool


def train(
    state: TrainState,
    pipeline: InputPipeline,
    spec: TrainSpec,
    *,
    forward: nn.Module,
    device: torch.device,
    notify: Observer,
    save: Callable[[bool], None],
    stop: StopRequest,
) -> str | None:
    """Train from ``state.step`` to the end, in place. None at the end, or the signal that asked to stop.

    ``forward`` is the state's model as it is called, maybe wrapped for several processes. ``notify`` gets every event;
    ``save(is_stopping)`` writes a checkpoint of the state.

    Raises:
        MedvlpError: more than ``max_bad_steps`` steps were not finite (MV601); the weights are those of the last good step.
    """
    forward.train()
    order = data_order(spec, pipeline)
    steps = count_steps(spec, order)
    share = Share(rank=rank(), world=world_size(), micro_batches=spec.gradient_accumulation_steps)
    batches = iter(pipeline.training_batches(order, range(state.step, steps), share=share, is_pinned=device.type == "cuda"))
    modules = {name: module for name, module in state.model.named_modules() if isinstance(module, ReportsStatistics)}
    warm_up_ddp_buckets(forward, pipeline.training_batches(order, range(1), share=share), device, spec.precision)
    read_statistics(modules)  # what that pass counted belongs to no step
    contrast = contrast_over_step(state, spec)
    timed_freeze = TimedFreeze.of(state.model, spec.parameters)
    clock = time.perf_counter()

    for step in range(state.step, steps):
        torch.manual_seed(seed_of("masks", spec.seed, step, share.rank))  # and dropout
        learning_rate = set_learning_rate(state.optimizer, step, steps, spec)
        progress = step / steps
        pairs = order.size(step)
        if contrast is None:
            local = forward_backward(state, forward, batches, spec, pairs=pairs, progress=progress, device=device)
        else:
            local = forward_backward_over_step(
                state,
                forward,
                batches,
                spec,
                contrast=contrast,
                share=share,
                pairs=pairs,
                progress=progress,
                device=device,
                forget_statistics=lambda: read_statistics(modules),
            )
        timed_freeze.drop_gradients(progress)
        grad_norm = clip_gradients(state, spec.max_grad_norm)
        metrics = reduce_metrics(local, grad_norm, read_statistics(modules), is_stopping=stop.signal is not None)
        is_applied = apply_update(state, metrics)
        if is_applied and has_changed_weights(metrics):
            hand_rows(state, local, share, seed=seed_of("after", spec.seed, step))
        seconds, clock = time.perf_counter() - clock, time.perf_counter()
        if is_applied:
            notify(step_done(state, local, metrics, steps=steps, epoch=order.epoch(step) + 1, lr=learning_rate, seconds=seconds))
        else:
            skipped = step_skipped(state, local, metrics, steps=steps, pipeline=pipeline)
            notify(skipped)
            if state.bad_steps > spec.max_bad_steps:
                raise not_finite(skipped, state.bad_steps)
        is_due = spec.checkpoint_every_steps is not None and state.step % spec.checkpoint_every_steps == 0
        if state.step == steps or is_due or metrics.is_stopping:
            save(metrics.is_stopping)
            clock = time.perf_counter()
        if metrics.is_stopping:
            signal = first_signal(stop.signal)
            notify(Stopped(step=state.step, signal=signal))
            return signal
    return None


def forward_backward(
    state: TrainState,
    forward: nn.Module,
    batches: Iterator[Batch],
    spec: TrainSpec,
    *,
    pairs: int,
    progress: float,
    device: torch.device,
) -> LocalStep:
    """Forward and backward passes over the micro-batches of one step; leaves the summed gradients in the parameters.

    ``pairs``: image-text pairs of the step, over all processes and micro-batches. ``progress``: share of the steps that are done.
    """
    state.optimizer.zero_grad(set_to_none=True)
    state.save_buffers()
    losses: Tensor | None = None
    names: tuple[str, ...] = ()
    rows: list[int] = []
    after: list[Mapping[str, Tensor]] = []
    data_seconds = 0.0
    for micro_batch in range(spec.gradient_accumulation_steps):
        before = time.perf_counter()
        batch = next(batches)
        data_seconds += time.perf_counter() - before
        rows += batch["record_index"].tolist()
        # Processes are averaged, micro-batches are summed: so every pair counts the same, however unequal these are.
        weight = len(batch["record_index"]) / pairs
        with sync_gradients(forward, is_last=micro_batch + 1 == spec.gradient_accumulation_steps):
            with autocast(device, spec.precision):
                output: StepOutput = forward(with_progress(to_device(batch, device), progress, device))
            state.scaler.scale(output.loss * (weight * world_size())).backward()
        weighted = torch.stack([output.loss, *output.losses.values()]).detach().float() * weight
        after.append(output.rows)
        losses, names = weighted if losses is None else losses + weighted, tuple(output.losses)
        del output  # its predictions would stay in memory during the next micro-batch
    assert losses is not None
    return LocalStep(losses=losses, names=names, rows=tuple(rows), after=tuple(after), pairs=pairs, data_seconds=data_seconds)


def clip_gradients(state: TrainState, max_norm: float | None) -> Tensor:
    """Undo the loss scale and clip to ``max_norm`` (None = no clipping); the norm before that, over all shards. Shape: ()."""
    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), max_norm or math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def reduce_metrics(local: LocalStep, grad_norm: Tensor, statistics: dict[str, Tensor], *, is_stopping: bool) -> StepMetrics:
    """Add up the losses and average the statistics over the processes, in one exchange and one transfer from the device.

    Before the update, so that a step that is not finite changes nothing.
    """
    flag = torch.tensor([float(is_stopping)], device=local.losses.device)
    means = [value.detach().float().reshape(1) / world_size() for value in statistics.values()]
    total, *values, stopping = sum_over_ranks(torch.cat([local.losses, *means, flag])).tolist()
    return StepMetrics(
        total=total,
        losses=dict(zip(local.names, values[: len(local.names)], strict=True)),
        statistics=dict(zip(statistics, values[len(local.names) :], strict=True)),
        grad_norm=grad_norm.item(),
        is_stopping=stopping > 0,
    )


def apply_update(state: TrainState, metrics: StepMetrics) -> bool:
    """Update weights and EMA, and count the step. False = it was not finite: weights, EMA, optimiser and buffers are as before it.

    With a loss scale, gradients that are too large for fp16 are part of the game: the scaler skips the update and halves itself. If
    that has not helped down to a scale below 1, they are no matter of scale.
    """
    scaler = state.scaler
    is_good = math.isfinite(metrics.total) and (
        math.isfinite(metrics.grad_norm) or (scaler.is_enabled() and scaler.get_scale() >= 1.0)
    )
    if is_good:
        scaler.step(state.optimizer)
        if has_changed_weights(metrics):
            state.model.update_followers()
            if state.ema is not None:
                state.ema.update(state.model)
    else:
        state.restore_buffers()
        state.bad_steps += 1
    scaler.update()
    state.step += 1
    return is_good


def has_changed_weights(metrics: StepMetrics) -> bool:
    """Of a step that was applied: else its gradients were too large for fp16, and the scaler left the weights as they were."""
    return math.isfinite(metrics.grad_norm)


def hand_rows(state: TrainState, local: LocalStep, share: Share, *, seed: int) -> None:
    """Hand modules with state of their own (``after_step``) the rows of the whole step, if there are any.

    All processes hand on the same rows and draw from the same ``seed``, so that the state is the same everywhere. It needs no
    rollback: it is not changed before it is certain that the step counts.
    """
    if any(local.after) or local.after_all:
        rows = {**local.after_all, **rows_of_step(local.after, share.sizes(local.pairs))}
        torch.manual_seed(seed)
        state.model.after_step(rows)


def step_done(
    state: TrainState, local: LocalStep, metrics: StepMetrics, *, steps: int, epoch: int, lr: float, seconds: float
) -> StepDone:
    """The event of a step that was applied."""
    return StepDone(
        step=state.step,
        steps=steps,
        epoch=epoch,
        total=metrics.total,
        losses=metrics.losses,
        learning_rate=lr,
        grad_norm=metrics.grad_norm,
        pairs=local.pairs,
        seconds=seconds,
        data_seconds=local.data_seconds,
        bad_steps=state.bad_steps,
        statistics=metrics.statistics,
    )


def step_skipped(state: TrainState, local: LocalStep, metrics: StepMetrics, *, steps: int, pipeline: InputPipeline) -> StepSkipped:
    """The event of a step that was not finite, with the ids of the records of all processes. Every process must ask."""
    rows = itertools.chain.from_iterable(all_gather_object(list(local.rows)))
    records = tuple(pipeline.records("train")[row].id for row in rows)
    return StepSkipped(step=state.step, steps=steps, losses=metrics.losses, grad_norm=metrics.grad_norm, records=records)


def read_statistics(modules: dict[str, ReportsStatistics]) -> dict[str, Tensor]:
    """The statistics of all modules that have some, as ``MODULE.NAME``."""
    return {f"{path}.{name}": value for path, module in modules.items() for name, value in module.statistics().items()}


def first_signal(signal: str | None) -> str:
    """The signal that some process got."""
    found: str = next(one for one in all_gather_object(signal) if one)
    return found


def data_order(spec: TrainSpec, pipeline: InputPipeline) -> DataOrder:
    """Which pairs each step sees.

    Raises:
        SpecError: a step has fewer pairs than micro-batches (MV104).
    """
    slices = world_size() * spec.gradient_accumulation_steps
    if spec.batch_size < slices:
        who = f"{world_size()} processes with {spec.gradient_accumulation_steps} micro-batches each"
        text = f"train.batch_size={spec.batch_size} pairs cannot be shared by {who}"
        raise SpecError(Problem(code="MV104", text=text, hint=f"batch_size counts the pairs of all processes: {slices} or more"))
    count = len(pipeline.records("train"))
    return DataOrder(count=count, batch_size=spec.batch_size, seed=spec.seed, drop_last=spec.drop_last, least=slices)


def count_steps(spec: TrainSpec, order: DataOrder) -> int:
    """How many optimiser steps the run has.

    Raises:
        DataError: the training split does not fill one batch (MV503).
        SpecError: they are more than :data:`MAX_STEPS` (MV104).
    """
    if order.steps_per_epoch == 0:
        problem = Problem(
            code="MV503",
            text=f"the split 'train' has fewer pairs than one batch of {spec.batch_size}",
            hint="lower train.batch_size",
        )
        raise DataError(problem)
    check_length(spec, order.steps_per_epoch)
    if spec.steps is not None:
        return spec.steps
    assert spec.epochs is not None  # TrainSpec: exactly one of the two
    return max(1, round(spec.epochs * order.steps_per_epoch))


def check_length(spec: TrainSpec, steps_per_epoch: int = 1) -> None:
    """Refuse epochs that nobody can wait for, as TrainSpec does with steps.

    An epoch has at least one step, so most are found before the data are known.

    Raises:
        SpecError: the steps are more than :data:`MAX_STEPS` (MV104).
    """
    if (spec.epochs or 0) * steps_per_epoch > MAX_STEPS:
        text = f"train: epochs={spec.epochs:g} is longer than a run can be"
        raise SpecError(Problem(code="MV104", text=text, hint=f"at most {MAX_STEPS} optimiser steps, in all epochs together"))


def not_finite(skipped: StepSkipped, bad_steps: int) -> MedvlpError:
    """The error for too many losses or gradients that are NaN or infinite: the step, the terms to blame and its records."""
    losses, records = skipped.losses, skipped.records
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    what = f"{' and '.join(bad)} not finite" if bad else f"the gradient is not finite (norm {skipped.grad_norm})"
    shown = ", ".join(records[:8]) + (f" and {len(records) - 8} more" if len(records) > 8 else "")
    details = (f"losses: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}", f"records: {shown}")
    hint = "in a new run, begun with init_from: lower train.learning_rate, set train.max_grad_norm, or train in fp32"
    text = f"training stopped at step {skipped.step}: {what}"
    if bad_steps > 1:
        text += f", and {bad_steps - 1} step{'s' if bad_steps > 2 else ''} before it"
    return MedvlpError(Problem(code=NOT_FINITE, text=text, details=details, hint=hint))
