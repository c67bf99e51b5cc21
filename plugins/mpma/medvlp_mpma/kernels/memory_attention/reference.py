"""The definition of attention over keys and a shared memory, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from medvlp_mpma.kernels.dropout import keep_mask
from medvlp_mpma.kernels.inputs import AttentionInputs


def memory_attention(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """``out`` (B, L, H, D) in the dtype of q, and ``lse`` (B, L, H) in at least float32.

    ``s = [scale q k^T ; scale q mem_k^T + mem_bias]``; ``lse = logsumexp(s)``; ``out = exp(s - lse) [v ; mem_v]``.

    ``mem_bias`` is a log-gate per head on the memory's total mass: at -inf this is plain attention. Hidden keys never contribute,
    whatever they hold, and get gradients that are exactly 0. A query that is padding or can reach nothing (no open key, no open
    slot) gives 0 with gradients 0, and lse -inf. Slots whose raw score ``q mem_k^T`` lies below ``threshold`` are left out. Dropout
    acts on the weights, after the softmax (:func:`~medvlp_mpma.kernels.dropout.keep_mask`). Scores are computed in at least
    float32, also under autocast.

    Reference:
        Cornia et al., Meshed-Memory Transformer for Image Captioning, CVPR 2020 (slots beside keys). Deviation: the bias.
    """
    dtype, masked_keys, lost = inputs.dtype, inputs.masked_keys, inputs.lost_queries
    with torch.autocast(inputs.q.device.type, enabled=False):
        query, keys, values, slot_keys, slot_values = (x.to(dtype) for x in inputs[:5])
        if masked_keys is not None:  # so that not even NaN in padding gets through a product with weight 0
            keys, values = (x.masked_fill(masked_keys[..., None, None], 0.0) for x in (keys, values))
        if lost is not None:
            query = query.masked_fill(lost[..., None, None], 0.0)
        of_keys = inputs.scale * torch.einsum("blhd,bshd->bhls", query, keys)
        if masked_keys is not None:
            of_keys = of_keys.masked_fill(masked_keys[:, None, None, :], float("-inf"))
        raw = torch.einsum("blhd,mhd->bhlm", query, slot_keys)
        of_slots = inputs.scale * raw
        if inputs.threshold is not None:
            of_slots = of_slots.masked_fill(raw < inputs.threshold.transpose(1, 2)[..., None], float("-inf"))
        if inputs.mem_bias is not None:
            of_slots = of_slots + inputs.mem_bias.to(dtype)[:, None, None]
        scores = torch.cat([of_keys, of_slots], dim=-1)
        if lost is not None:
            scores = scores.masked_fill(lost[:, None, :, None], float("-inf"))
        # A row of -inf alone would make softmax and its gradient NaN: it gets equal scores, and then no weight.
        is_empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
        scores = scores.masked_fill(is_empty, 0.0)
        lse = torch.logsumexp(scores, dim=-1).masked_fill(is_empty.squeeze(-1), float("-inf"))
        weights = dropped(scores.softmax(dim=-1).masked_fill(is_empty, 0.0), inputs)
        to_keys, to_slots = weights.split([keys.shape[1], slot_keys.shape[0]], dim=-1)
        out = torch.einsum("bhls,bshd->blhd", to_keys, values) + torch.einsum("bhlm,mhd->blhd", to_slots, slot_values)
        return out.to(inputs.q.dtype), lse.transpose(1, 2)


def dropped(weights: Tensor, inputs: AttentionInputs) -> Tensor:
    """Dropout of weights (B, H, L, columns)."""
    if inputs.dropout_p == 0.0:
        return weights
    assert inputs.seed is not None, "dropout needs a seed"
    batch, heads, queries, columns = weights.shape
    kept = keep_mask(inputs.seed, range(batch), heads, queries, range(columns), inputs.dropout_p).transpose(0, 1)
    return (weights / (1.0 - inputs.dropout_p)).masked_fill(~kept, 0.0)
