"""The rows that modules get after a step: put together over micro-batches and processes, in the order of the step's records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medvlp_core.runtime.distributed import gather_rows


@torch.no_grad()
def rows_of_step(micro_batches: Sequence[Mapping[str, Tensor]], sizes: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The rows of a whole step by name, in every process. Every process must ask.

    ``micro_batches`` are those of this process; ``sizes`` the number of rows of each process and micro-batch
    (:meth:`~medvlp_core.data.order.Share.sizes`).

    Shape:
        micro_batches (B, ...), all but B equal everywhere; result (T, ...), T the records of the step.
    """
    return {
        name: _in_order(torch.cat([one[name] for one in micro_batches]), sizes)
        for name in (micro_batches[0] if micro_batches else ())
    }


def _in_order(rows: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    gathered = gather_rows(rows.contiguous(), [sum(one) for one in sizes])
    # by process and micro-batch; a step is cut into micro-batches first, and each of these into processes
    pieces = iter(gathered.split([size for one in sizes for size in one]))
    by_process = [[next(pieces) for _ in one] for one in sizes]
    return torch.cat([piece for micro_batch in zip(*by_process, strict=True) for piece in micro_batch])
