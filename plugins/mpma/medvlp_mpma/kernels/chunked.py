"""Attention over keys and memory slots in closed form and in chunks of samples: plain matrix products, no autograd.

No score outlives its chunk: the forward pass leaves ``out`` and ``lse``, the backward pass computes the scores of a chunk again.
Inside, everything is laid out (H, b, L, ...) with b samples in a chunk, so that a product with the memory has all queries of the
chunk in one matrix: (H, b L, D) times (H, D, M). Scores are in base 2, ``log2(e) s``: on CPUs exp is ten times slower than exp2
where it meets -inf.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from medvlp_mpma.kernels.dropout import keep_mask
from medvlp_mpma.kernels.inputs import AttentionInputs, Gradients

LOG2E, LN2 = math.log2(math.e), math.log(2.0)

#: So many scores are held at a time: a few megabytes stay in a CPU's cache, a GPU wants large products.
SCORES_AT_A_TIME = {"cpu": 2**21, "cuda": 2**27}


def forward(inputs: AttentionInputs, topk: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """``out`` (B, L, H, D), ``lse`` (B, L, H) and the threshold (B, L, H) that separates the ``topk`` < M winners from the losers.

    The threshold lies in the middle between the worst winner and the best loser, so that scores that are computed again, with
    another rounding, fall on the same side; where float32 has nothing between them it is the worst winner. Without ``topk`` it is
    empty.
    """
    q = inputs.q
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:-1], dtype=inputs.dtype, device=q.device)
    threshold = torch.empty_like(lse if topk is not None else lse[:0])
    for chunk in _chunks(inputs):
        raw = chunk.raw_slot_scores()
        if topk is not None:
            chunk.threshold = _separator(raw, topk)
            threshold[chunk.samples] = chunk.threshold.permute(1, 2, 0)
        slots, keys = chunk.slot_scores(raw), chunk.key_scores()
        pivot = torch.maximum(_largest(slots), _largest(keys))
        pivot = torch.where(pivot == -torch.inf, 0.0, pivot)
        for weights in (slots, keys):
            weights.sub_(pivot[..., None]).exp2_()
        total = slots.sum(dim=-1) + keys.sum(dim=-1)
        lse[chunk.samples] = (LN2 * (pivot + total.log2())).permute(1, 2, 0)
        keep_slots, keep_keys = chunk.dropout_factors()
        mixed = chunk.times_memory(_product(slots, keep_slots), chunk.mem_v) + _product(keys, keep_keys) @ chunk.v
        mixed /= torch.where(total == 0, 1.0, total)[..., None]
        out[chunk.samples] = mixed.permute(1, 2, 0, 3).to(q.dtype)
    return out, lse, threshold


def backward(inputs: AttentionInputs, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None) -> Gradients:
    """Closed-form gradients: ``P = exp(s - lse)``, ``dS = P (dP - delta)`` with ``delta = rowsum(dO O) - dlse``.

    Bitwise repeatable: chunks are added up in their order.
    """
    dtype, device = inputs.dtype, inputs.q.device
    d_q, d_k, d_v = (torch.empty(x.shape, dtype=x.dtype, device=device) for x in (inputs.q, inputs.k, inputs.v))
    d_mem_k, d_mem_v = (torch.zeros(x.transpose(0, 1).shape, dtype=dtype, device=device) for x in (inputs.mem_k, inputs.mem_v))
    d_bias = torch.zeros(inputs.q.shape[2], dtype=dtype, device=device)
    for chunk in _chunks(inputs):
        d_out = chunk.by_head(grad_out)
        if chunk.is_lost is not None:  # rows of padding may hold anything
            d_out = d_out.masked_fill(chunk.is_lost[..., None], 0.0)
        delta = (d_out * chunk.by_head(out)).sum(dim=-1)
        if grad_lse is not None:
            delta -= grad_lse[chunk.samples].to(dtype).permute(2, 0, 1)
        log_total = LOG2E * lse[chunk.samples].permute(2, 0, 1)
        # A row that reached nothing has lse = -inf: it gets no weight, and no NaN.
        log_total = torch.where(log_total == -torch.inf, torch.inf, log_total)
        slots, keys = chunk.slot_scores(chunk.raw_slot_scores()), chunk.key_scores()
        for weights in (slots, keys):
            weights.sub_(log_total[..., None]).exp2_()
        keep_slots, keep_keys = chunk.dropout_factors()

        d_mem_v.baddbmm_(_flat(_product(slots, keep_slots)).mT, _flat(d_out))
        d_v[chunk.samples] = (_product(keys, keep_keys).mT @ d_out).permute(1, 2, 0, 3).to(d_v.dtype)
        d_slots = _product(chunk.times_memory(d_out, chunk.mem_v.mT), keep_slots)
        d_keys = _product(d_out @ chunk.v.mT, keep_keys)
        d_slots = d_slots.sub_(delta[..., None]).mul_(slots)
        d_keys = d_keys.sub_(delta[..., None]).mul_(keys)
        d_bias += d_slots.sum(dim=(1, 2, 3))
        d_query = chunk.times_memory(d_slots, chunk.mem_k) + d_keys @ chunk.k
        d_q[chunk.samples] = (inputs.scale * d_query).permute(1, 2, 0, 3).to(d_q.dtype)
        d_mem_k.baddbmm_(_flat(d_slots).mT, _flat(chunk.q), alpha=inputs.scale)
        d_k[chunk.samples] = (inputs.scale * (d_keys.mT @ chunk.q)).permute(1, 2, 0, 3).to(d_k.dtype)
    return Gradients(d_q, d_k, d_v, d_mem_k.transpose(0, 1), d_mem_v.transpose(0, 1), d_bias)


class _Chunk:
    """Some samples of a call, laid out by head; ``is_lost`` marks rows of padding, (H, b, L) or None."""

    def __init__(
        self, inputs: AttentionInputs, samples: slice, mem_k: Tensor, mem_v: Tensor, masked_keys: Tensor | None, lost: Tensor | None
    ) -> None:
        self.inputs, self.samples, self.mem_k, self.mem_v = inputs, samples, mem_k, mem_v
        self.q, self.k, self.v = (self.by_head(x) for x in (inputs.q, inputs.k, inputs.v))
        self.is_masked: Tensor | None = None
        self.is_lost: Tensor | None = None
        self.threshold: Tensor | None = None
        if masked_keys is not None:  # so that not even NaN in padding gets through a product with weight 0
            self.is_masked = masked_keys[samples]
            self.k, self.v = (x.masked_fill(self.is_masked[..., None], 0.0) for x in (self.k, self.v))
        if lost is not None:
            self.is_lost = lost[samples].expand(self.q.shape[:-1])
            self.q = self.q.masked_fill(self.is_lost[..., None], 0.0)
        if inputs.threshold is not None:
            self.threshold = inputs.threshold[samples].permute(2, 0, 1)

    def by_head(self, x: Tensor) -> Tensor:
        """The samples of this chunk from (B, L, H, D), as (H, b, L, D) in the precision of the computation."""
        return x[self.samples].permute(2, 0, 1, 3).to(self.inputs.dtype).contiguous()

    def times_memory(self, x: Tensor, memory: Tensor) -> Tensor:
        """(H, b, L, A) times (H, A, C): one product per head for all queries of the chunk."""
        return (_flat(x) @ memory).unflatten(1, x.shape[1:3])

    def raw_slot_scores(self) -> Tensor:
        """``q mem_k^T``, (H, b, L, M)."""
        return self.times_memory(self.q, self.mem_k.mT)

    def slot_scores(self, raw: Tensor) -> Tensor:
        """Scores of the slots in base 2, -inf where a slot has no part; changes ``raw``."""
        if self.threshold is not None:
            raw.masked_fill_(raw < self.threshold[..., None], -torch.inf)
        scores = raw.mul_(LOG2E * self.inputs.scale)
        if self.inputs.mem_bias is not None:
            scores += LOG2E * self.inputs.mem_bias.to(scores.dtype)[:, None, None, None]
        return scores if self.is_lost is None else scores.masked_fill_(self.is_lost[..., None], -torch.inf)

    def key_scores(self) -> Tensor:
        """Scores of the sample's own keys in base 2, (H, b, L, S)."""
        scores = (self.q @ self.k.mT).mul_(LOG2E * self.inputs.scale)
        if self.is_masked is not None:
            scores.masked_fill_(self.is_masked[None, :, None, :], -torch.inf)
        return scores if self.is_lost is None else scores.masked_fill_(self.is_lost[..., None], -torch.inf)

    def dropout_factors(self) -> tuple[Tensor | None, Tensor | None]:
        """What dropout multiplies the weights of slots and keys with: 0 or 1 / (1 - p). None without dropout."""
        inputs = self.inputs
        if inputs.dropout_p == 0.0:
            return None, None
        assert inputs.seed is not None, "dropout needs a seed"
        keys, slots = inputs.k.shape[1], inputs.mem_k.shape[0]
        samples, heads, queries = range(inputs.q.shape[0])[self.samples], inputs.q.shape[2], inputs.q.shape[1]
        kept = keep_mask(inputs.seed, samples, heads, queries, range(keys + slots), inputs.dropout_p)
        of_keys, of_slots = (kept.to(inputs.dtype) / (1.0 - inputs.dropout_p)).split([keys, slots], dim=-1)
        return of_slots, of_keys


