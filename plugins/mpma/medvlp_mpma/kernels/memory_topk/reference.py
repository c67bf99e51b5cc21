"""The definition of top-k memory attention, in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def memory_topk(
    q: Tensor, mem_k: Tensor, mem_v: Tensor, topk: int, *, scale: float | None = None, dropout_p: float = 0.0
) -> Tensor:
    """Attend from each query to its K best memory slots, chosen per head.

    ``s = scale q mem_k^T``; ``S = {j : s_j >= the K-th largest s}``; ``out = sum_{j in S} softmax_S(s)_j mem_v_j``.

    Semantics that an accelerated form must keep: slots that tie with the K-th are all kept, so S may hold more than K; only slots
    in S get a gradient; dropout acts on the weights, after the selection; ``topk >= M`` is plain softmax attention; scores are
    computed in at least float32, also under autocast, because lower precision would choose other slots.

    The masked-dense form is used: it equals gathering the chosen slots and needs no (B, L, H, K, D) tensor.

    Shape:
        q (B, L, H, D), mem_k and mem_v (M, H, D) with M >= 1, result (B, L, H, D) in the dtype of q; scale defaults to 1 / sqrt(D).

    Reference:
        Chen et al., Cross-modal Memory Networks for Radiology Report Generation, ACL 2021. Deviation: ties are all kept.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = scale * torch.einsum("blhd,mhd->bhlm", q.to(dtype), mem_k.to(dtype))
        if topk < mem_k.shape[0]:
            threshold = scores.detach().topk(topk, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < threshold, float("-inf"))
        weights = F.dropout(scores.softmax(dim=-1), dropout_p)
        return torch.einsum("bhlm,mhd->blhd", weights, mem_v.to(dtype)).to(q.dtype)
