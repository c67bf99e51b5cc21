"""Times the contenders of a benchmark against each other and against the floor of the machine.

All contenders of a shape take turns, a pass each round, so that a drift of the machine hits all alike; the ratio to the baseline is
the median over rounds of the ratio within a round. A pass is a forward and a backward pass, each on a clock of its own. Inputs
change from pass to pass, so that no cache still holds them. The gradient of the output is made beforehand.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import attrs
import numpy as np
import torch
from torch import Tensor

from medvlp_core.kernels.benchmark import DIRECTIONS, Contender, Inputs, KernelBenchmark, Shape, attempt
from medvlp_core.kernels.machine import Clock, HostClock, Rates, clock_for, on_device

#: Twice the cache of a large GPU (50 MB): copies of the inputs together are at least that large.
GPU_ROTATION_BYTES = 100 * 2**20
#: Rounds by default, and how long a contender may take at a shape before it gets fewer (three at least).
ROUNDS = {"cpu": 7, "cuda": 50}
SECONDS_FOR_A_CONTENDER = 5.0
FEWEST_ROUNDS = 3
WARM_UPS = {"cpu": 1, "cuda": 5}


@attrs.frozen(kw_only=True)
class Row:
    """A contender at a shape in a direction. Without a time ``reason`` says why."""

    op: str
    shape: Shape
    contender: str
    direction: str
    is_ours: bool = False
    is_same_op: bool = True
    times: tuple[float, ...] = ()
    floor: float = math.nan
    ratio: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    reason: str = ""

    def quantile(self, share: float) -> float:
        """A quantile of the times, in seconds; 0.5 is the median."""
        return float(np.quantile(self.times, share))

    @property
    def share_of_floor(self) -> float:
        """Floor over median: 1 is as fast as the device can."""
        return self.floor / self.quantile(0.5)


def floor_of(benchmark: KernelBenchmark, shape: Shape, direction: str, dtype: torch.dtype, rates: Rates) -> float:
    """The floor in seconds; both directions in turn have the sum of theirs."""
    parts = ("forward", "backward") if direction == "both" else (direction,)
    return sum(rates.floor(benchmark.work(shape, part, dtype.itemsize)) for part in parts)


# --------------------------------------------------------------------------------------------------------------------- measure


@attrs.define(kw_only=True)
class _Entry:
    """A contender that takes part at a shape: its functions, one for each copy of the inputs, and its times by round."""

    contender: Contender
    calls: list[Callable[[], Tensor]]
    with_backward: bool
    rounds: int = 0
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    forward: list[float] = attrs.field(factory=list)
    backward: list[float] = attrs.field(factory=list)

    def times(self, direction: str) -> list[float]:
        """The times in a direction, by round."""
        if direction == "both":
            return [sum(pair) for pair in zip(self.forward, self.backward, strict=False)]
        return self.forward if direction == "forward" else self.backward


def measure(
    benchmark: KernelBenchmark,
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype,
    rates: Rates,
    *,
    directions: Sequence[str] = DIRECTIONS,
    rounds: int | None = None,
    contenders: Sequence[Contender] | None = None,
    skipped: Mapping[tuple[str, str, str], str] | None = None,
    clock: Clock | None = None,
    on_shape: Callable[[Shape], None] | None = None,
) -> list[Row]:
    """Time all contenders at all shapes; ``skipped`` gives reasons against some, by op, shape and contender."""
    able = contenders or benchmark.contenders
    rows: list[Row] = []
    for shape in shapes:
        if on_shape is not None:
            on_shape(shape)
        reasons = {one.name: "; ".join(one.unsupported_reasons(device, dtype, shape)) for one in able}
        reasons |= {
            name: why for (op, letter, name), why in (skipped or {}).items() if (op, letter) == (benchmark.op, shape.letter)
        }
        with on_device(device):
            copies = _copies(benchmark, shape, device, dtype)
            entries = {}
            for one in able:
                if not reasons[one.name]:
                    entries[one.name], reasons[one.name] = attempt(partial(_warmed_up, one, copies, device, directions, rounds))
            _run_rounds([one for one in entries.values() if one is not None], copies, clock or clock_for(device))
        for direction in directions:
            floor = floor_of(benchmark, shape, direction, dtype, rates)
            for one in able:
                if direction == "forward" or one.has_backward:
                    row = Row(op=benchmark.op, shape=shape, contender=one.name, direction=direction, is_ours=one.is_ours,
                              is_same_op=one.is_same_op, floor=floor, reason=reasons[one.name])  # fmt: skip
                    rows.append(_filled(row, entries.get(one.name), entries.get(benchmark.baseline)))
        del copies, entries
        gc.collect()
    return rows


def _filled(row: Row, entry: _Entry | None, baseline: _Entry | None) -> Row:
    if entry is None:
        return row
    times = entry.times(row.direction)
    return attrs.evolve(
        row,
        times=tuple(times),
        ratio=None if baseline is None else paired_ratio(baseline.times(row.direction), times),
        saved_bytes=entry.saved_bytes,
        peak_bytes=entry.peak_bytes,
    )


def paired_ratio(baseline: Sequence[float], times: Sequence[float]) -> float:
    """How many times as fast as the baseline: the median over the rounds that both took part in.

    Example:
        >>> paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 2.0])
        2.0
    """
    return float(np.median([before / after for before, after in zip(baseline, times, strict=False)]))


def geometric_mean(rows: Sequence[Row]) -> float | None:
    """Of the ratios over shapes; None without any."""
    ratios = [row.ratio for row in rows if row.ratio is not None]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def _copies(benchmark: KernelBenchmark, shape: Shape, device: torch.device, dtype: torch.dtype) -> list[Inputs]:
    first = benchmark.make_inputs(shape, device, dtype, 0)
    number = max(2, -(-GPU_ROTATION_BYTES // max(1, first.bytes))) if device.type == "cuda" else 2
    return [first, *(benchmark.make_inputs(shape, device, dtype, seed) for seed in range(1, min(number, 64)))]


def _warmed_up(
    contender: Contender, copies: Sequence[Inputs], device: torch.device, directions: Sequence[str], rounds: int | None
) -> _Entry:
    """Call a contender some times before it counts: compile, fill pools, measure memory, and see how long it takes."""
    with_backward = contender.has_backward and tuple(directions) != ("forward",)
    entry = _Entry(contender=contender, calls=[contender.make(one) for one in copies], with_backward=with_backward)
    for index in range(WARM_UPS.get(device.type, 1)):
        _pass(entry, copies, index, HostClock())
    entry.saved_bytes = _saved_bytes(entry.calls[0], copies[0]) if contender.has_backward else None
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    start = time.perf_counter()
    _pass(entry, copies, 0, HostClock())
    if device.type == "cuda":
        torch.cuda.synchronize()
        entry.peak_bytes = torch.cuda.max_memory_allocated() - before
    took = time.perf_counter() - start
    wanted = ROUNDS.get(device.type, 7) if rounds is None else rounds
    entry.rounds = min(wanted, max(FEWEST_ROUNDS, int(SECONDS_FOR_A_CONTENDER / max(took, 1e-9))))
    return entry


def _run_rounds(entries: Sequence[_Entry], copies: Sequence[Inputs], clock: Clock) -> None:
    passes = itertools.count()  # each takes the next copy of the inputs
    for index in range(max((entry.rounds for entry in entries), default=0)):
        start = index % len(entries)
        turn = [entry for entry in (*entries[start:], *entries[:start]) if index < entry.rounds]
        readers = [(entry, *_pass(entry, copies, next(passes), clock)) for entry in turn]
        clock.finish()
        for entry, forward, backward in readers:
            entry.forward.append(forward())
            if backward is not None:
                entry.backward.append(backward())


def _pass(
    entry: _Entry, copies: Sequence[Inputs], index: int, clock: Clock
) -> tuple[Callable[[], float], Callable[[], float] | None]:
    inputs = copies[index % len(copies)]
    out, forward = clock.time(entry.calls[index % len(copies)])
    if not entry.with_backward:
        return forward, None
    tensors = list(inputs.tensors.values())
    _, backward = clock.time(lambda: torch.autograd.grad(out, tensors, inputs.grad))
    return forward, backward


def _saved_bytes(call: Callable[[], Tensor], inputs: Inputs) -> int:
    """What a forward pass keeps for the backward pass, each storage once, inputs not counted."""
    kept: list[Tensor] = []  # holding them keeps an address from being used twice

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        call()
    own = {x.untyped_storage().data_ptr() for x in inputs.tensors.values()}
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    return sum(size for address, size in storages.items() if address not in own)
