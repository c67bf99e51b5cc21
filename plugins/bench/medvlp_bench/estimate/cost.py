"""Memory and time of a run on given GPUs, from one traced step and the cards' data sheets. Holds no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from medvlp_bench.estimate.cards import GPUS_OF_A_MACHINE, NETWORK, Card
from medvlp_core.data import DataOrder
from medvlp_core.planning import TrainSpec
from medvlp_core.training import count_steps as steps_of

if TYPE_CHECKING:
    from medvlp_bench.estimate.step import Parts
    from medvlp_bench.estimate.trace import Op, StepTrace


@attrs.frozen(kw_only=True)
class Memory:
    """Bytes of one GPU.

    ``kept`` is what the forward pass leaves for the backward pass; ``peak`` is the most that passes need at one time: gradients,
    what is kept, and what operations hold for a moment. ``reserved`` is taken before the first tensor.
    """

    weights: float
    optimizer: float
    ema: float
    batch: float
    gradients: float
    kept: float
    peak: float
    reserved: float

    @property
    def total(self) -> float:
        """What the GPU must have."""
        return self.weights + self.optimizer + self.ema + self.batch + self.peak + self.reserved


@attrs.frozen(kw_only=True)
class Seconds:
    """Parts of one optimiser step. ``exchange`` overlaps with backward passes; ``host`` is what issuing the operations takes."""

    forward: float
    backward: float
    exchange: float
    exchanged_bytes: float
    optimizer: float
    host: float
    waits_for_host: bool
    is_sharded: bool

    @property
    def step(self) -> float:
        """The device works while the host issues and the network sends: the slowest of them counts. A CPU is both at once."""
        if self.is_sharded:
            device = max(self.forward + self.backward, self.exchange) + self.optimizer
        else:
            device = self.forward + max(self.backward, self.exchange) + self.optimizer
        return device + self.host if self.waits_for_host else max(device, self.host)


def pairs_of_a_micro_batch(spec: TrainSpec, gpus: int) -> int:
    """The largest share of a step that a GPU computes at a time.

    Example:
        >>> pairs_of_a_micro_batch(TrainSpec(steps=1, batch_size=100, gradient_accumulation_steps=2), gpus=8)
        7
    """
    return -(-spec.batch_size // (gpus * spec.gradient_accumulation_steps))


def memory_of(parts: Parts, trace: StepTrace, spec: TrainSpec, gpus: int, card: Card) -> Memory:
    """The peak of a step. The optimiser is AdamW: two numbers for each trained one, and a count for each tensor.

    FSDP: beside the shards, weights in no layer are whole, and those of the layer at work and of the next. Gradients of layers are
    whole until they are scattered, two layers at a time; all others until the backward pass ends. Buffers are not divided.
    """
    is_sharded = spec.parallel == "fsdp" and gpus > 1
    share = gpus if is_sharded else 1
    trained, everything = parts.total("trained_bytes"), parts.total("trained_bytes") + parts.total("frozen_bytes")
    if is_sharded:
        parameters = parts.rest.parameters + sum(layer.parameters for layer in parts.layers)
        weights = everything - parameters + parameters / gpus + parts.rest.parameters
        weights += sum(sorted(layer.parameters for layer in parts.layers)[-2:])
        of_layers = trained / gpus + sum(sorted(layer.trained for layer in parts.layers)[-2:])
        gradients, peak = of_layers + parts.rest.trained, trace.peak_without_layers + of_layers
    else:
        weights, gradients = everything, trained
        # In buckets of several processes, or from the pass before, gradients are there all the time. Else they come as the backward
        # pass makes them, while it frees what was kept.
        peak = trace.peak_without_gradients + gradients if gpus > 1 or spec.gradient_accumulation_steps > 1 else trace.peak
    return Memory(
        weights=weights,
        optimizer=2 * trained / share + 4 * parts.total("trained_tensors"),
        ema=trained / share if spec.ema_decay is not None else 0,
        batch=trace.batch_bytes,
        gradients=gradients,
        kept=sum(trace.kept.values()),
        peak=peak,
        reserved=card.reserved,
    )


def seconds_of(parts: Parts, trace: StepTrace, spec: TrainSpec, gpus: int, card: Card) -> Seconds:
    """The time of one optimiser step, operation by operation."""
    forward = sum(seconds_of_op(op, card, spec) for op in trace.ops if not op.is_backward)
    backward = sum(seconds_of_op(op, card, spec) for op in trace.ops if op.is_backward)
    trained, is_sharded = parts.total("trained_bytes"), spec.parallel == "fsdp" and gpus > 1
    share = gpus if is_sharded else 1
    # AdamW reads weight, gradient and two moments and writes three of them; clipping reads gradients twice and writes them.
    touched = 7 + (3 if spec.max_grad_norm is not None else 1) + (3 if spec.ema_decay is not None else 0)
    # Ring: an all-reduce sends (N - 1) / N of the gradients twice, once a step. FSDP in every pass gathers a layer for each of its
    # calls, forward and backward, what is in no layer once, and scatters the gradients.
    shards = spec.gradient_accumulation_steps * (trace.gathered + parts.rest.parameters + trained)
    sent = (gpus - 1) / gpus * (shards if is_sharded else 2 * trained)
    link = card.link if gpus <= GPUS_OF_A_MACHINE else min(card.link, NETWORK)
    return Seconds(
        forward=forward * spec.gradient_accumulation_steps,
        backward=backward * spec.gradient_accumulation_steps,
        exchange=sent / (link * card.link_share),
        exchanged_bytes=sent,
        optimizer=touched * trained / share / (card.bandwidth * card.memory_share),
        host=count_issued(trace, spec) * card.host,
        waits_for_host=not card.is_gpu,
        is_sharded=is_sharded,
    )


def count_issued(trace: StepTrace, spec: TrainSpec) -> int:
    """Operations that the host issues in a step; compiled, elementwise ones are part of others."""
    return spec.gradient_accumulation_steps * sum(not (spec.compile and op.is_pointwise) for op in trace.ops)


def seconds_of_op(op: Op, card: Card, spec: TrainSpec) -> float:
    """The roofline: products at the reachable share of the arithmetic, bytes at that of the memory, whichever takes longer.

    Compiled, an elementwise operation is computed where its neighbours read and write, and moves nothing of its own.
    """
    if spec.compile and op.is_pointwise:
        return 0.0
    rate = card.half if op.is_half else card.full
    return max(op.flops / (rate * card.matmul_share), op.moved / (card.bandwidth * card.memory_share))


def seconds_of_component(trace: StepTrace, component: str, spec: TrainSpec, card: Card) -> float:
    """Both directions of a component, over all passes of a step."""
    return spec.gradient_accumulation_steps * sum(seconds_of_op(op, card, spec) for op in trace.ops if op.component == component)


def count_steps(spec: TrainSpec, pairs: int | None, gpus: int = 1) -> int | None:
    """Optimiser steps of the recipe, as the training loop counts them; None if it has epochs and nobody knows the pairs.

    Example:
        >>> count_steps(TrainSpec(epochs=2, batch_size=10), pairs=35)
        6

    Raises:
        DataError: the pairs do not fill one batch (MV503).
    """
    if spec.steps is not None:
        return spec.steps
    if pairs is None:
        return None
    least = gpus * spec.gradient_accumulation_steps
    order = DataOrder(count=pairs, batch_size=spec.batch_size, seed=spec.seed, drop_last=spec.drop_last, least=least)
    return steps_of(spec, order)
