"""The training loop, to be read top to bottom.

A step is a function of the state before it and of its number: the pairs, their crops, masks and dropout are drawn from seeds that
the number gives (medvlp_core.data.order). So a run that is killed and goes on from a checkpoint ends with the same bits.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from medvlp_core.data.order import DataOrder, Share, seed_of
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.errors import DataError, MedvlpError, Problem, SpecError
from medvlp_core.nn.batch import StepOutput
from medvlp_core.nn.interfaces import ReportsStatistics
from medvlp_core.runtime.device import autocast, to_device
from medvlp_core.runtime.distributed import all_gather_object, rank, sum_over_ranks, world_size
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.events import Observer, StepDone, StepSkipped, Stopped
from medvlp_core.training.optim import learning_rate_at
from medvlp_core.training.parallel import buffers_kept
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest

#: Names of checkpoints hold a step in seven digits, so that they sort by step.
MAX_STEPS = 9_999_999

#: Code of the error for losses or gradients that are not finite.
NOT_FINITE = "MV601"


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

    ``forward`` is the state's model as it is called, maybe wrapped for several processes. ``notify`` gets every event, ``save``
    writes a checkpoint of the state, and is told whether that is because the run was asked to stop.

    Raises:
        MedvlpError: more than ``max_bad_steps`` steps were not finite (MV601); the weights are those of the last good step.
    """
    forward.train()
    order = data_order(spec, pipeline)
    steps = count_steps(spec, order)
    share = Share(rank=rank(), world=world_size(), micro_batches=spec.gradient_accumulation_steps)
    batches = iter(pipeline.training_batches(order, range(state.step, steps), share=share, is_pinned=device.type == "cuda"))
    reporters = {name: module for name, module in state.model.named_modules() if isinstance(module, ReportsStatistics)}
    warm_up_ddp_buckets(forward, pipeline, order, share, device, spec.precision)
    statistics_of(reporters)  # what that pass used is of no step
    clock = time.perf_counter()

    while state.step < steps:
        step = state.step
        torch.manual_seed(seed_of("masks", spec.seed, step, share.rank))  # and dropout
        learning_rate = learning_rate_at(step, steps, spec)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        state.optimizer.zero_grad(set_to_none=True)
        state.keep_buffers()
        pairs = order.size(step)
        data_seconds, sums, rows = 0.0, None, []

        for part in range(spec.gradient_accumulation_steps):
            before = time.perf_counter()
            batch = next(batches)
            data_seconds += time.perf_counter() - before
            rows += batch.record_index.tolist()
            # Processes are averaged, parts are summed: so every pair counts the same, however unequal the parts are.
            part_of_step = len(batch.image) / pairs
            with last_part_synchronises(forward, is_last=part + 1 == spec.gradient_accumulation_steps):
                with autocast(device, spec.precision):
                    output: StepOutput = forward(to_device(batch, device))
                state.scaler.scale(output.loss * (part_of_step * share.world)).backward()
            numbers = torch.stack([output.loss, *output.losses.values()]).detach().float() * part_of_step
            sums, names = numbers if sums is None else sums + numbers, list(output.losses)
            del output  # predictions and ports of this pass would stay in memory during the next one

        state.scaler.unscale_(state.optimizer)
        grad_norm = norm_of(nn.utils.clip_grad_norm_(state.model.parameters(), spec.max_grad_norm or math.inf))
        # One transfer from the device for all numbers, and before the update, so that a bad step changes nothing.
        is_asked = torch.tensor([float(stop.signal is not None)], device=device)
        told = statistics_of(reporters)
        assert sums is not None
        numbers = torch.cat([sums, *(value.detach().float().reshape(1) / share.world for value in told.values()), is_asked])
        total, *terms, asked = sum_over_ranks(numbers).tolist()
        norm = grad_norm.item()
        losses = dict(zip(names, terms, strict=False))
        statistics = dict(zip(told, terms[len(losses) :], strict=True))
        # With a loss scale, gradients that are too large for fp16 are part of the game: the scaler leaves the update out and
        # halves itself. If that has not helped down to a scale below 1, they are no matter of scale.
        is_good = math.isfinite(total) and (math.isfinite(norm) or (state.scaler.is_enabled() and state.scaler.get_scale() >= 1.0))
        if is_good:
            state.scaler.step(state.optimizer)
            if state.ema is not None:
                state.ema.update(state.model)
        state.scaler.update()
        state.step += 1
        if not is_good:
            state.restore_buffers()
            state.bad_steps += 1
            all_rows = itertools.chain.from_iterable(all_gather_object(rows))
            records = tuple(pipeline.records("train")[row].id for row in all_rows)
            notify(StepSkipped(step=state.step, steps=steps, losses=losses, grad_norm=norm, records=records))
            if state.bad_steps > spec.max_bad_steps:
                raise not_finite(state, losses, norm, records)

        seconds, clock = time.perf_counter() - clock, time.perf_counter()
        if is_good:
            notify(
                StepDone(
                    step=state.step,
                    steps=steps,
                    epoch=order.epoch(step) + 1,
                    total=total,
                    losses=losses,
                    learning_rate=learning_rate,
                    grad_norm=norm,
                    pairs=pairs,
                    seconds=seconds,
                    data_seconds=data_seconds,
                    bad_steps=state.bad_steps,
                    statistics=statistics,
                )
            )
        is_last = state.step == steps
        is_due = spec.checkpoint_every_steps is not None and state.step % spec.checkpoint_every_steps == 0
        if is_last or is_due or asked:
            save(bool(asked))
            clock = time.perf_counter()
        if asked:
            signal = first_signal(stop.signal)
            notify(Stopped(step=state.step, signal=signal))
            return signal
    return None


