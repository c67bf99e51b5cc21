"""An estimate as lines of text. Holds no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from medvlp_bench.estimate.cards import GIB, MIB
from medvlp_bench.estimate.cost import count_issued, seconds_of_component
from medvlp_core.cli import columns, number

if TYPE_CHECKING:
    from medvlp_bench.estimate.estimate import Estimate


def lines(found: Estimate) -> Iterator[str]:
    """All sections."""
    spec = found.plan.train
    where = f"{found.gpus} x {found.card.name} ({found.card.about})"
    yield f"recipe {found.plan.name} on {where}, {spec.precision}: an estimate, nothing was trained"
    micro_batches = f", in {spec.gradient_accumulation_steps} micro-batches" if spec.gradient_accumulation_steps > 1 else ""
    most = "at most " if spec.batch_size % (found.gpus * spec.gradient_accumulation_steps) else ""
    yield f"a step of {spec.batch_size} pairs is computed {most}{found.trace.pairs} pairs at a time{micro_batches}"
    yield ""
    yield from component_lines(found)
    yield ""
    yield from memory_lines(found)
    yield ""
    yield from time_lines(found)


def component_lines(found: Estimate) -> Iterator[str]:
    """Weights, operations and memory, component by component. Operations are those of a whole step, on all GPUs."""
    times = found.plan.train.batch_size / found.trace.pairs  # micro-batches and GPUs may get unequal shares: the largest is traced
    everything = max(1, found.trace.flops())
    unit, size = ("TFLOP", 1e12) if times * everything > 1e12 else ("GFLOP", 1e9)
    heads = ("component", "trained", "frozen", "forward", "backward", "share", "kept", "time")
    rows = [heads, ("", "", "", unit, unit, "", "MiB", "ms")]
    for path, weights in found.parts.weights.items():
        forward, backward = (found.trace.flops(path, is_backward=way) for way in (False, True))
        rows.append(
            (
                path,
                number(weights.trained),
                number(weights.frozen),
                f"{times * forward / size:.2f}",
                f"{times * backward / size:.2f}",
                f"{(forward + backward) / everything:.1%}",
                f"{found.trace.kept.get(path, 0) / MIB:,.1f}",
                f"{1e3 * seconds_of_component(found.trace, path, found.plan.train, found.card):.1f}",
            )
        )
    rows.append(
        (
            "total",
            number(found.parts.total("trained")),
            number(found.parts.total("frozen")),
            f"{times * found.trace.flops(is_backward=False) / size:.2f}",
            f"{times * found.trace.flops(is_backward=True) / size:.2f}",
            "",
            f"{found.memory.kept / MIB:,.1f}",
            f"{1e3 * (found.seconds.forward + found.seconds.backward):.1f}",
        )
    )
    yield from _right(rows)


def memory_lines(found: Estimate) -> Iterator[str]:
    """Each GPU's memory."""
    memory = found.memory
    yield "memory of each GPU, GiB" if found.card.is_gpu else "memory, GiB"
    named = {
        "weights": memory.weights,
        "optimiser": memory.optimizer,
        "EMA of weights": memory.ema,
        "batch": memory.batch,
        "activations and gradients, peak": memory.peak,
        "  of these gradients": memory.gradients,
        "  of these kept for backward": memory.kept,
        "before the first tensor": memory.reserved,
        "total": memory.total,
        "there is": found.card.memory,
    }
    yield from _right([(name, f"{value / GIB:.2f}") for name, value in named.items() if value > 0])


def time_lines(found: Estimate) -> Iterator[str]:
    """A step, and the run."""
    card, seconds, spec = found.card, found.seconds, found.plan.train
    yield (
        f"time of a step, ms, at {card.matmul_share:.0%} of {card.half / 1e12:.3g} (fp32 {card.full / 1e12:.3g}) TFLOP/s "
        f"and {card.memory_share:.0%} of {card.bandwidth / 1e9:,.0f} GB/s"
    )
    named = {
        "forward": seconds.forward,
        "backward": seconds.backward,
        f"exchange of {seconds.exchanged_bytes / GIB:.2f} GiB, beside it": seconds.exchange,
        "optimiser": seconds.optimizer,
        f"issuing {number(count_issued(found.trace, spec))} operations": seconds.host,
        "a step": seconds.step,
    }
    if found.gpus == 1:
        named = {name: value for name, value in named.items() if not name.startswith("exchange")}
    yield from _right([(name, f"{1e3 * value:.1f}") for name, value in named.items()])
    flops = found.trace.flops() * spec.batch_size / (found.trace.pairs * found.gpus)
    used = flops / seconds.step / (card.full if spec.precision == "fp32" else card.half)
    whose = "data sheet's" if card.is_gpu else "measured"
    yield f"  {spec.batch_size / seconds.step:,.0f} pairs/s, if data come as fast; {used:.0%} of the {whose} FLOP/s"
    yield ""
    if found.steps is None:
        yield f"the run: {spec.epochs:g} epochs of unknown length ({found.why_unknown}): give the training pairs with --pairs N"
    elif spec.steps is not None:
        yield f"the run: {number(found.steps)} steps, {duration(found.steps * seconds.step)}"
    elif found.pairs is not None:
        what = f"{spec.epochs:g} epochs of {number(found.pairs)} pairs are {number(found.steps)} steps"
        yield f"the run: {what}, {duration(found.steps * seconds.step)}"


def estimate_data(found: Estimate) -> dict[str, Any]:
    """An estimate as plain data: counts, bytes of one GPU, FLOPs of a step on all GPUs, seconds."""
    times = found.plan.train.batch_size / found.trace.pairs
    components = [
        {
            "path": path,
            "trained": weights.trained,
            "frozen": weights.frozen,
            "forward_flops": times * found.trace.flops(path, is_backward=False),
            "backward_flops": times * found.trace.flops(path, is_backward=True),
            "kept_bytes": found.trace.kept.get(path, 0),
            "seconds": seconds_of_component(found.trace, path, found.plan.train, found.card),
        }
        for path, weights in found.parts.weights.items()
    ]
    memory = {**attrs.asdict(found.memory), "total": found.memory.total, "available": found.card.memory}
    return {
        "gpu": {"name": found.card.name, "count": found.gpus},
        "pairs_at_a_time": found.trace.pairs,
        "components": components,
        "memory_bytes": memory,
        "seconds": {**attrs.asdict(found.seconds), "step": found.seconds.step},
        "steps": found.steps,
        "run_seconds": found.steps * found.seconds.step if found.steps is not None else None,
    }


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(59), duration(3700), duration(200_000)
        ('59 s', '1.0 hours', '2.3 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _right(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with the first column to the left and numbers to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return columns([(row[0], *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))) for row in rows])
