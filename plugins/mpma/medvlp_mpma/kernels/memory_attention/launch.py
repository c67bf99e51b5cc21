"""Host side of the Triton kernels of memory attention: strides, grids, results. Imports Triton when it is called.

Tensors are passed with their strides; only where the innermost one is not 1 a copy is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medvlp_mpma.kernels.chunked import LOG2E
from medvlp_mpma.kernels.dropout import keep_level
from medvlp_mpma.kernels.inputs import AttentionInputs, Gradients
from medvlp_mpma.kernels.memory_attention import tuning


def forward(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """``out`` (B, L, H, D) and ``lse`` (B, L, H) float32, contiguous."""
    from medvlp_mpma.kernels.memory_attention.triton_kernel import forward_kernel

    batch, queries, heads, width = inputs.q.shape
    out = torch.empty(inputs.q.shape, dtype=inputs.q.dtype, device=inputs.q.device)
    lse = torch.empty(inputs.q.shape[:-1], dtype=torch.float32, device=inputs.q.device)
    if out.numel() == 0:
        return out, lse
    q, k, v, mem_k, mem_v = _rows(inputs)
    tiles = tuning.choose("forward", inputs)
    forward_kernel[(_tiles(queries, tiles.block_l) * batch * heads,)](
        q, k, v, mem_k, mem_v, out, lse, *_masks(inputs), *_small(inputs),
        *_strides(q, k, v), *mem_k.stride()[:2], *mem_v.stride()[:2],
        heads, queries, k.shape[1], mem_k.shape[0], *_numbers(inputs, LOG2E * inputs.scale),
        WIDTH=width, **tiles.blocks(), **_mask_flags(inputs), **_memory_flags(inputs), HAS_DROPOUT=inputs.dropout_p > 0.0,
        **tiles.launch(),
    )  # fmt: skip
    return out, lse


def backward(inputs: AttentionInputs, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> Gradients:
    """Gradients of all inputs; those of the memory by partial sums in a fixed order, so that they repeat bit by bit."""
    from medvlp_mpma.kernels.memory_attention import triton_kernel as kernels

    batch, queries, heads, width = inputs.q.shape
    q, k, v, mem_k, mem_v = _rows(inputs)
    device, keys, slots = q.device, k.shape[1], mem_k.shape[0]
    grad_out, grad_lse = grad_out.contiguous(), None if grad_lse is None else grad_lse.float().contiguous()
    delta = torch.empty(q.shape[:-1], dtype=torch.float32, device=device)
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=device)
    # Keys beyond a sample's length are not visited.
    new = torch.empty if inputs.key_lens is None else torch.zeros
    grad_k, grad_v = (new(x.shape, dtype=x.dtype, device=device) for x in (k, v))
    if grad_q.numel() == 0:
        return Gradients(grad_q, grad_k.zero_(), grad_v.zero_(), *_memory_zeros(inputs))
    masks, small = _masks(inputs), _small(inputs)
    common: dict[str, Any] = {"WIDTH": width, "HAS_DROPOUT": inputs.dropout_p > 0.0}

    with_keys = tuning.holds_all_queries(inputs)
    tiles = tuning.choose("grad_query_with_keys" if with_keys else "grad_query", inputs)
    kernels.grad_query_kernel[(_tiles(queries, tiles.block_l) * batch * heads,)](
        q, k, v, mem_k, mem_v, out, lse, grad_out, grad_lse, grad_q, grad_k, grad_v, delta, *masks, *small,
        *_strides(q, k, v), *mem_k.stride()[:2], *mem_v.stride()[:2],
        heads, queries, keys, slots, *_numbers(inputs, inputs.scale),
        **common, **tiles.blocks(), **_mask_flags(inputs), **_memory_flags(inputs),
        HAS_GRAD_LSE=grad_lse is not None, WITH_KEYS=with_keys, **tiles.launch(),
    )  # fmt: skip

    if not with_keys and keys > 0:
        tiles = tuning.choose("grad_key", inputs)
        kernels.grad_key_kernel[(_tiles(keys, tiles.block_n) * batch * heads,)](
            q, k, v, lse, grad_out, grad_k, grad_v, delta, *masks, inputs.seed,
            *_strides(q, k, v), heads, queries, keys, *_numbers(inputs, inputs.scale),
            **common, **tiles.blocks(), **_mask_flags(inputs), **tiles.launch(),
        )  # fmt: skip

    if slots == 0:
        return Gradients(grad_q, grad_k, grad_v, *_memory_zeros(inputs))
    tiles = tuning.choose("grad_slot", inputs)
    slot_tiles, rows = _tiles(slots, tiles.block_n), batch * queries
    splits = tuning.count_splits(inputs, slot_tiles * heads)
    rows_per_split = _tiles(_tiles(rows, splits), tiles.block_l) * tiles.block_l
    splits = _tiles(rows, rows_per_split)
    partial_k, partial_v = (torch.empty(splits, *mem_k.shape, dtype=torch.float32, device=device) for _ in range(2))
    partial_bias = torch.zeros(splits, slot_tiles, heads, dtype=torch.float32, device=device)
    kernels.grad_slot_kernel[(slot_tiles, heads, splits)](
        q, mem_k, mem_v, lse, grad_out, delta, partial_k, partial_v, partial_bias, *small,
        *q.stride()[:3], *mem_k.stride()[:2], *mem_v.stride()[:2],
        heads, queries, keys, slots, rows, rows_per_split, *_numbers(inputs, inputs.scale),
        **common, **tiles.blocks(), **_memory_flags(inputs), **tiles.launch(),
    )  # fmt: skip
    return Gradients(grad_q, grad_k, grad_v, partial_k.sum(dim=0), partial_v.sum(dim=0), partial_bias.sum(dim=(0, 1)))


def _rows(inputs: AttentionInputs) -> tuple[Tensor, ...]:
    """The five large inputs, each with rows of D numbers that lie side by side."""
    large = (inputs.q, inputs.k, inputs.v, inputs.mem_k, inputs.mem_v)
    return tuple(x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in large)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _masks(inputs: AttentionInputs) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    key_lens, mask, query_lens = (_packed(x) for x in (inputs.key_lens, inputs.key_is_valid, inputs.query_lens))
    return key_lens, None if mask is None else mask.view(torch.uint8), query_lens


def _small(inputs: AttentionInputs) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return _packed(inputs.mem_bias, torch.float32), _packed(inputs.threshold, torch.float32), inputs.seed


def _mask_flags(inputs: AttentionInputs) -> dict[str, bool]:
    return {
        "HAS_KEY_LENS": inputs.key_lens is not None,
        "HAS_KEY_MASK": inputs.key_is_valid is not None,
        "HAS_QUERY_LENS": inputs.query_lens is not None,
    }


def _memory_flags(inputs: AttentionInputs) -> dict[str, bool]:
    return {"HAS_BIAS": inputs.mem_bias is not None, "HAS_THRESHOLD": inputs.threshold is not None}


def _numbers(inputs: AttentionInputs, scale: float) -> tuple[int, float, float]:
    return keep_level(inputs.dropout_p), scale, 1.0 / (1.0 - inputs.dropout_p)


def _memory_zeros(inputs: AttentionInputs) -> list[Tensor]:
    shapes = (inputs.mem_k.shape, inputs.mem_v.shape, inputs.q.shape[2:3])
    return [torch.zeros(shape, dtype=torch.float32, device=inputs.q.device) for shape in shapes]


def _packed(x: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    """Small tensors are indexed as if they were contiguous."""
    return None if x is None else x.to(dtype or x.dtype).contiguous()


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)
