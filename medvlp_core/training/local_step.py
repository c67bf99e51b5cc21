"""What one process has of a step before anything is exchanged."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from medvlp_core.nn.batch import Batch


@attrs.frozen(kw_only=True)
class LocalStep:
    """What the micro-batches of one process gave in one step, not yet reduced over the processes.

    ``losses``: (1 + terms,), the weighted sum and then every term of ``names``, each a sum over the pairs of this process divided
    by all ``pairs`` of the step. ``rows``: numbers of its records. ``after``: of each micro-batch, what modules get after the step;
    ``after_all``: the same of all records of the step, where it is known already. ``data_seconds``: how long it waited for data.
    """

    losses: Tensor
    names: tuple[str, ...]
    rows: tuple[int, ...]
    after: tuple[Mapping[str, Tensor], ...] = ()
    after_all: Mapping[str, Tensor] = attrs.field(factory=dict)
    pairs: int
    data_seconds: float


def with_progress(batch: Batch, progress: float, device: torch.device) -> Batch:
    """A batch with the port ``progress``, which components may need and weights of losses may depend on."""
    return {**batch, "progress": torch.full((), progress, device=device)}
