"""Which pairs each optimiser step sees, and from which seed it draws: functions of a few numbers, so that any step can be repeated.

Nothing here has a state. The order of an epoch is a permutation drawn from (seed, epoch); a step is a slice of it; random crops
of a pair are drawn from (seed, epoch, pair), masks and dropout of a step from (seed, step, process). So a run can resume from any
step without replaying one, with any number of loader processes.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from typing import NamedTuple

import attrs
import torch


class Draw(NamedTuple):
    """One pair of a step: the row of its record, and the seed of its random crop."""

    row: int
    seed: int


def seed_of(purpose: str, *numbers: int | str) -> int:
    """A seed for one purpose that depends on all the numbers (or names) and their order, the same on every machine.

    Example:
        >>> seed_of("masks", 0, 1) == seed_of("masks", 0, 1), seed_of("masks", 0, 1) == seed_of("masks", 1, 0)
        (True, False)
    """
    digest = hashlib.blake2b(",".join([purpose, *map(str, numbers)]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits of it


@attrs.frozen(kw_only=True)
class DataOrder:
    """The pairs of every step of a run: ``count`` pairs, ``batch_size`` a step, in an order that ``seed`` draws anew each epoch.

    An incomplete last batch of an epoch is dropped (``drop_last``), or is a smaller step if it has at least ``least`` pairs, one
    for each micro-batch of each process.
    """

    count: int
    batch_size: int
    seed: int
    drop_last: bool = True
    least: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every pair is seen once; 0 if there are fewer pairs than one batch."""
        whole, rest = divmod(self.count, self.batch_size)
        return whole + (not self.drop_last and rest >= self.least)

    def epoch(self, step: int) -> int:
        """The epoch of a step, both from 0."""
        return step // self.steps_per_epoch

    def size(self, step: int) -> int:
        """How many pairs a step has, over all processes."""
        return min(self.batch_size, self.count - step % self.steps_per_epoch * self.batch_size)

    def pairs(self, step: int) -> list[Draw]:
        """All pairs of a step, over all processes."""
        epoch, at = divmod(step, self.steps_per_epoch)
        order = _permutation(self.count, self.seed, epoch)[at * self.batch_size : (at + 1) * self.batch_size]
        return [Draw(index, seed_of("crop", self.seed, epoch, index)) for index in order]


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of("order", seed, epoch))).tolist()


@attrs.frozen(kw_only=True)
class Share:
    """The part of every step that one process computes, in ``micro_batches`` forward passes: process ``rank`` of ``world``."""

    rank: int = 0
    world: int = 1
    micro_batches: int = 1

    def of(self, pairs: list[Draw]) -> list[list[Draw]]:
        """One list for each micro-batch; slices of all processes stand side by side, their sizes at most one apart.

        Example:
            >>> pairs = [Draw(index, 0) for index in range(5)]
            >>> [[draw.row for draw in one] for one in Share(rank=1, world=2).of(pairs)]
            [[3, 4]]
        """
        edges = self._edges(len(pairs))
        mine = (number * self.world + self.rank for number in range(self.micro_batches))
        return [pairs[edges[number] : edges[number + 1]] for number in mine]

    def sizes(self, count: int) -> list[list[int]]:
        """How many of ``count`` pairs each process has in each of its micro-batches, by process.

        Example:
            >>> Share(world=2, micro_batches=2).sizes(7)
            [[2, 2], [2, 1]]
        """
        edges = self._edges(count)
        slices = [after - before for before, after in itertools.pairwise(edges)]
        return [slices[process :: self.world] for process in range(self.world)]

    def _edges(self, count: int) -> list[int]:
        slices = self.world * self.micro_batches
        return [count * number // slices + (count * number % slices > 0) for number in range(slices + 1)]
