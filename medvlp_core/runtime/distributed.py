"""Several processes: who am I, and tensors of all of them. With one process everything here does nothing.

Processes are started by ``torchrun`` or ``accelerate launch``; both set RANK, WORLD_SIZE and LOCAL_RANK.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: Rank 0 may draw pictures and write checkpoints while the others wait.
TIMEOUT = timedelta(hours=2)

_is_local_only = False


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() and not _is_local_only else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def launched_processes() -> int:
    """How many processes the launcher started, before they found each other."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Find the other processes of the launcher, over NCCL for GPUs and gloo for CPUs; nothing for a single process."""
    if launched_processes() == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def local_only() -> Iterator[None]:
    """Inside, this process computes as if it were the only one: nothing is gathered."""
    global _is_local_only
    before, _is_local_only = _is_local_only, True
    try:
        yield
    finally:
        _is_local_only = before


@contextmanager
def sync_errors() -> Iterator[None]:
    """All processes get to the end of the block, or none continues. Once something can fail inside, nothing may be exchanged.

    Without this, a process that fails leaves the others in their next exchange until the launcher kills them.

    Raises:
        Exception: what failed in this process. The same in another one is said once: by the process of the lowest rank.
        SystemExit: only other processes failed, or said it already; code 1.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if world_size() > 1:
        said = all_gather_object(str(failure) if failure is not None else None)
        if any(text is not None for text in said) and (failure is None or str(failure) in said[: rank()]):
            raise SystemExit(1) from failure
    if failure is not None:
        raise failure


def broadcast_object(value: Any) -> Any:
    """The value that the main process has, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_object(value: Any) -> list[Any]:
    """The values of all processes, by rank, in every process."""
    if world_size() == 1:
        return [value]
    boxes: list[Any] = [None] * world_size()
    dist.all_gather_object(boxes, value)
    return boxes


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all processes, without gradient."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


def local_batch_sizes(rows: Tensor) -> list[int]:
    """How many rows each process has, by rank; every process must ask. One entry means that nothing is gathered."""
    if world_size() == 1:
        return [len(rows)]
    counts = torch.empty(world_size(), dtype=torch.int64, device=rows.device)
    dist.all_gather(list(counts.split(1)), counts.new_tensor([len(rows)]))
    return [int(count) for count in counts.tolist()]


def first_row(counts: list[int]) -> int:
    """Where the rows of this process begin among the rows of all."""
    return sum(counts[: rank()]) if len(counts) > 1 else 0


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """The rows of all processes, one below the other by rank, with gradient: each process gets those of its own rows from all.

    With losses that are averaged over processes, as DistributedDataParallel does, gradients are those of one process with all
    rows.

    Shape:
        rows (B, ...), B may differ between processes, all else not; counts from :func:`local_batch_sizes`; result (sum of B, ...).
    """
    if len(counts) == 1:
        return rows
    if rows.dtype == torch.bool:  # which gloo does not know
        return gather_rows(rows.to(torch.uint8), counts).bool()
    gathered: Tensor = _GatherRows.apply(rows, counts)
    return gathered


def add_over_ranks(values: Tensor) -> Tensor:
    """The sum over all processes, with gradient: what each process does with the sum comes back to all summands."""
    if world_size() == 1:
        return values
    added: Tensor = _AddOverRanks.apply(values)
    return added


def largest_over_ranks(values: Tensor) -> Tensor:
    """The largest of all processes, element by element, without gradient."""
    values = values.detach()
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


class _GatherRows(torch.autograd.Function):
    """All-gather of rows of unequal counts; backward sums what all processes have for the own rows."""

    @staticmethod
    def forward(context: Any, rows: Tensor, counts: list[int]) -> Tensor:
        context.counts = counts
        most = max(counts)
        padded = rows.contiguous()
        if len(rows) < most:
            padded = rows.new_zeros(most, *rows.shape[1:])
            padded[: len(rows)] = rows
        found = rows.new_empty(len(counts) * most, *rows.shape[1:])
        dist.all_gather(list(found.split(most)), padded)
        if min(counts) == most:
            return found
        return torch.cat([part[:count] for part, count in zip(found.split(most), counts, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = _summed(gradients[0])
        first = first_row(context.counts)
        return total[first : first + context.counts[rank()]], None


class _AddOverRanks(torch.autograd.Function):
    """A sum over processes is its own transpose."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)  # a gradient may have other users
    if world_size() > 1:
        dist.all_reduce(total)
    return total
