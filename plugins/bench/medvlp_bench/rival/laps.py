"""Rounds of a loop, by how much one loop is slower than another over them, and the whole result."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import attrs
import torch

from medvlp_core.training import Event, StepDone


@attrs.frozen(kw_only=True)
class Lap:
    """A round of one loop: counted steps, seconds on the wall, of this process's CPU time, and until there were data."""

    steps: int
    seconds: float
    cpu_seconds: float
    data_seconds: float


@attrs.frozen(kw_only=True)
class Overhead:
    """By how much the loop is slower than the rival, as a share; the true median is in ``low`` to ``high`` with ``confidence``.

    Example:
        >>> Overhead.of([2.0, 2.0, 2.0], [1.0, 2.0, 4.0])
        Overhead(median=0.0, low=-0.5, high=1.0, confidence=0.75)
    """

    median: float
    low: float
    high: float
    confidence: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Overhead:
        """From rounds side by side. An interval between two order statistics: of 95 % or more, if there are six."""
        shares = sorted(one / other - 1.0 for one, other in zip(ours, theirs, strict=True))
        count = len(shares)
        outside, tail = 0, 0.5**count
        while outside < (count - 1) // 2 and tail + math.comb(count, outside + 1) * 0.5**count <= 0.025:
            outside += 1
            tail += math.comb(count, outside) * 0.5**count
        low, high, middle = shares[outside], shares[count - 1 - outside], statistics.median(shares)
        return cls(median=middle, low=low, high=high, confidence=1.0 - 2.0 * tail)


@attrs.frozen(kw_only=True)
class MaskedPass:
    """The image encoder over the images of a step, forward and backward: with a share of the patches masked, and with none."""

    masked_share: float
    drops_masked: bool
    seconds: float
    seconds_unmasked: float


@attrs.frozen(kw_only=True)
class Timing:
    """Both loops in one setting (compiled or not), round by round; ``masked_pass`` is None if nothing of the image is masked."""

    is_compiled: bool
    pairs_per_step: int
    ours: tuple[Lap, ...]
    rival: tuple[Lap, ...]
    masked_pass: MaskedPass | None = None

    @property
    def overhead(self) -> Overhead:
        """Of the time on the wall."""
        return Overhead.of([lap.seconds for lap in self.ours], [lap.seconds for lap in self.rival])

    @property
    def cpu_overhead(self) -> Overhead:
        """Of the CPU time: other programs on the machine disturb it less."""
        return Overhead.of([lap.cpu_seconds for lap in self.ours], [lap.cpu_seconds for lap in self.rival])

    @property
    def saved_by_masking(self) -> float:
        """By which share a step is shorter than one whose image encoder sees all patches where it now sees the masked view."""
        assert self.masked_pass is not None
        saved = self.masked_pass.seconds_unmasked - self.masked_pass.seconds
        return saved / (statistics.median(lap.seconds / lap.steps for lap in self.ours) + saved)

    def speeds(self, laps: Sequence[Lap]) -> list[float]:
        """Pairs a second of each round, slowest first."""
        return sorted(self.pairs_per_step * lap.steps / lap.seconds for lap in laps)


@attrs.frozen(kw_only=True)
class Result:
    """The timings, operations of the model a pair, those of the device a second, and by how much the losses differed."""

    timings: tuple[Timing, ...]
    flops_per_pair: float
    matmul_flops: float
    data_sheet_flops: float | None
    difference: float
    rival_source: str


class Laps:
    """Marks the ends of steps: of our loop as one of its observers, of another with :meth:`end_step`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[float, float]] = []
        self._data_seconds: list[float] = []

    def end_step(self, data_seconds: float) -> None:
        """A step is done; ``data_seconds`` of it passed until its data were there."""
        if self._device.type == "cuda" and not self._marks:
            torch.cuda.synchronize(self._device)
        self._marks.append((time.perf_counter(), time.process_time()))
        self._data_seconds.append(data_seconds)

    def __call__(self, event: Event) -> None:
        """See :class:`medvlp_core.training.Observer`."""
        if isinstance(event, StepDone):
            self.end_step(event.data_seconds)

    def lap(self) -> Lap:
        """All steps but the first."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        (start, cpu_start), (end, cpu_end) = self._marks[0], (time.perf_counter(), time.process_time())
        data_seconds = sum(self._data_seconds[1:])
        return Lap(steps=len(self._marks) - 1, seconds=end - start, cpu_seconds=cpu_end - cpu_start, data_seconds=data_seconds)


def take_turns(rounds: int, ours: Callable[[], Lap], rival: Callable[[], Lap]) -> tuple[tuple[Lap, ...], tuple[Lap, ...]]:
    """Both in turn, after a round of each that does not count; who begins changes from round to round."""
    found: dict[Callable[[], Lap], list[Lap]] = {ours: [], rival: []}
    for number in range(rounds + 1):
        for one in (ours, rival) if number % 2 == 0 else (rival, ours):
            found[one].append(one())
    return tuple(found[ours][1:]), tuple(found[rival][1:])
