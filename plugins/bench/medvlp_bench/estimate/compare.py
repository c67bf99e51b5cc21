"""The estimate against a step that really runs, on this machine's CPU: what torch counts, allocates and takes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import attrs
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from medvlp_bench.estimate.cost import memory_of, seconds_of
from medvlp_bench.estimate.estimate import measured_cpu
from medvlp_bench.estimate.fake import fake_model
from medvlp_bench.estimate.step import build_for_estimate, count_parts, follow, full_batch
from medvlp_bench.estimate.trace import CPU_ATTENTION, unprepare
from medvlp_core.cli import columns, number
from medvlp_core.model import ComposedModel
from medvlp_core.nn import Batch
from medvlp_core.planning import ModelPlan, TrainSpec
from medvlp_core.training import TrainState, prepare

#: More pairs would tell nothing new, and paper-scale models take seconds for each.
CHECKED_PAIRS = 8

_FORWARD_ENDS = "medvlp: the forward pass ends"


@attrs.frozen(kw_only=True)
class Measured:
    """What one real step computed (operations), held (bytes) and took (seconds)."""

    forward_flops: int
    backward_flops: int
    optimizer: int
    gradients: int
    kept: int
    peak: int
    seconds: float


def check_lines(plan: ModelPlan) -> Iterator[str]:
    """Trace a step of at most :data:`CHECKED_PAIRS` pairs, run the same, and put both beside each other."""
    spec = attrs.evolve(
        plan.train, precision="fp32", gradient_accumulation_steps=1, batch_size=min(plan.train.batch_size, CHECKED_PAIRS)
    )
    built = build_for_estimate(plan)
    parts = count_parts(built)
    measured = measure(built, spec)
    trace = follow(fake_model(built), spec, spec.batch_size, is_gpu=False)
    card = measured_cpu(needs_half=False)
    memory, seconds = memory_of(parts, trace, spec, 1, card), seconds_of(parts, trace, spec, 1, card)
    yield f"recipe {plan.name}: a step of {spec.batch_size} pairs in fp32 on the CPU, estimated and run"
    yield ""
    rows = (
        ("forward, operations", trace.flops(is_backward=False), measured.forward_flops),
        ("backward, operations", trace.flops(is_backward=True), measured.backward_flops),
        ("optimiser, bytes", round(memory.optimizer), measured.optimizer),
        ("gradients, bytes", round(memory.gradients), measured.gradients),
        ("kept for backward, bytes", round(memory.kept), measured.kept),
        ("activations and gradients, peak", round(memory.peak), measured.peak),
        ("a step, microseconds", round(1e6 * seconds.step), round(1e6 * measured.seconds)),
    )
    table = [("", "estimated", "measured", "error")]
    table += [(name, number(one), number(other), f"{one / other - 1:+.2%}") for name, one, other in rows]
    widths = [max(len(row[place]) for row in table) for place in range(4)]
    yield from columns([(row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))) for row in table])
    yield ""
    yield "  memory: what torch's allocator gives out; time: at the speed of large products and copies, which no step reaches"


def measure(model: ComposedModel, spec: TrainSpec) -> Measured:
    """Run some steps: to count operations, to follow the allocator, and for the clock. The model stays as it was."""
    model.train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    batch = full_batch(model.plan, spec.batch_size)
    for images in batch.values():
        if images.is_floating_point():
            images.normal_()
    prepare(model, attrs.evolve(spec, compile=False))
    state = TrainState.fresh(model, attrs.evolve(spec, ema_decay=None), torch.device("cpu"))
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    torch.manual_seed(spec.seed)  # for the masks, as the trace has it
    with counter:
        output = model(batch)
        forward_flops = counter.get_total_flops()
        output.loss.backward()
    gradients = sum(one.grad.untyped_storage().nbytes() for one in model.parameters() if one.grad is not None)
    state.optimizer.step()
    del output
    state.optimizer.zero_grad(set_to_none=True)
    kept, peak = allocated(model, batch, spec)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    seconds = min(_timed_step(model, batch, state) for _ in range(3))
    unprepare(model)
    model.load_state_dict(weights)
    return Measured(
        forward_flops=forward_flops,
        backward_flops=counter.get_total_flops() - forward_flops,
        optimizer=sum(one.numel() * one.element_size() for one in state.optimizer_tensors().values()),
        gradients=gradients,
        kept=kept,
        peak=peak,
        seconds=seconds,
    )


def _timed_step(model: ComposedModel, batch: Batch, state: TrainState) -> float:
    start = time.perf_counter()
    model(batch).loss.backward()
    state.optimizer.step()
    seconds = time.perf_counter() - start
    state.optimizer.zero_grad(set_to_none=True)
    return seconds


def allocated(model: ComposedModel, batch: Batch, spec: TrainSpec) -> tuple[int, int]:
    """Bytes that torch's allocator has given out beside what was there: at the end of the forward pass, and at most."""
    torch.manual_seed(spec.seed)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = model(batch)
        with record_function(_FORWARD_ENDS):
            pass
        output.loss.backward()
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    assert results is not None
    kept = peak = now = 0
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
        elif event.name() == _FORWARD_ENDS:
            kept = now
    return kept, peak
