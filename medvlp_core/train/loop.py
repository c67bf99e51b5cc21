"""The training loop, to be read top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from medvlp_core.batch import ImageTextBatch, StepOutput
from medvlp_core.blocks import TrainSpec
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.device import autocast, to_device
from medvlp_core.errors import DataError, MedvlpError, Problem, SpecError
from medvlp_core.model import ComposedModel
from medvlp_core.train.events import Observer, StepDone
from medvlp_core.train.optim import learning_rate_at, make_optimizer

#: Names of checkpoints hold a step in seven digits, so that they sort by step.
MAX_STEPS = 9_999_999

#: Code of the error for a loss or gradient that is not finite.
NOT_FINITE = "MV601"


def train(
    model: ComposedModel,
    pipeline: InputPipeline,
    spec: TrainSpec,
    *,
    device: torch.device,
    notify: Observer,
    save: Callable[[int], None],
) -> None:
    """Train ``model`` in place. ``notify`` gets a :class:`StepDone` each step; ``save(step)`` writes a checkpoint.

    Raises:
        MedvlpError: a loss or the gradient is not finite; the weights are those of the last good step.
    """
    torch.manual_seed(spec.seed)  # masks and dropout
    model.to(device).train()
    loader = pipeline.loader("train", batch_size=spec.batch_size, is_training=True, seed=spec.seed, workers=spec.workers)
    steps = count_steps(spec, len(loader))
    optimizer = make_optimizer(model, spec)
    # fp16 gradients underflow without a loss scale; otherwise the scaler does nothing.
    scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
    clock = time.perf_counter()

    for step, (epoch, batch) in zip(range(steps), endless(loader), strict=False):
        learning_rate = learning_rate_at(step, steps, peak=spec.learning_rate, warmup_fraction=spec.warmup_fraction)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        with autocast(device, spec.precision):
            output: StepOutput = model(to_device(batch, device))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(output.loss).backward()
        scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm or math.inf)

        # One transfer from the device for all numbers, and before the update, so that a bad step changes nothing.
        total, norm, *terms = torch.stack([output.loss, grad_norm, *output.losses.values()]).tolist()
        losses = dict(zip(output.losses, terms, strict=True))
        if not math.isfinite(total) or not (math.isfinite(norm) or scaler.is_enabled()):
            raise not_finite(step + 1, losses, norm, batch, pipeline)
        scaler.step(optimizer)
        scaler.update()

        seconds, clock = time.perf_counter() - clock, time.perf_counter()
        notify(
            StepDone(
                step=step + 1,
                steps=steps,
                epoch=epoch,
                total=total,
                losses=losses,
                learning_rate=learning_rate,
                grad_norm=norm,
                pairs=len(batch.image),
                seconds=seconds,
            )
        )
        is_last = step + 1 == steps
        if is_last or (spec.checkpoint_every_steps and (step + 1) % spec.checkpoint_every_steps == 0):
            save(step + 1)


def count_steps(spec: TrainSpec, steps_per_epoch: int) -> int:
    """How many optimiser steps the run has.

    Raises:
        DataError: the training split does not fill one batch (MV503).
        SpecError: they are more than :data:`MAX_STEPS` (MV104).
    """
    if steps_per_epoch == 0:
        problem = Problem(
            code="MV503",
            text=f"the split 'train' has fewer pairs than one batch of {spec.batch_size}",
            hint="lower train.batch_size",
        )
        raise DataError(problem)
    check_length(spec, steps_per_epoch)
    if spec.steps is not None:
        return spec.steps
    assert spec.epochs is not None  # TrainSpec: exactly one of the two
    return max(1, round(spec.epochs * steps_per_epoch))


def check_length(spec: TrainSpec, steps_per_epoch: int = 1) -> None:
    """Refuse epochs that nobody can wait for, as TrainSpec does with steps.

    An epoch has at least one step, so most are found before the data are known.

    Raises:
        SpecError: the steps are more than :data:`MAX_STEPS` (MV104).
    """
    if (spec.epochs or 0) * steps_per_epoch > MAX_STEPS:
        text = f"train: epochs={spec.epochs:g} is longer than a run can be"
        raise SpecError(Problem(code="MV104", text=text, hint=f"at most {MAX_STEPS} optimiser steps, in all epochs together"))


def endless(loader: Iterable[ImageTextBatch]) -> Iterator[tuple[int, ImageTextBatch]]:
    """Epoch (from 1) and batch, epoch after epoch."""
    epoch = 1
    while True:
        for batch in loader:
            yield epoch, batch
        epoch += 1


def not_finite(
    step: int, losses: dict[str, float], grad_norm: float, batch: ImageTextBatch, pipeline: InputPipeline
) -> MedvlpError:
    """The error for a loss or gradient that is NaN or infinite: the step, the terms to blame and the records of the batch."""
    bad = [name for name, value in losses.items() if not math.isfinite(value)]
    records = pipeline.records("train")
    ids = [records[index].id for index in batch.record_index.tolist()]
    what = f"{' and '.join(bad)} not finite" if bad else f"the gradient is not finite (norm {grad_norm})"
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    details = (f"losses: {', '.join(f'{name} {value:.4g}' for name, value in losses.items())}", f"records: {shown}")
    hint = "lower train.learning_rate, set train.clip_norm, or train in fp32; the last checkpoint is not affected"
    return MedvlpError(Problem(code=NOT_FINITE, text=f"training stopped at step {step}: {what}", details=details, hint=hint))