def _chunks(inputs: AttentionInputs) -> Iterator[_Chunk]:
    batch, queries, heads, _ = inputs.q.shape
    scores = max(1, queries * heads * (inputs.k.shape[1] + inputs.mem_k.shape[0]))
    step = max(1, SCORES_AT_A_TIME.get(inputs.q.device.type, SCORES_AT_A_TIME["cuda"]) // scores)
    mem_k, mem_v = (x.transpose(0, 1).to(inputs.dtype).contiguous() for x in (inputs.mem_k, inputs.mem_v))
    masks = inputs.masked_keys, inputs.lost_queries
    for start in range(0, batch, step):
        yield _Chunk(inputs, slice(start, min(start + step, batch)), mem_k, mem_v, *masks)


def _separator(raw: Tensor, topk: int) -> Tensor:
    worst_winner, best_loser = raw.topk(topk + 1, dim=-1).values[..., -2:].unbind(-1)
    is_tied = worst_winner == best_loser  # then the best loser is further down
    if raw.is_cuda or is_tied.any():  # a look costs little on a CPU and a stop of the queue on a GPU
        best_loser = raw.masked_fill(raw >= worst_winner[..., None], -torch.inf).amax(dim=-1)
    middle = best_loser + (worst_winner - best_loser) / 2
    separator = torch.where(middle > best_loser, middle, worst_winner)
    return torch.where(best_loser == -torch.inf, best_loser, separator)  # nobody loses


def _largest(scores: Tensor) -> Tensor:
    return scores.amax(dim=-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -torch.inf)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


def _product(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor
