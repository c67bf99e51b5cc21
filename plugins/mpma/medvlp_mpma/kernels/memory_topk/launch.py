"""Host side of top-k memory attention on Triton: the threshold kernel, then the kernel of memory attention under that threshold.

Triton is imported when it is called. Tensors are passed with their strides; only where the innermost one is not 1 a copy is made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medvlp_mpma.kernels.calls import is_interpreted
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention import launch as memory_attention
from medvlp_mpma.kernels.memory_topk.tuning import Tiles, choose


def forward(inputs: AttentionInputs, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """``out`` (B, L, H, D), ``lse`` and threshold (B, L, H) float32, for ``topk`` < M."""
    threshold = memory_threshold(inputs.q, inputs.mem_k, topk)
    out, lse = memory_attention.forward(inputs._replace(threshold=threshold))
    return out, lse, threshold


def memory_threshold(q: Tensor, mem_k: Tensor, topk: int, tiles: Tiles | None = None) -> Tensor:
    """A score between the winners and the losers of each query and head, for 1 <= ``topk`` < M.

    With raw scores ``r_j = q . mem_k_j`` in float32 and winners ``{j : r_j >= the K-th largest r}``, the result is the middle
    between the smallest winner and the largest loser, so that scores summed in another order still fall on their side. If there is
    no number between them, it is the smallest winner; if all slots win, -inf. A row whose scores hold NaN gets any number or NaN.

    Shape:
        q (B, L, H, D), mem_k (M, H, D) of the same dtype, result (B, L, H) float32, contiguous.
    """
    from medvlp_mpma.kernels.memory_topk.triton_kernel import threshold_kernel

    (batch, queries, heads, width), slots = q.shape, mem_k.shape[0]
    assert 1 <= topk < slots, "the caller serves topk >= M"
    assert q.dtype != torch.bfloat16 or not is_interpreted(), "bfloat16 in Triton's interpreter gives garbage"
    threshold = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    if threshold.numel() == 0:
        return threshold
    q, mem_k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, mem_k))
    tiles = tiles or choose(slots, width, 8 * q.element_size(), q.device)
    rows = batch * queries
    threshold_kernel[(-(-rows // tiles.queries), heads)](
        q, mem_k, threshold, *q.stride()[:3], *mem_k.stride()[:2], rows, queries, slots, topk,
        WIDTH=width, **tiles.blocks(), **tiles.launch(),
    )  # fmt: skip
    return threshold
