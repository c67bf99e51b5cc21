"""Made-up but coherent inputs for one component: texts with words and padding, masks that fit them, tokens of the right widths.

Everything is drawn from a generator of its own, so a synthetic batch never disturbs torch's global random state. Padding
positions of float ports hold garbage on purpose: a component must not read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import attrs
import torch
from torch import Tensor

from medvlp_core.spec.contract import CLEAN, PORTS, AtLeast, Constraint, Contract, Dim, Divides, Equal, Layout, TensorSpec

#: Ids that the made-up tokenizer uses, as ``standard.wordpiece`` does.
PAD, CLS, MASK, FIRST_WORD, IDS = 0, 2, 3, 4, 31

#: Every view but the clean one is this one: its masks are the only ones.
MASKED = "masked"
#: What a masking draws: there is none in the clean view.
MASKS = ("image_is_masked", "text_is_masked")

#: Ports along the text, (B, L) or (B, L, D): what stands at padding positions means nothing.
TEXT_PORTS = frozenset(
    {
        "token_ids",
        "text_is_valid",
        "word_ids",
        "text_is_masked",
        "text_embeddings",
        "text_tokens",
        "fused_text_embeddings",
        "fused_text_tokens",
        "next_word_logits",
    }
)
#: Ports along the patches of the grid, (B, N) or (B, N, D).
PATCH_PORTS = frozenset({"image_tokens", "fused_image_tokens", "image_is_masked", "patch_prediction"})

_IMAGE_WIDTHS = (24, 48, 36, 16, 32, 64, 96, 128, 192, 256, 384, 768)
_TEXT_WIDTHS = (12, 36, 24, 16, 32, 48, 64, 96, 128, 192, 256, 384, 768)
_LENGTHS = (9, 12, 16)
#: Numbers to try for a symbol, by the port and axis where it stands.
_CANDIDATES: dict[tuple[str, int], tuple[int, ...]] = {
    ("image", 1): (3, 1),
    ("image", 2): (32, 48, 64, 224),
    ("image", 3): (32, 48, 64, 224),
    ("image_target", 1): (3, 1),
    ("image_target", 2): (32, 64, 48, 224),
    ("image_target", 3): (32, 64, 48, 224),
    ("image_grid", 0): (2, 4, 3, 1),
    ("image_grid", 1): (4, 2, 3, 1),
    ("image_tokens", 2): _IMAGE_WIDTHS,
    ("image_prefix", 1): (1, 2),
    ("image_prefix", 2): _IMAGE_WIDTHS,
    ("fused_image_tokens", 2): _TEXT_WIDTHS,
    ("vocabulary", 0): (IDS,),
    ("vocabulary", 1): (MASK,),
    ("end_of_text", 0): (FIRST_WORD,),
    ("text_embeddings", 2): _TEXT_WIDTHS,
    ("text_tokens", 2): _TEXT_WIDTHS,
    ("fused_text_embeddings", 2): _TEXT_WIDTHS,
    ("fused_text_tokens", 2): _TEXT_WIDTHS,
    **{(port, 1): _LENGTHS for port in TEXT_PORTS},
}
_ANY = (5, 8, 12, 24)
PATCHES = 8


def qualified(contracts: Mapping[str, Contract], call: str) -> dict[str, str]:
    """The symbols of a call by their names among those of all calls.

    One that weights depend on is the same in all calls, any other is local to its call: where several calls name it, that of the
    call stands in front.

    Example:
        >>> calls = {"embed": Contract(needs={"a": "B L D"}, sizes=("D",)), "encode": Contract(needs={"b": "B L D"})}
        >>> qualified(calls, "encode") == {"B": "B", "L": "encode.L", "D": "D"}
        True
    """
    shared = {"B"} | {name for contract in contracts.values() for name in contract.sizes}
    in_other_calls = {name for other, contract in contracts.items() if other != call for name in _symbols(contract)}
    return {name: name if name in shared or name not in in_other_calls else f"{call}.{name}" for name in _symbols(contracts[call])}


#: The fields of constraints that hold dimensions.
_DIM_FIELDS = ("dim", "by", "to", "least")


def _symbols(contract: Contract) -> set[str]:
    dims = {getattr(one, part, None) for one in contract.require for part in _DIM_FIELDS}
    return contract.symbols() | {dim for dim in dims if isinstance(dim, str)}


def joined(contracts: Mapping[str, Contract]) -> Contract:
    """The needs, gives and constraints of all calls in one, with the names of :func:`qualified`."""
    needs: dict[str, TensorSpec] = {}
    gives: dict[str, TensorSpec] = {}
    require: list[Constraint] = []
    for call, contract in contracts.items():
        names = qualified(contracts, call)
        for found, specs in ((needs, contract.needs), (gives, contract.gives)):
            for key, spec in specs.items():
                found[f"{call}.{key}"] = attrs.evolve(spec, dims=tuple(_renamed(dim, names) for dim in spec.dims))
        for one in contract.require:
            parts: dict[str, Any] = {part: _renamed(getattr(one, part), names) for part in _DIM_FIELDS if hasattr(one, part)}
            require.append(attrs.evolve(one, **parts))
    return Contract(needs=needs, gives=gives, require=tuple(require))


def _renamed(dim: Dim, names: Mapping[str, str]) -> Dim:
    return names.get(dim, dim) if isinstance(dim, str) else dim


def solve_sizes(contract: Contract) -> dict[str, int]:
    """Numbers for the symbols of what a component needs, so that all its constraints hold.

    Raises:
        ValueError: none of the usual sizes satisfies the constraints.

    Example:
        >>> solve_sizes(Contract(needs={"text_tokens": "B L Dt"}, require=(Divides("Dt", by=5, field="heads"),)))["Dt"]
        Traceback (most recent call last):
        ...
        ValueError: no size of the kit for Dt satisfies Divides(dim='Dt', by=5, field='heads')
    """
    candidates: dict[str, tuple[int, ...]] = {}
    for need in contract.needs.values():
        for axis, dim in enumerate(need.dims):
            if isinstance(dim, str) and dim != "B":
                candidates.setdefault(dim, _CANDIDATES.get((need.port or "", axis), _ANY))
    sizes = _search(candidates, contract, {})
    if sizes is None:
        # Say which symbol is to blame, if one alone is: then the author knows where to look.
        for name, numbers in candidates.items():
            for one in contract.require:
                if not any(_holds(one, {name: number}) for number in numbers):
                    raise ValueError(f"no size of the kit for {name} satisfies {one}")
        raise ValueError(f"no sizes of the kit satisfy {', '.join(map(str, contract.require))}")
    return sizes


def _search(candidates: Mapping[str, tuple[int, ...]], contract: Contract, sizes: dict[str, int]) -> dict[str, int] | None:
    if len(sizes) == len(candidates):
        return sizes
    name = list(candidates)[len(sizes)]
    patches = grid_patches(contract, sizes) if name in _patch_symbols(contract) else None
    for number in candidates[name] if patches is None else (patches,):
        tried = {**sizes, name: number}
        if all(_holds(one, tried) for one in contract.require):
            found = _search(candidates, contract, tried)
            if found is not None:
                return found
    return None


def _patch_symbols(contract: Contract) -> set[Dim]:
    return {need.dims[1] for need in contract.needs.values() if need.port in PATCH_PORTS and len(need.dims) > 1}


def grid_patches(contract: Contract, sizes: Mapping[str, int]) -> int:
    """The patches N of the synthetic batch: those of the grid if the contract names one, else what a port declares, else eight."""
    specs = (*contract.needs.values(), *contract.gives.values())
    grids = [[number_of(dim, sizes) for dim in spec.dims] for spec in specs if spec.port == "image_grid"]
    for rows, columns in grids:
        if rows is not None and columns is not None:
            return rows * columns
    counts = [spec.dims[1] for spec in specs if spec.port in PATCH_PORTS and len(spec.dims) > 1 and spec.layout != "dropped"]
    return next((dim for dim in counts if isinstance(dim, int)), PATCHES)


def is_along(spec: TensorSpec, ports: Set[str], contract: Contract) -> bool:
    """Whether a tensor stands along the text or the patches: by its port, or, a port of its own, by the symbol of its axis 1."""
    if spec.port in PORTS or len(spec.dims) < 2:
        return spec.port in ports
    needs = [need for need in contract.needs.values() if need.port in ports]
    return isinstance(spec.dims[1], str) and any(spec.dims[1] == need.dims[1] for need in needs)


def number_of(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """The number of a dimension, or None while it is free."""
    return dim if isinstance(dim, int) else sizes.get(dim)


def _holds(constraint: Constraint, sizes: Mapping[str, int]) -> bool:
    """Whether a constraint holds; True while it cannot be decided."""
    dim = number_of(constraint.dim, sizes)
    if dim is None:
        return True
    if isinstance(constraint, Divides):
        by = number_of(constraint.by, sizes)
        return by is None or dim % by == 0
    if isinstance(constraint, Equal):
        to = number_of(constraint.to, sizes)
        return to is None or dim == to
    if isinstance(constraint, AtLeast):
        least = number_of(constraint.least, sizes)
        return least is None or dim >= least
    return dim in constraint.values


@attrs.define(kw_only=True)
class SyntheticBatch:
    """One batch: texts of the given ``lengths``, patches of which some are masked, and the tensors of any port on demand.

    ``layout`` says whether image tokens of the masked view lost the masked patches (``dropped``) or kept their places, ``specials``
    how many token ids there are and which is [MASK], if the component names them.
    """

    contract: Contract
    sizes: dict[str, int]
    lengths: tuple[int, ...]
    layout: Layout
    seed: int
    patches: int
    specials: Sequence[int | None]
    _generator: torch.Generator = attrs.field(init=False, eq=False)
    masked: int = attrs.field(init=False)
    fixed: dict[tuple[str, str | None], Tensor] = attrs.field(init=False, factory=dict, eq=False)
    _made: dict[tuple[str, str], Tensor] = attrs.field(init=False, factory=dict, eq=False)

    def __attrs_post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self.masked = max(1, self.patches * 5 // 8) if self.patches > 1 else 0
        self._write_text()
        order = torch.rand(self.batch, self.patches, generator=self._generator).argsort(dim=1)
        self.fixed["image_is_masked", MASKED] = order < self.masked

    @property
    def batch(self) -> int:
        """Pairs in the batch."""
        return len(self.lengths)

    @property
    def vocabulary(self) -> int:
        """Ids that there are: those that the component names, else those of the made-up tokenizer."""
        return self.specials[0] or IDS

    def _write_text(self) -> None:
        """Ids, validity and words: [CLS], then words of one or two pieces, then padding; a word of each is masked."""
        length = max(self.lengths)
        position = torch.arange(length).expand(self.batch, length)
        is_valid = position < torch.tensor(self.lengths)[:, None]
        word_ids = torch.where(is_valid & (position > 0), (position - 1) * 2 // 3, -1)
        mask_id = self.specials[1]
        ids = torch.randint(FIRST_WORD, max(self.vocabulary, FIRST_WORD + 1), (self.batch, length), generator=self._generator)
        ids = torch.where(is_valid, torch.where(position == 0, CLS, ids), PAD)
        chosen = torch.rand(self.batch, length, generator=self._generator) < 0.4
        is_masked = (word_ids >= 0) & chosen.gather(1, word_ids.clamp(min=0))
        is_masked |= word_ids == 0
        self.fixed |= {
            ("text_is_valid", None): is_valid,
            ("word_ids", None): word_ids,
            ("token_ids", CLEAN): ids,
            ("token_ids", MASKED): ids.masked_fill(is_masked, MASK if mask_id is None else mask_id),
            ("text_is_masked", MASKED): is_masked,
        }

    def tensor(self, need: TensorSpec, view: str) -> Tensor | None:
        """A tensor for a need in a view; None for a mask in the clean view, where nothing is masked."""
        port = need.port or ""
        for key in ((port, CLEAN if view == CLEAN else MASKED), (port, None)):
            if key in self.fixed:
                return self.fixed[key]
        if port in MASKS:
            return None
        if (port, view) in self._made:  # the same port in the same view is the same tensor
            return self._made[port, view]
        shape = self.shape(need, view)
        if need.dtype == "bool":
            return torch.rand(shape, generator=self._generator) < 0.5
        if need.dtype == "int":
            return torch.randint(0, 5, shape, generator=self._generator)
        self._made[port, view] = torch.randn(shape, generator=self._generator)
        return self._made[port, view]

    def shape(self, need: TensorSpec, view: str) -> tuple[int, ...]:
        """The shape of a port: solved sizes, and the rows, text length and patch count of this synthetic batch."""
        sizes: dict[int, int] = {0: self.batch} if need.dims[:1] == ("B",) else {}
        if is_along(need, TEXT_PORTS, self.contract):
            sizes[1] = max(self.lengths)
        elif is_along(need, PATCH_PORTS, self.contract):
            sizes[1] = self.token_count(need, view)
        return tuple(sizes.get(axis) or self._number(dim) for axis, dim in enumerate(need.dims))

    def token_count(self, need: TensorSpec, view: str) -> int:
        """Image tokens of a view: all patches, or the visible ones where masked patches are dropped."""
        masks = [spec.dims[1] for spec in self.contract.needs.values() if spec.port == "image_is_masked"]
        is_full = need.dims[1] in masks or view == CLEAN or (need.layout or self.layout) == "replaced"
        return self.patches if is_full else self.patches - self.masked

    def _number(self, dim: Dim) -> int:
        found = number_of(dim, self.sizes)
        if found is None:
            raise ValueError(f"the kit has no size for {dim}")
        return found


def other_values(tensor: Tensor, generator: torch.Generator, *, vocabulary: int = IDS) -> Tensor:
    """Another tensor of the same shape and dtype, different in every element as far as the dtype allows."""
    if tensor.dtype == torch.bool:
        return ~tensor
    if not tensor.is_floating_point():
        return (tensor + torch.randint(1, 3, tensor.shape, generator=generator)) % vocabulary
    return tensor + 3.0 + torch.rand(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype)


def all_close(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal but for the rounding of float32."""
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-5)
