"""The calls that are checked, and how their tensors are drawn."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor

from medvlp_mpma.kernels.first_run.setting import DEVICE
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_topk import benchmark as topk


@attrs.frozen(kw_only=True)
class Case:
    """A call that is checked; ``topk`` makes it one of ``mpma.memory_topk``. ``on`` names what is switched on."""

    name: str
    batch: int = 3
    heads: int = 2
    queries: int = 37
    keys: int = 0
    slots: int = 0
    width: int = 64
    topk: int = 0
    on: frozenset[str] = frozenset()
    dropout_p: float = 0.0

    @property
    def op(self) -> str:
        """The op's name."""
        return topk.NAME if self.topk else attention.NAME

    @property
    def sizes(self) -> str:
        """All sizes in one line."""
        sizes = (self.batch, self.heads, self.queries, self.keys, self.slots, self.width, self.topk)
        return " ".join(f"{letter}={size}" for letter, size in zip("BHLSMDK", sizes, strict=True))

    def shrunk(self) -> Case:
        """The same for a rehearsal: too many queries for the kernel that does the keys, too, stay too many."""
        queries, keys, slots = -(-self.queries // 8), -(-self.keys // 16), -(-self.slots // 16)
        chosen = slots + 1 if self.topk >= self.slots else max(2, self.topk // 8)
        width, chosen = self.width // 4, chosen if self.topk else 0
        batch = 2 if self.on else 1
        return attrs.evolve(self, batch=batch, queries=queries, keys=keys, slots=slots, width=width, topk=chosen)


ALL = frozenset({"key_lens", "key_mask", "query_lens", "bias", "closed"})
CASES = (
    Case(name="A", queries=100, keys=50, slots=256),
    Case(name="odd sizes, padding", queries=37, keys=33, slots=35, on=frozenset({"key_lens", "query_lens"})),
    Case(name="one row", batch=1, heads=1, queries=1, keys=1, slots=1),
    Case(name="two kernels, key mask, bias", queries=200, keys=70, slots=130, on=frozenset({"key_mask", "bias", "closed"})),
    Case(name="two kernels, all, dropout", queries=129, keys=50, slots=70, on=ALL, dropout_p=0.1),
    Case(name="one kernel, all, dropout", queries=100, keys=77, slots=70, on=ALL, dropout_p=0.1),
    Case(name="no keys", queries=100, slots=300, on=frozenset({"query_lens"})),
    Case(name="no slots", queries=100, keys=50, on=frozenset({"key_lens"})),
    Case(name="gradient of lse", queries=140, keys=50, slots=40, on=frozenset({"lse", "key_lens"})),
    Case(name="strided views", queries=100, keys=50, slots=64, on=frozenset({"views"})),
    Case(name="many keys", queries=256, keys=1025, slots=256, on=frozenset({"query_lens"})),
    Case(name="width 96", queries=130, keys=197, slots=100, width=96, on=frozenset({"key_lens"})),
    Case(name="width 128", queries=64, keys=64, slots=64, width=128),
    Case(name="width 128, two kernels, all", queries=150, keys=50, slots=90, width=128, on=ALL, dropout_p=0.1),
    Case(name="width 24", queries=17, keys=5, slots=9, width=24),
    Case(name="G", slots=2048, topk=32),
    Case(name="G, odd, tall", queries=149, slots=2043, topk=32, on=frozenset({"views"})),
    Case(name="K >= M", slots=20, topk=32),
    Case(name="ties", slots=300, topk=7, on=frozenset({"ties"})),
    Case(name="ties, 2048 slots", slots=2048, topk=32, on=frozenset({"ties"})),
    Case(name="top-k, dropout", slots=1000, topk=16, dropout_p=0.1),
    Case(name="top-k, width 96", slots=512, width=96, topk=32),
    Case(name="top-k, width 128", slots=500, width=128, topk=32),
    Case(name="4096 slots", slots=4096, topk=32),
)


def draw(case: Case, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    """The arguments of the op, rounded to ``dtype``; hidden keys and padded queries hold NaN."""
    new = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        if "ties" in case.on:  # whole numbers: products are exact, and many are equal
            return torch.randint(-1, 2, shape, generator=new).to(dtype)
        x = torch.randn(*shape, generator=new, dtype=torch.float64).to(dtype)
        return torch.stack([x, x], dim=-3)[..., 0, :, :] if "views" in case.on else x

    q = normal(case.batch, case.queries, case.heads, case.width)
    mem_k, mem_v = (normal(case.slots, case.heads, case.width) for _ in range(2))
    found: dict[str, Any] = {"q": q, "mem_k": mem_k, "mem_v": mem_v, "dropout_p": case.dropout_p}
    if case.topk:
        return found | {"topk": case.topk}
    k, v = (normal(case.batch, case.keys, case.heads, case.width) for _ in range(2))
    key_lens, query_lens = (torch.tensor([size, size // 2, 0])[: case.batch] for size in (case.keys, case.queries))
    found |= {"k": k, "v": v, "key_lens": key_lens.int() if "key_lens" in case.on else None}
    found["query_lens"] = query_lens.flip(0) if "query_lens" in case.on else None
    found["key_is_valid"] = torch.rand(case.batch, case.keys, generator=new) > 0.4 if "key_mask" in case.on else None
    if "bias" in case.on:
        found["mem_bias"] = torch.tensor([-math.inf if "closed" in case.on else 0.7, -0.4])[: case.heads]
    masks = AttentionInputs(q, k, v, mem_k, mem_v, *(found[name] for name in ("key_lens", "key_is_valid", "query_lens")))
    if (masked_keys := masks.masked_keys) is not None:
        k[masked_keys], v[masked_keys] = math.nan, math.nan
    if (lost := masks.lost_queries) is not None:
        q[lost] = math.nan
    return found


def drawn(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """:func:`draw` on the device, with winners that are clear unless ties are wanted: rounding must not swap slots."""
    for seed in range(50):
        found = draw(case, dtype, seed)
        if not 0 < case.topk < case.slots or "ties" in case.on:
            break
        scores = torch.einsum("blhd,mhd->blhm", found["q"].double(), found["mem_k"].double())
        best = scores.topk(case.topk + 1, dim=-1).values
        if (best[..., -2] - best[..., -1]).min() > topk.SMALLEST_GAP * scores.abs().max():
            break
    return {name: _moved(x) if isinstance(x, Tensor) else x for name, x in found.items()}


def _moved(x: Tensor) -> Tensor:
    """On the device with the same strides."""
    if x.is_contiguous():
        return x.to(DEVICE)
    module = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)
    return module.copy_(x)
