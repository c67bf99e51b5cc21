"""The definition of attention over keys and a shared memory, in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def memory_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    *,
    key_is_valid: Tensor | None = None,
    mem_bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attend from each query to the keys of its sample and to memory slots that all samples share, under one softmax.

    ``out = softmax([scale q k^T ; scale q mem_k^T + mem_bias]) [v ; mem_v]``

    ``mem_bias`` is a log-gate per head on the memory's total mass: at -inf this is plain attention. Masked keys never
    contribute, whatever they hold, and get gradients that are exactly 0. A query that can reach nothing (no valid key, no slot)
    gives 0 with gradients 0. No keys (S = 0) and no slots (M = 0) are legal. Scores are computed in at least float32, also under
    autocast.

    Shape:
        q (B, L, H, D), k and v (B, S, H, D), mem_k and mem_v (M, H, D), key_is_valid (B, S) bool, mem_bias (H,),
        result (B, L, H, D) in the dtype of q; scale defaults to 1 / sqrt(D).

    Reference:
        Cornia et al., Meshed-Memory Transformer for Image Captioning, CVPR 2020 (slots beside keys). Deviation: the bias.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        query, keys, values, slot_keys, slot_values = (x.to(dtype) for x in (q, k, v, mem_k, mem_v))
        if key_is_valid is not None:  # so that not even NaN in padding gets through a product with weight 0
            is_hidden = ~key_is_valid[:, :, None, None]
            keys, values = keys.masked_fill(is_hidden, 0.0), values.masked_fill(is_hidden, 0.0)
        of_keys = scale * torch.einsum("blhd,bshd->bhls", query, keys)
        if key_is_valid is not None:
            of_keys = of_keys.masked_fill(~key_is_valid[:, None, None, :], float("-inf"))
        of_slots = scale * torch.einsum("blhd,mhd->bhlm", query, slot_keys)
        if mem_bias is not None:
            of_slots = of_slots + mem_bias.to(dtype)[:, None, None]
        scores = torch.cat([of_keys, of_slots], dim=-1)
        # A row of -inf alone would make softmax and its gradient NaN: it gets equal scores, and then no weight.
        is_lost = ~(scores > float("-inf")).any(dim=-1, keepdim=True)
        weights = scores.masked_fill(is_lost, 0.0).softmax(dim=-1).masked_fill(is_lost, 0.0)
        to_keys, to_slots = F.dropout(weights, dropout_p).split([k.shape[1], mem_k.shape[0]], dim=-1)
        out = torch.einsum("bhls,bshd->blhd", to_keys, values) + torch.einsum("bhlm,mhd->blhd", to_slots, slot_values)
        return out.to(q.dtype)
