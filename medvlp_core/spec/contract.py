"""What a component needs and gives: ports with symbolic dimensions, and the constraints on them. Light.

A *port* is a named tensor that flows between components (``image_tokens``, ``text_is_valid`` ...). A contract says, for each
port, its dimensions (symbols such as ``B`` or integers), its dtype, its *view* and its *layout*:

* view: ``clean`` (nothing masked) or ``masked`` (some patches or words masked). A port without a view, such as
  ``text_is_valid``, is the same in both.
* layout: how the masked view of a sequence lost its masked tokens: ``dropped`` (the sequence is shorter, visible tokens in
  raster order) or ``replaced`` (full length).

Symbols are local to a component: ``Dt`` of a fusion and ``D`` of a text encoder become one dimension because a port connects
them. A ``shape`` port carries no tensor, only dimensions (``image_grid`` = ``GH GW``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import attrs

Dim = str | int
#: What a builder gets: the symbols of its contract and the numbers that were solved for them.
Dims = Mapping[str, int]
Dtype = Literal["float", "int", "bool", "shape"]
View = Literal["clean", "masked"]
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
    "patch_prediction": "reconstructed pixels of every patch, (B, N, Q)",
    "word_logits": "vocabulary logits at scored text positions, (R, V)",
}


@attrs.frozen
class TensorSpec:
    """Dimensions, dtype, view and layout of one port.

    ``port`` is the port's name where the key in the contract differs from it (one port in two views).
    ``is_optional``: the component is called with None if nobody gives the port in that view.
    """

    dims: tuple[Dim, ...]
    dtype: Dtype = "float"
    view: View | None = None
    layout: Layout | None = None
    port: str | None = None
    is_optional: bool = False

    @classmethod
    def parse(cls, text: str, *, layout: Layout | None = None, port: str | None = None) -> TensorSpec:
        """Read the short form ``"B L Dt"``, ``"B L:bool"``, ``"B N Di @masked"``, ``"B N:bool?"`` (optional).

        Raises:
            ValueError: the text is not of that form.

        Example:
            >>> TensorSpec.parse("B N:bool? @masked")
            TensorSpec(dims=('B', 'N'), dtype='bool', view='masked', layout=None, port=None, is_optional=True)
        """
        body, _, view = (part.strip() for part in text.partition("@"))
        is_optional = body.endswith("?")
        body, _, dtype = (part.strip() for part in body.removesuffix("?").partition(":"))
        dims = tuple(int(dim) if dim.isdigit() else dim for dim in body.split())
        if view not in ("", "clean", "masked") or dtype not in ("", "float", "int", "bool", "shape"):
            raise ValueError(f"not a tensor spec: {text!r}; expected 'DIM DIM ...[:dtype][?] [@clean|@masked]'")
        if bad := [dim for dim in dims if isinstance(dim, str) and not dim.isidentifier()]:
            raise ValueError(f"not a tensor spec: {text!r}; {bad[0]!r} is neither a symbol nor an integer")
        return cls(
            dims,
            dtype or "float",  # type: ignore[arg-type]
            view or None,  # type: ignore[arg-type]
            layout,
            port,
            is_optional,
        )

    def __str__(self) -> str:
        text = " ".join(str(dim) for dim in self.dims)
        text += f":{self.dtype}" if self.dtype != "float" else ""
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
    """What one component needs, gives, requires of dimensions, and which loss terms it emits.

    ``needs`` maps an *argument name of the module's forward* to a spec, ``gives`` a label to a spec; the port is the key unless
    the spec says otherwise. In roles that run once per view (image_encoder, text_encoder, fusion) a need without a view means
    "the view of this pass"; in all other roles it means ``clean``.

    Example:
        >>> Contract(needs={"text_tokens": "B L Dt"}, require=(Divides("Dt", by=12, field="heads"),)).needs["text_tokens"].dims
        ('B', 'L', 'Dt')
    """

    needs: dict[str, TensorSpec] = attrs.field(factory=dict, converter=_specs)
    gives: dict[str, TensorSpec] = attrs.field(factory=dict, converter=_specs)
    require: tuple[Constraint, ...] = ()
    losses: tuple[str, ...] = ()

    def symbols(self) -> set[str]:
        """Every symbol that the contract names."""
        specs = (*self.needs.values(), *self.gives.values())
        return {dim for spec in specs for dim in spec.dims if isinstance(dim, str)}


@attrs.frozen
class Symbol:
    """A dimension symbol, local to the component at ``owner`` (a path such as ``model.fusion``)."""

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


@attrs.frozen
class Conflict:
    """Two facts about one dimension that cannot both hold."""

    first: int
    first_source: Symbol | str
    second: int
    second_source: Symbol | str


@attrs.define
class SymbolTable:
    """Union-find over dimension symbols: which are equal, and which number they have, with where it came from."""

    _parent: dict[Symbol, Symbol] = attrs.field(factory=dict, init=False)
    _value: dict[Symbol, tuple[int, str]] = attrs.field(factory=dict, init=False)

    def _root(self, symbol: Symbol) -> Symbol:
        while (parent := self._parent.get(symbol, symbol)) != symbol:
            symbol = parent
        return symbol

    def value(self, symbol: Symbol) -> int | None:
        """The number of a symbol, or None while it is free."""
        found = self._value.get(self._root(symbol))
        return found[0] if found else None

    def source(self, symbol: Symbol) -> str | None:
        """The component path that fixed the number, or None while the symbol is free."""
        found = self._value.get(self._root(symbol))
        return found[1] if found else None

    def bind(self, symbol: Symbol, number: int, source: str) -> Conflict | None:
        """Fix a symbol to a number; returns the conflict if it already has another one."""
        root = self._root(symbol)
        if root in self._value and self._value[root][0] != number:
            return Conflict(self._value[root][0], self._value[root][1], number, source)
        self._value.setdefault(root, (number, source))
        return None

    def unify(self, left: Symbol, right: Symbol) -> Conflict | None:
        """Make two symbols one; returns the conflict if they have different numbers (then they stay apart)."""
        a, b = self._root(left), self._root(right)
        if a == b:
            return None
        if a in self._value and b in self._value and self._value[a][0] != self._value[b][0]:
            return Conflict(self._value[a][0], self._value[a][1], self._value[b][0], self._value[b][1])
        if b in self._value:
            a, b = b, a
        self._parent[b] = a
        return None

    def unify_dims(self, left: Iterable[tuple[str, Dim]], right: Iterable[tuple[str, Dim]]) -> list[Conflict]:
        """Unify two rows of ``(owner, dim)``, position by position."""
        conflicts = []
        for (left_owner, a), (right_owner, b) in zip(left, right, strict=True):
            if isinstance(a, str) and isinstance(b, str):
                found = self.unify(Symbol(left_owner, a), Symbol(right_owner, b))
            elif isinstance(a, str):
                assert isinstance(b, int)
                found = self.bind(Symbol(left_owner, a), b, right_owner)
            elif isinstance(b, str):
                found = self.bind(Symbol(right_owner, b), a, left_owner)
            else:
                found = Conflict(a, left_owner, b, right_owner) if a != b else None
            if found:
                conflicts.append(found)
        return conflicts