def warm_up_ddp_buckets(
    forward: nn.Module, pipeline: InputPipeline, order: DataOrder, share: Share, device: torch.device, precision: str
) -> None:
    """Let DistributedDataParallel order its buckets before the first step, from a pass whose gradients nobody uses.

    It does so once, after the first backward pass. The order decides how sums over three or more processes are rounded: a run
    that goes on would have the first order where the run that was never stopped has the second.
    """
    if not isinstance(forward, DistributedDataParallel):
        return
    torch.manual_seed(0)
    batch = next(iter(pipeline.training_batches(order, range(1), share=share)))
    with buffers_kept(forward):
        with autocast(device, precision):
            loss = forward(to_device(batch, device)).loss
        loss.backward()


def statistics_of(reporters: dict[str, ReportsStatistics]) -> dict[str, Tensor]:
    """The statistics of all modules that have some, as ``MODULE.NAME``."""
    return {f"{path}.{name}": value for path, module in reporters.items() for name, value in module.statistics().items()}


def last_part_synchronises(forward: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Gradients of several parts are summed up first and exchanged between processes once."""
    no_sync: Any = getattr(forward, "no_sync", None)
    return nullcontext() if is_last or no_sync is None else no_sync()


def norm_of(norm: Tensor) -> Tensor:
    """The norm over all shards."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def first_signal(signal: str | None) -> str:
    """The signal that some process got."""
    return next(one for one in all_gather_object(signal) if one)


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


def not_finite(state: TrainState, losses: dict[str, float], grad_norm: float, records: tuple[str, ...]) -> MedvlpError:
    """The error for too many losses or gradients that are NaN or infinite: the step, the terms to blame and its records."""
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    what = f"{' and '.join(bad)} not finite" if bad else f"the gradient is not finite (norm {grad_norm})"
    shown = ", ".join(records[:8]) + (f" and {len(records) - 8} more" if len(records) > 8 else "")
    details = (f"losses: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}", f"records: {shown}")
    hint = "in a new run, begun with init_from: lower train.learning_rate, set train.max_grad_norm, or train in fp32"
    text = f"training stopped at step {state.step}: {what}"
    if state.bad_steps > 1:
        text += f", and {state.bad_steps - 1} step{'s' if state.bad_steps > 2 else ''} before it"
    return MedvlpError(Problem(code=NOT_FINITE, text=text, details=details, hint=hint))
