"""What the paths of the memory's ops take and give: one call's tensors and numbers, and its gradients."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionInputs(NamedTuple):
    """One call of memory attention; the fields stand in the order of the op's arguments.

    Shape:
        q (B, L, H, D), k and v (B, S, H, D), mem_k and mem_v (M, H, D), key_lens (B,) integers, key_is_valid (B, S) bool,
        query_lens (B,) integers, mem_bias (H,), threshold (B, L, H) float in units of ``q mem_k^T`` (slots below it are left out),
        seed () int64.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mem_k: Tensor
    mem_v: Tensor
    key_lens: Tensor | None = None
    key_is_valid: Tensor | None = None
    query_lens: Tensor | None = None
    mem_bias: Tensor | None = None
    threshold: Tensor | None = None
    seed: Tensor | None = None
    scale: float = 1.0
    dropout_p: float = 0.0

    @property
    def dtype(self) -> torch.dtype:
        """What scores and sums are computed in: at least float32."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def masked_keys(self) -> Tensor | None:
        """The keys that nobody may attend to, (B, S) bool; None if all are open."""
        parts = [] if self.key_is_valid is None else [~self.key_is_valid]
        if self.key_lens is not None:
            parts.append(torch.arange(self.k.shape[1], device=self.k.device) >= self.key_lens[:, None])
        return functools.reduce(torch.logical_or, parts) if parts else None

    @property
    def lost_queries(self) -> Tensor | None:
        """The queries that are padding, (B, L) bool; None if there is none."""
        if self.query_lens is None:
            return None
        return torch.arange(self.q.shape[1], device=self.q.device) >= self.query_lens[:, None]


class Gradients(NamedTuple):
    """Gradients in the shapes of the inputs; those of the memory and of its bias are sums over the batch, in at least float32."""

    q: Tensor
    k: Tensor
    v: Tensor
    mem_k: Tensor
    mem_v: Tensor
    mem_bias: Tensor
