"""The definition of top-k memory attention, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention.reference import dropped


def memory_topk(inputs: AttentionInputs, topk: int) -> tuple[Tensor, Tensor]:
    """``out`` (B, L, H, D) in the dtype of q, and the log-sum-exp over the winners (B, L, H) in at least float32.

    ``s = scale q mem_k^T``; ``S = {j : s_j >= the K-th largest s}``; ``out = sum_{j in S} softmax_S(s)_j mem_v_j``.

    Semantics that an accelerated form must keep: slots that tie with the K-th are all kept, so S may hold more than K; only slots
    in S get a gradient; dropout acts on the weights, after the selection (:func:`~medvlp_mpma.kernels.dropout.keep_mask`);
    ``topk >= M`` is plain softmax attention; scores are computed in at least float32, also under autocast, because lower precision
    would choose other slots.

    The masked-dense form is used: it equals gathering the chosen slots and needs no (B, L, H, K, D) tensor. Keys, masks and the
    bias of ``inputs`` have no place here and are not looked at.

    Reference:
        Chen et al., Cross-modal Memory Networks for Radiology Report Generation, ACL 2021. Deviation: ties are all kept.
    """
    q, mem_k, mem_v = (x.to(inputs.dtype) for x in (inputs.q, inputs.mem_k, inputs.mem_v))
    with torch.autocast(q.device.type, enabled=False):
        scores = inputs.scale * torch.einsum("blhd,mhd->bhlm", q, mem_k)
        if topk < mem_k.shape[0]:
            threshold = scores.detach().topk(topk, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < threshold, float("-inf"))
        weights = dropped(scores.softmax(dim=-1), inputs)
        out = torch.einsum("bhlm,mhd->blhd", weights, mem_v).to(inputs.q.dtype)
        return out, torch.logsumexp(scores, dim=-1).transpose(1, 2)
