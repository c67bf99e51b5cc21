"""Memory attention from library calls: one flash call over the keys, one over the slots, merged by their log-sum-exps.

The call over the slots folds groups of samples into the query axis, so that the memory is neither repeated nor concatenated::

    lse = logaddexp(lse_keys, lse_slots + mem_bias)
    out = exp(lse_keys - lse) out_keys + exp(lse_slots + mem_bias - lse) out_slots

Backward, each call gets the merged ``out`` and ``lse``: flash attention recomputes ``P = exp(s - lse)`` and takes
``delta = rowsum(dO O)`` from them, and those are the weights and the delta of the joint softmax. What flash calls cannot do
(dropout by our own mask, a gradient for lse, odd widths on a GPU) goes through :mod:`medvlp_mpma.kernels.chunked`.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from medvlp_mpma.kernels import chunked
from medvlp_mpma.kernels.inputs import AttentionInputs, Gradients

aten = torch.ops.aten

#: A flash backward has one program for each 128 keys of a head and group; two for each processor of a large GPU keep it busy.
PROGRAMS_WANTED = 264


def forward(inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
    """``out`` (B, L, H, D) and ``lse`` (B, L, H)."""
    if not _suits_flash(inputs):
        return chunked.forward(inputs)[:2]
    (of_keys, lse_keys), (of_slots, lse_slots) = _keys_call(inputs).forward(), _slots_call(inputs).forward()
    lse = torch.logaddexp(lse_keys, lse_slots)
    total = _no_weight_if_lost(lse)[..., None]
    out = of_keys * (lse_keys[..., None] - total).exp()  # in float32 from here
    out.addcmul_(of_slots.to(out.dtype), (lse_slots[..., None] - total).exp())
    return out.to(inputs.q.dtype), lse


def backward(inputs: AttentionInputs, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> Gradients:
    """Gradients of all inputs."""
    if grad_lse is not None or not _suits_flash(inputs):
        return chunked.backward(inputs, out, lse, grad_out, grad_lse)
    if (lost := inputs.lost_queries) is not None:  # rows of padding may hold anything
        grad_out = grad_out.masked_fill(lost[..., None, None], 0.0)
    total = _no_weight_if_lost(lse)
    d_q, d_k, d_v = _keys_call(inputs).backward(grad_out, out, total)
    slots = _slots_call(inputs)
    d_q_slots, d_mem_k, d_mem_v = slots.backward(grad_out, out, total)
    d_bias = torch.zeros(inputs.q.shape[2], dtype=inputs.dtype, device=inputs.q.device)
    if inputs.mem_bias is not None:  # sum of dS = mass of the memory times (dO O_slots - delta); flash keeps neither
        of_slots, lse_slots = slots.forward()
        difference = (grad_out.to(inputs.dtype) * (of_slots - out.to(inputs.dtype))).sum(dim=-1)
        d_bias = ((lse_slots - total).exp() * difference).sum(dim=(0, 1))
    d_mem_k, d_mem_v = d_mem_k.to(inputs.dtype).sum(dim=0), d_mem_v.to(inputs.dtype).sum(dim=0)
    dtype = inputs.q.dtype
    return Gradients((d_q + d_q_slots).to(dtype), d_k.to(dtype), d_v.to(dtype), d_mem_k, d_mem_v, d_bias)


@attrs.frozen(kw_only=True)
class _FlashCall:
    """One call of a library's flash attention, in which ``fold`` samples share a row of the batch.

    Shape:
        q (B, L, H, D), k and v (B / fold, S, H, D), bias (B / fold, S) or None, is_lost (B, L) bool or None (rows without weight),
        shift (H,) or None, added to all scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    fold: int = 1
    bias: Tensor | None = None
    is_lost: Tensor | None = None
    shift: Tensor | None = None

    def forward(self) -> tuple[Tensor, Tensor]:
        """The attention's result (B, L, H, D) and its log-sum-exp (B, L, H), which is -inf for lost rows and without keys."""
        if self.k.shape[1] == 0:
            return torch.zeros_like(self.q), torch.full_like(self.q[..., 0], -torch.inf, dtype=_lse_dtype(self.q))
        query, key, value, bias = self._library_inputs()
        out, lse = _library_forward(query, key, value, bias, self.scale)
        out = out.transpose(1, 2).reshape(self.q.shape)
        lse = lse.transpose(1, 2).reshape(self.q.shape[:-1])
        if self.shift is not None:
            lse = lse + self.shift
        if self.is_lost is not None:
            out, lse = out.masked_fill(self.is_lost[..., None, None], 0.0), lse.masked_fill(self.is_lost[..., None], -torch.inf)
        return out, lse

    def backward(self, grad_out: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k and v for the weights ``exp(s + shift - lse)`` of a larger softmax with the result ``out``."""
        if self.k.shape[1] == 0:
            return torch.zeros_like(self.q), torch.zeros_like(self.k), torch.zeros_like(self.v)
        if self.shift is not None:  # a shift of -inf takes all weight away
            lse = lse - self.shift
        if self.is_lost is not None:
            lse = lse.masked_fill(self.is_lost[..., None], torch.inf)
        query, key, value, bias = self._library_inputs()
        d_out, result = (self._folded(x.to(query.dtype)) for x in (grad_out, out))
        lse = lse.reshape(len(key), -1, lse.shape[-1]).transpose(1, 2).contiguous()
        d_q, d_k, d_v = _library_backward(d_out, query, key, value, bias, result, lse, self.scale)
        return d_q.transpose(1, 2).reshape(self.q.shape), d_k.transpose(1, 2), d_v.transpose(1, 2)

    def _folded(self, x: Tensor) -> Tensor:
        """(B, L, H, D) as (B / fold, H, fold L, D)."""
        return x.reshape(len(x) // self.fold, -1, *x.shape[2:]).transpose(1, 2)

    def _library_inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        query, key, value = self._folded(self.q), self.k.transpose(1, 2), self.v.transpose(1, 2)
        if self.bias is None:
            return query, key, value, None
        return query, key, value, self.bias[:, None, None].expand(-1, query.shape[1], query.shape[2], -1)


def _keys_call(inputs: AttentionInputs) -> _FlashCall:
    q, k, v = (_computable(x) for x in (inputs.q, inputs.k, inputs.v))
    is_lost, bias = inputs.lost_queries, None
    if (is_masked := inputs.masked_keys) is not None:
        k, v = (x.masked_fill(is_masked[..., None, None], 0.0) for x in (k, v))  # NaN in padding stays out of products
        # Kernels read rows of biases in wide words: the storage is padded to a multiple of 8.
        bias = q.new_zeros(len(q), -(-k.shape[1] // 8) * 8)[:, : k.shape[1]].masked_fill_(is_masked, -torch.inf)
        has_none = is_masked.all(dim=1)[:, None].expand(q.shape[:2])
        is_lost = has_none if is_lost is None else is_lost | has_none
    return _FlashCall(q=_cleared(q, is_lost), k=k, v=v, scale=inputs.scale, bias=bias, is_lost=is_lost)


def _slots_call(inputs: AttentionInputs) -> _FlashCall:
    q, mem_k, mem_v = (_computable(x) for x in (inputs.q, inputs.mem_k, inputs.mem_v))
    batch, _, heads, _ = q.shape
    blocks = heads * -(-len(mem_k) // 128)
    groups = 1 if q.device.type == "cpu" else _divisor(batch, -(-PROGRAMS_WANTED // max(1, blocks)))
    k, v = (x.expand(groups, *x.shape) for x in (mem_k, mem_v))
    is_lost = inputs.lost_queries
    shift = None if inputs.mem_bias is None else inputs.mem_bias.to(inputs.dtype)
    return _FlashCall(q=_cleared(q, is_lost), k=k, v=v, scale=inputs.scale, fold=batch // groups, is_lost=is_lost, shift=shift)


def _cleared(q: Tensor, is_lost: Tensor | None) -> Tensor:
    return q if is_lost is None else q.masked_fill(is_lost[..., None, None], 0.0)


def _divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` up to ``at_most``."""
    return max(one for one in range(1, min(number, at_most) + 1) if number % one == 0)


def _suits_flash(inputs: AttentionInputs) -> bool:
    q = inputs.q
    if inputs.dropout_p > 0.0 or inputs.threshold is not None or 0 in q.shape:
        return False
    if q.device.type == "cuda":
        return q.dtype != torch.float64 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    return q.device.type == "cpu"


def _computable(x: Tensor) -> Tensor:
    """As the library wants it: rows side by side. CPUs multiply half precision a hundred times slower than float32."""
    x = x.to(_lse_dtype(x)) if x.device.type == "cpu" else x
    return x if x.stride(-1) == 1 else x.contiguous()


def _lse_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _no_weight_if_lost(lse: Tensor) -> Tensor:
    """-inf, a row that reached nothing, becomes +inf: then ``exp(s - lse)`` is 0, also for s = -inf."""
    return torch.where(lse == -torch.inf, torch.inf, lse)


# ------------------------------------------------------------------------------------------------------- the library's kernels


def _library_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(B, H, L, D) in, result (B, H, L, D) and log-sum-exp (B, H, L) out."""
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
        return out, lse
    if _is_for_flash_cuda(q, bias):
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
        return out, lse
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, scale=scale)
    return out, lse[..., : q.shape[2]]


def _library_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, for whatever ``out`` and ``lse`` are given."""
    if q.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            d_out, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=scale
        )
    nothing = torch.zeros((), dtype=torch.int64, device=q.device)  # the state of a dropout that there is not
    if _is_for_flash_cuda(q, bias):
        lengths = (None, None, q.shape[2], k.shape[2])
        return aten._scaled_dot_product_flash_attention_backward(
            d_out, q, k, v, out, lse, *lengths, 0.0, False, nothing, nothing, scale=scale
        )
    padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf)
    wanted = [True, True, True, False]
    d_q, d_k, d_v, _ = aten._scaled_dot_product_efficient_attention_backward(
        d_out, q, k, v, bias, out, padded, nothing, nothing, 0.0, wanted, scale=scale
    )
    return d_q, d_k, d_v


def _is_for_flash_cuda(q: Tensor, bias: Tensor | None) -> bool:
    is_half = q.dtype in (torch.float16, torch.bfloat16)
    return bias is None and is_half and torch.cuda.get_device_capability(q.device) >= (8, 0)
