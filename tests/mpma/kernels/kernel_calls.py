"""Calls of the memory's ops for tests: drawn at random, compared in output and every gradient."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention.op import memory_attention
from medvlp_mpma.kernels.memory_topk.op import memory_topk
from torch import Tensor

#: Error against float64, relative to the largest number of the result (at least 1).
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 2e-3}
LARGE = ("q", "k", "v", "mem_k", "mem_v")


@attrs.frozen(kw_only=True)
class Case:
    """Sizes of a call and what is switched on; ``inputs`` makes its tensors."""

    batch: int = 2
    queries: int = 5
    keys: int = 4
    slots: int = 6
    heads: int = 2
    width: int = 8
    has_key_lens: bool = False
    has_key_mask: bool = False
    has_query_lens: bool = False
    has_bias: bool = False
    is_closed: bool = False
    dropout_p: float = 0.0
    spread: float = 1.0
    seed: int = 0

    def inputs(self, dtype: torch.dtype) -> dict[str, Any]:
        """Keyword arguments of ``memory_attention``; padding holds NaN, and values are rounded to ``dtype``."""
        new = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=new, dtype=torch.float64).to(dtype)

        def whole(high: int) -> Tensor:
            return torch.randint(0, high + 1, (self.batch,), generator=new)

        per_key, slot = (self.batch, self.keys, self.heads, self.width), (self.slots, self.heads, self.width)
        found: dict[str, Any] = {"q": self.spread * normal(self.batch, self.queries, self.heads, self.width)}
        found |= {"k": normal(*per_key), "v": normal(*per_key), "mem_k": normal(*slot), "mem_v": normal(*slot)}
        found["key_lens"] = whole(self.keys).int() if self.has_key_lens else None
        found["key_is_valid"] = torch.rand(self.batch, self.keys, generator=new) > 0.4 if self.has_key_mask else None
        found["query_lens"] = whole(self.queries) if self.has_query_lens else None
        if self.has_bias:
            found["mem_bias"] = normal(self.heads)
            if self.is_closed:
                found["mem_bias"][0] = -math.inf
        masks = AttentionInputs(*(found[name] for name in (*LARGE, "key_lens", "key_is_valid", "query_lens")))
        if (masked := masks.masked_keys) is not None:
            found["k"][masked], found["v"][masked] = math.nan, math.nan
        if (lost := masks.lost_queries) is not None:
            found["q"][lost] = math.nan
        return found | {"scale": 0.4, "dropout_p": self.dropout_p}


def cases(**fixed: Any) -> st.SearchStrategy[Case]:
    """Ragged, empty and odd sizes."""
    free = {
        "batch": st.integers(1, 3),
        "queries": st.sampled_from([1, 2, 5, 16, 17, 37]),
        "keys": st.sampled_from([0, 1, 4, 31, 33]),
        "slots": st.sampled_from([0, 1, 6, 16, 35]),
        "heads": st.integers(1, 3),
        "width": st.sampled_from([4, 8, 16, 24]),
        "dropout_p": st.sampled_from([0.0, 0.0, 0.3]),
        "spread": st.sampled_from([1.0, 1e-3, 30.0]),
        "seed": st.integers(0, 10**6),
    }
    flags = ("has_key_lens", "has_key_mask", "has_query_lens", "has_bias", "is_closed")
    return st.builds(Case, **(free | {name: st.booleans() for name in flags} | {name: st.just(x) for name, x in fixed.items()}))


def attend(inputs: dict[str, Any], backend: str, dtype: torch.dtype, *, with_lse: bool = False) -> dict[str, Tensor]:
    """Output, lse and every gradient of one call in ``dtype``, by name; the upstream gradients are functions of the shape.

    Tensors keep their strides (a clone would pack those that are slices).
    """
    given = {name: x.to(dtype) if _is_float(x) else x for name, x in inputs.items()}
    leaves = {name: given[name].detach().requires_grad_() for name in (*LARGE, "mem_bias") if given.get(name) is not None}
    torch.manual_seed(1234)  # dropout's seed
    out, lse = memory_attention(**(given | leaves), return_lse=True, backend=backend)
    is_reached = lse > -math.inf
    total = (out * upstream(out, given.get("query_lens"))).sum()
    if with_lse:
        total = total + (lse.masked_fill(~is_reached, 0.0) * upstream(lse)).sum()
    names = list(leaves)
    grads = torch.autograd.grad(total, [leaves[name] for name in names], allow_unused=True)
    found = {f"grad {name}": torch.zeros_like(leaves[name]) if x is None else x for name, x in zip(names, grads, strict=True)}
    return {"out": out.detach(), "lse": lse.detach().masked_fill(~is_reached, -1e4)} | found


def answer(inputs: dict[str, Any], topk: int, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The same for ``memory_topk``."""
    leaves = {name: inputs[name].to(dtype).clone().requires_grad_() for name in ("q", "mem_k", "mem_v")}
    torch.manual_seed(1234)
    out = memory_topk(**leaves, topk=topk, scale=inputs["scale"], dropout_p=inputs["dropout_p"], backend=backend)
    grads = torch.autograd.grad((out * upstream(out)).sum(), list(leaves.values()))
    return {"out": out.detach()} | {f"grad {name}": x for name, x in zip(leaves, grads, strict=True)}


def upstream(x: Tensor, query_lens: Tensor | None = None) -> Tensor:
    """A gradient for ``x`` that does not depend on its dtype; NaN at padded queries, which must not get through."""
    generator = torch.Generator().manual_seed(x.numel())
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    if query_lens is not None:
        grad[torch.arange(x.shape[1]) >= query_lens[:, None]] = 0.0
    return grad.half().to(x.dtype)


def errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each result, relative to its largest number or 1, whichever is larger; NaN counts as infinite."""
    assert found.keys() == wanted.keys()
    return {name: error(found[name], wanted[name]) for name in found}


def error(found: Tensor, wanted: Tensor) -> float:
    """See :func:`errors`."""
    assert found.shape == wanted.shape
    if not wanted.numel():
        return 0.0
    difference = (found.double() - wanted.double()).abs().max().item()
    return math.inf if math.isnan(difference) else difference / max(1.0, wanted.abs().max().item())


def too_large(found: dict[str, float], dtype: torch.dtype, spread: float = 1.0) -> dict[str, float]:
    """The errors above the tolerance.

    Gradients of scores are differences of sums, and those that should cancel leave the roundings of the summands: they get four
    times as much. Scores of a hundred are rounded a hundred times as much, and so are the weights.
    """
    most = {name: TOLERANCE[dtype] * (1.0 if name in ("out", "lse", "grad v", "grad mem_v") else 4.0) for name in found}
    return {name: size for name, size in found.items() if not size < most[name] * max(1.0, 2.0 * spread if spread > 1.0 else 1.0)}


def _is_float(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()
