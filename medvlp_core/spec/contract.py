"""What a call of a component needs and gives: ports with symbolic dimensions, and the constraints on them. Light.

A *port* is a named tensor that flows between components (``image_tokens``, ``text_is_valid`` ...). A contract says, for each
port, its dimensions (symbols such as ``B`` or integers), its dtype, its *view* and its *layout*:

* view: ``clean`` (nothing masked), or the name of a view that a masking opens, by default ``masked``. In a contract the name is
  formal: a recipe may bind it to another view (``views: {masked: mae}``). A need without a view means the view of the call.
* layout: how a view of a sequence lost its masked tokens: ``dropped`` (the sequence is shorter, visible tokens in raster order)
  or ``replaced`` (full length).

Symbols are local to a call in a view: ``Dt`` of a fusion and ``D`` of a text encoder become one dimension because a port connects
them, and ``S`` of a fusion may be two numbers in two views. Symbols that a contract lists under ``sizes`` are what weights depend
on: one number over all calls and views of the component, and what its builder gets. A ``shape`` port carries no tensor, only
dimensions (``image_grid`` = ``GH GW``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

from medvlp_core.spec.fields import Field

Dim = str | int
#: What a builder gets: the symbols of its contract and the numbers that were solved for them.
Dims = Mapping[str, int]
Dtype = Literal["float", "int", "bool", "shape"]
#: The view in which nothing is masked.
CLEAN = "clean"
Sees = Literal["past", "all"]
Layout = Literal["dropped", "replaced"]

#: The ports that the core and the bundles here use. Others are legal; these have a fixed meaning (docs/ports.md).
PORTS: dict[str, str] = {
    "image": "input images, normalised, (B, C, H, W)",
    "image_target": "images that a decoder reconstructs, maybe of higher resolution, (B, C, Ht, Wt)",
    "image_grid": "rows and columns of the patch grid (shape port)",
    "image_is_masked": "True where a patch is masked, (B, N), raster order",
    "image_tokens": "patch tokens without prefix tokens, (B, N, Di); the visible ones if layout is `dropped`",
    "image_prefix": "prefix tokens of the image encoder (CLS, registers), (B, P, Di); P may be 0",
    "token_ids": "token ids, (B, L); [MASK] stands at masked positions in the masked view",
    "text_is_valid": "True where a token is real, not padding, (B, L)",
    "word_ids": "index of the word a token belongs to, (B, L); -1 at special tokens and padding",
    "text_is_masked": "True where a token is masked, (B, L)",
    "vocabulary": "vocabulary size V and id of the [MASK] token (shape port)",
    "text_embeddings": "output of the text encoder's embedding stage, (B, L, Dt)",
    "text_tokens": "contextual tokens of the text encoder; position 0 is [CLS], (B, L, Dt)",
    "fused_text_embeddings": "text embeddings with image information added before the encoder layers, (B, L, Dt)",
    "fused_text_tokens": "text tokens that have seen the image, (B, L, Df)",
    "fused_image_tokens": "patch tokens that have seen the text, (B, N, Df)",
    "image_embedding": "L2-normalised image vector in the shared space of an alignment, (B, E)",
    "text_embedding": "L2-normalised text vector in the shared space of an alignment, (B, E)",
    "progress": "share of the optimiser steps that are done, a scalar from 0; 1 in validation, evaluation and inference",
    "patch_prediction": "reconstructed pixels of every patch, (B, N, Q)",
    "word_logits": "vocabulary logits at scored text positions, (R, V)",
    "end_of_text": "id of the token that ends a text (shape port)",
    "next_word_logits": "vocabulary logits of the token behind each position, which see the text up to there only, (B, L, V)",
    "generated_ids": "token ids that a decoder wrote itself, from the first token of each text on, (B, G)",
    "match_score": "how well an image and a text belong together, (B,)",
}


@attrs.frozen
class TensorSpec:
    """Dimensions, dtype, view and layout of one port.

    ``port`` is the port's name where the key in the contract differs from it (one port in two views).
    ``is_optional``: the component is called without the argument if nobody gives the port in that view.
    ``when`` (of a given port): the spec holds in views where this optional need is filled, e.g. the shape of the visible tokens.
    ``sees`` (of a port along a text): ``past`` = position l depends on positions up to l only, ``all`` = on the whole text. Given,
    it is a promise of the call about what it takes; needed, a demand on all that leads there (docs/ports.md).
    """

    dims: tuple[Dim, ...]
    dtype: Dtype = "float"
    view: str | None = None
    layout: Layout | None = None
    port: str | None = None
    is_optional: bool = False
    when: str | None = None
    sees: Sees | None = None

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        layout: Layout | None = None,
        port: str | None = None,
        when: str | None = None,
        sees: Sees | None = None,
    ) -> TensorSpec:
        """Read the short form ``"B L Dt"``, ``"B L:bool"``, ``"B N Di @masked"``, ``"B N:bool?"`` (optional), ``":float"``.

        Raises:
            ValueError: the text is not of that form.

        Example:
            >>> TensorSpec.parse("B N:bool? @masked")
            TensorSpec(dims=('B', 'N'), dtype='bool', view='masked', layout=None, port=None, is_optional=True, when=None, sees=None)
        """
        body, _, view = (part.strip() for part in text.partition("@"))
        is_optional = body.endswith("?")
        body, _, dtype = (part.strip() for part in body.removesuffix("?").partition(":"))
        dims = tuple(int(dim) if dim.isdigit() else dim for dim in body.split())
        if (view and not view.isidentifier()) or dtype not in ("", "float", "int", "bool", "shape"):
            raise ValueError(f"not a tensor spec: {text!r}; expected 'DIM DIM ...[:dtype][?] [@VIEW]'")
        if bad := [dim for dim in dims if isinstance(dim, str) and not dim.isidentifier()]:
            raise ValueError(f"not a tensor spec: {text!r}; {bad[0]!r} is neither a symbol nor an integer")
        return cls(
            dims,
            dtype or "float",  # type: ignore[arg-type]
            view or None,
            layout,
            port,
            is_optional,
            when,
            sees,
        )

    def __str__(self) -> str:
        text = " ".join(str(dim) for dim in self.dims)
        text += f":{self.dtype}" if self.dtype != "float" or not self.dims else ""
        text += "?" if self.is_optional else ""
        text += f" @{self.view}" if self.view else ""
        return text + (f" ({self.layout})" if self.layout else "")


@attrs.frozen
class Divides:
    """``by`` (a number or symbol) divides ``dim`` without remainder. ``field``: the parameter to blame."""

    dim: Dim
    by: Dim
    field: str | None = None


@attrs.frozen
class Equal:
    """Both dimensions are the same number."""

    dim: Dim
    to: Dim
    field: str | None = None


@attrs.frozen
class AtLeast:
    """``dim`` is not smaller than ``least``. ``what``: what ``dim`` is, for the message, where it is a bare number."""

    dim: Dim
    least: Dim
    field: str | None = None
    what: str | None = None


@attrs.frozen
class OneOf:
    """``dim`` is one of the listed numbers."""

    dim: Dim
    values: tuple[int, ...]
    field: str | None = None


Constraint = Divides | Equal | AtLeast | OneOf


def _specs(ports: Mapping[str, TensorSpec | str]) -> dict[str, TensorSpec]:
    parsed = {name: TensorSpec.parse(spec) if isinstance(spec, str) else spec for name, spec in ports.items()}
    return {name: attrs.evolve(spec, port=spec.port or name) for name, spec in parsed.items()}


@attrs.frozen(kw_only=True)
class Contract:
    """What one call of a component needs, gives, requires of dimensions, which loss terms it emits, and what it gets after a step.

    ``needs`` maps an *argument name of the method* to a spec, ``gives`` a label to a spec; the port is the key unless the spec says
    otherwise. A call that emits ``losses`` runs once in a training step and reads the clean view where a need names no other. Any
    other call is an offer: it runs in each view in which somebody needs what it gives, and a need without a view means that view.

    ``sizes`` are the symbols that weights depend on: one number over all calls and views, and what the builder gets.
    ``after`` are rows that the module's method ``after_step`` gets after each step that changed the weights, of the whole step in
    the order of its records, for queues and prototypes: arguments of this call, or ports that the component gives. Their first
    axis is ``T``, the records of the step (``after={"image_embedding": "T E"}``).
    ``mixes_rows``: the result of a row of the batch depends on other rows, as in a contrast. With ``train.contrast_over: step``
    such a call runs once over the rows of all micro-batches and processes, and inside it there is one process.

    ``fields`` (of a data component): what its records hold beside an image and a text; each gives ports (docs/ports.md).

    Example:
        >>> Contract(needs={"text_tokens": "B L Dt"}, require=(Divides("Dt", by=12, field="heads"),)).needs["text_tokens"].dims
        ('B', 'L', 'Dt')
    """

    needs: dict[str, TensorSpec] = attrs.field(factory=dict, converter=_specs)
    gives: dict[str, TensorSpec] = attrs.field(factory=dict, converter=_specs)
    sizes: tuple[str, ...] = ()
    require: tuple[Constraint, ...] = ()
    losses: tuple[str, ...] = ()
    mixes_rows: bool = False
    fields: dict[str, Field] = attrs.field(factory=dict)

    after: dict[str, TensorSpec] = attrs.field(factory=dict, converter=_specs)

    def symbols(self) -> set[str]:
        """Every symbol that the contract names."""
        specs = (*self.needs.values(), *self.gives.values(), *self.after.values())
        return {dim for spec in specs for dim in spec.dims if isinstance(dim, str)}


@attrs.frozen
class Axis:
    """The length of a ragged axis, as long as its longest row in a batch: equal to itself only, at most ``bound``.

    ``is_padded``: rows may be shorter, as texts are; the visible tokens of images are not.
    """

    name: str
    bound: int | None = None
    is_padded: bool = True

    def __str__(self) -> str:
        return self.name


@attrs.frozen
class Symbol:
    """A dimension symbol of the component at ``owner`` (a path such as ``model.fusion``), local to ``scope``: a call in a view."""

    owner: str
    name: str
    scope: str = ""

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


Size = int | Axis


@attrs.frozen
class Conflict:
    """Two facts about one dimension that cannot both hold."""

    first: Size
    first_source: str
    second: Size
    second_source: str


@attrs.define
class SymbolTable:
    """Union-find over dimension symbols: which are equal, and which size they have, with where it came from."""

    _parent: dict[Symbol, Symbol] = attrs.field(factory=dict, init=False)
    _size: dict[Symbol, tuple[Size, str]] = attrs.field(factory=dict, init=False)

    def _root(self, symbol: Symbol) -> Symbol:
        while (parent := self._parent.get(symbol, symbol)) != symbol:
            symbol = parent
        return symbol

    def size(self, symbol: Symbol) -> Size | None:
        """The number or ragged axis of a symbol, or None while it is free."""
        found = self._size.get(self._root(symbol))
        return found[0] if found else None

    def value(self, symbol: Symbol) -> int | None:
        """The number of a symbol, the largest length of a ragged axis; None while it is free or without a bound."""
        size = self.size(symbol)
        return size.bound if isinstance(size, Axis) else size

    def equal(self, symbol: Symbol) -> list[Symbol]:
        """All symbols that are the same dimension, itself among them."""
        root = self._root(symbol)
        return [one for one in {symbol, root, *self._parent} if self._root(one) == root]

    def source(self, symbol: Symbol) -> str | None:
        """The component path that fixed the size, or None while the symbol is free."""
        found = self._size.get(self._root(symbol))
        return found[1] if found else None

    def bind(self, symbol: Symbol, size: Size, source: str) -> Conflict | None:
        """Fix a symbol to a size; returns the conflict if it already has another one."""
        root = self._root(symbol)
        if root in self._size and self._size[root][0] != size:
            return Conflict(*self._size[root], size, source)
        self._size.setdefault(root, (size, source))
        return None

    def unify(self, left: Symbol, right: Symbol) -> Conflict | None:
        """Make two symbols one; returns the conflict if they have different sizes (then they stay apart)."""
        a, b = self._root(left), self._root(right)
        if a == b:
            return None
        if a in self._size and b in self._size and self._size[a][0] != self._size[b][0]:
            return Conflict(*self._size[a], *self._size[b])
        if b in self._size:
            a, b = b, a
        self._parent[b] = a
        return None

    def unify_dims(self, left: Iterable[tuple[str, Symbol | int]], right: Iterable[tuple[str, Symbol | int]]) -> list[Conflict]:
        """Unify two rows of ``(source, dim)``, position by position."""
        conflicts = []
        for (left_source, a), (right_source, b) in zip(left, right, strict=True):
            if isinstance(a, Symbol):
                found = self.unify(a, b) if isinstance(b, Symbol) else self.bind(a, b, right_source)
            elif isinstance(b, Symbol):
                found = self.bind(b, a, left_source)
            else:
                found = Conflict(a, left_source, b, right_source) if a != b else None
            if found:
                conflicts.append(found)
        return conflicts
