"""The wiring of a model: which call computes each port in each view, and which calls must run to get a port. Light.

A *call* is one method of one component in one view. Calls without losses are offers: they run only where somebody needs what
they give, and one that nobody can feed does not exist; whoever asks for it learns why. :meth:`Wiring.resolve` turns the name of a
port into the key under which it is computed, :meth:`Wiring.route` answers "what must run, in which order, so that these ports
exist", for training as for any later use of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import attrs

from medvlp_core.errors import Position
from medvlp_core.recipe.load import Node
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.contract import CLEAN, Axis, Contract, Dim, Symbol, SymbolTable, TensorSpec
from medvlp_core.spec.fields import Field
from medvlp_core.spec.roles import Role

INPUTS = "inputs"
#: Slots whose ports go by their short names: a recipe has one component there at most.
FIXED_SLOTS = ("model.image_encoder", "model.text_encoder", "model.fusion")
#: What the core itself gives: images, whose sizes are solved from the components that need them, and how far training has come.
INPUT_PORTS = {
    "image": TensorSpec.parse("B C H W"),
    "image_target": TensorSpec.parse("B C Ht Wt"),
    "progress": TensorSpec.parse(":float"),
}
#: The rows of a batch: every batch axis is this one.
BATCH = Axis("batch")
#: The symbol of the tokenizer's second axis, the length of the texts of a batch.
TEXT_LENGTH = "L"


class PortKey(NamedTuple):
    """A port in a view. ``port`` is its full name, ``SLOT.PORT``; what the batch and maskings give goes by the port alone."""

    port: str
    view: str = CLEAN

    @property
    def name(self) -> str:
        """The port without its slot: ``image_tokens`` of ``image_encoder.image_tokens``."""
        return self.port.rpartition(".")[2]

    @property
    def slot(self) -> str:
        """The slot that gives it; empty for what the batch and maskings give."""
        return self.port.rpartition(".")[0]

    @classmethod
    def parse(cls, text: str) -> PortKey:
        """Read ``PORT``, ``SLOT.PORT`` or either with ``@VIEW``; without one it is the clean view."""
        port, _, view = text.partition("@")
        return cls(port, view or CLEAN)

    def __str__(self) -> str:
        return self.port if self.view == CLEAN else f"{self.port}@{self.view}"


@attrs.frozen(kw_only=True)
class PlannedComponent:
    """One component of a recipe: where it stands, what it is, and what its calls need and give with its parameters.

    ``needs`` maps arguments to the ports that the recipe fills them from, ``views`` the views that its contracts name to those
    that the recipe means. ``opens`` is the view that a masking opens, ``of`` the view that it is made from.

    ``shares``: it has no weights of its own, but those of the component at this path. ``follows``: its weights are a moving average
    of those of the component at this path, with ``decay``; it gets no gradient and emits no losses. ``each``: it runs over every
    entry of an axis behind the batch, of the images of a study or the sentences of a report, and what it gives has that axis.
    """

    path: str
    name: str
    role: Role
    spec: ComponentSpec
    calls: dict[str, Contract]
    needs: dict[str, str] = attrs.field(factory=dict)
    views: dict[str, str] = attrs.field(factory=dict)
    opens: str | None = None
    of: str = CLEAN
    shares: str | None = None
    follows: str | None = None
    decay: float = 1.0
    each: str | None = None
    node: Node = attrs.field(eq=False, repr=False)

    @property
    def slot(self) -> str:
        """The last part of the path: ``gla`` of ``model.alignments.gla``."""
        return self.path.rpartition(".")[2]

    @property
    def label(self) -> str:
        """``model.fusion (mpma.memory_fusion)``, as messages write it."""
        return f"{self.path} ({self.name})"

    @property
    def losses(self) -> tuple[str, ...]:
        """The loss terms of all its calls."""
        return tuple(term for contract in self.calls.values() for term in contract.losses)

    @property
    def needs_by_argument(self) -> dict[str, TensorSpec]:
        """What all its calls need, by argument."""
        return {argument: need for contract in self.calls.values() for argument, need in contract.needs.items()}

    @property
    def sizes(self) -> tuple[str, ...]:
        """The symbols that its weights depend on, of all its calls."""
        return tuple(dict.fromkeys(name for contract in self.calls.values() for name in contract.sizes))

    @property
    def owner(self) -> str:
        """The path of the component whose weights its calls use."""
        return self.shares or self.path

    @property
    def like(self) -> str:
        """The path of the component that its weights have the sizes of."""
        return self.shares or self.follows or self.path

    def position(self, field: str | None = None) -> Position:
        """Where the component, or one of its parameters if the recipe gives it, stands."""
        for key in (field, "use"):
            if key and (child := self.node.get(key)) is not None:
                return child.position
        return self.node.position


@attrs.frozen
class View:
    """A view by name: the view it was made from (None for the clean one), and the path of the masking that opens it."""

    name: str
    parent: str | None = None
    opener: str | None = None


@attrs.frozen
class Provider:
    """Who gives a port in a view: the component's path and the call; the declared spec, and where its symbols are local to."""

    path: str
    call: str
    spec: TensorSpec
    view: str = CLEAN


@attrs.frozen
class Call:
    """One call of a forward pass. ``takes`` maps argument names to the ports that they are filled from.

    ``returns``: the method returns the ``tuple`` of its role (fields are ports), the ``tensor`` of its only port, or an ``output``
    of ports and losses. ``folds`` are the arguments with the axis of ``each``.
    """

    path: str
    name: str
    view: str
    takes: tuple[tuple[str, PortKey], ...]
    gives: tuple[PortKey, ...]
    returns: Literal["tuple", "tensor", "output"]
    folds: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method of the module: ``fused`` is the text encoder's ``encode`` once more."""
        return "encode" if self.name == "fused" else self.name

    def __str__(self) -> str:
        call = self.path if self.name == "forward" else f"{self.path}.{self.name}"
        return call if self.view == CLEAN else f"{call} @{self.view}"


@attrs.frozen
class Missing:
    """A need that cannot be met: which component needs which port in which view, and why there is none.

    ``causes`` are the unmet needs of the calls that would give it; ``candidates`` are full names, if several components give it.
    """

    path: str
    port: str
    view: str
    causes: tuple[Missing, ...] = ()
    candidates: tuple[str, ...] = ()

    def roots(self) -> tuple[Missing, ...]:
        """The needs at the bottom, each once."""
        found = {root: None for cause in self.causes for root in cause.roots()}
        return tuple(found) or (self,)


class Circle(Exception):
    """Calls wait for each other: their paths and names, the first one again at the end."""

    def __init__(self, calls: Iterable[tuple[str, str]]) -> None:
        self.calls = tuple(calls)
        super().__init__(" -> ".join(f"{path}.{name}" if name != "forward" else path for path, name in self.calls))


@attrs.define
class Wiring:
    """Who gives what in which view, and the dimensions that tie it together. Filled by ``connect``."""

    components: Mapping[str, PlannedComponent]
    views: dict[str, View]
    broken_roles: frozenset[Role] = frozenset()
    #: Ports that the batch brings, and those that maskings give in their views.
    batch: dict[PortKey, Provider] = attrs.field(factory=dict)
    #: Fields of records by name, the field that each of their ports comes from, and what records may lack.
    fields: dict[str, Field] = attrs.field(factory=dict)
    field_ports: dict[str, str] = attrs.field(factory=dict)
    may_lack: dict[str, str | None] = attrs.field(factory=dict)
    #: Ports that carry dimensions only: specs say them, and no call computes them.
    shapes: dict[PortKey, Provider] = attrs.field(factory=dict)
    #: The calls that declare a port, as (path, call).
    declared: dict[str, list[tuple[str, str]]] = attrs.field(factory=dict)
    table: SymbolTable = attrs.field(factory=SymbolTable)
    _calls: dict[tuple[str, str, str], Call | tuple[Missing, ...]] = attrs.field(factory=dict, init=False)
    _pending: list[tuple[str, str, str]] = attrs.field(factory=list, init=False)

    # ------------------------------------------------------------------------------------------------------ names to keys

    def chain(self, view: str) -> Iterable[str]:
        """A view and those it was made from, the nearest first."""
        at: str | None = view
        while at is not None:
            yield at
            at = self.views[at].parent

    def bound_view(self, component: PlannedComponent, formal: str) -> str | None:
        """The view that a name in a contract means in this recipe; None if there is none."""
        name = component.views.get(formal, formal)
        opened = [one.name for one in self.views.values() if one.opener is not None]
        if name == "masked" and name not in self.views and len(opened) == 1:
            return opened[0]
        return name if name in self.views else None

    def resolve(self, reference: str, view: str = CLEAN) -> PortKey | Missing:
        """The key under which a port, by its short or full name, is computed for a view; or why it is not.

        Raises:
            Circle: calls wait for each other.
        """
        slot, _, port = reference.rpartition(".")
        shapes = [key for key in self.shapes if key.name == port and slot in ("", key.slot)]
        fixed = [key for key in shapes if self.shapes[key].path in (*FIXED_SLOTS, "tokenizer")]
        if shapes:
            return (fixed or shapes)[0] if len(fixed or shapes) == 1 else _several(reference, view, shapes)
        for at in self.chain(view):
            if (provider := self.batch.get(PortKey(port, at))) is not None and slot in ("", provider.path.rpartition(".")[2]):
                call = self.call(provider.path, provider.call, at) if self.views[at].opener == provider.path else None
                return Missing("", reference, view, causes=call) if isinstance(call, tuple) else PortKey(port, at)
        declaring = [one for one in self.declared.get(port, ()) if slot in ("", one[0].rpartition(".")[2])]
        causes: list[Missing] = []
        # a short name means the fixed slot's port where there is one
        for group in ([one for one in declaring if one[0] in FIXED_SLOTS], [one for one in declaring if one[0] not in FIXED_SLOTS]):
            calls = []
            for path, name in group:
                call = self.call(path, name, view)
                if isinstance(call, Call) and (key := _given(call, port)) is not None:
                    calls.append(key)
                elif isinstance(call, tuple):
                    causes += call
            if len(calls) == 1:
                return calls[0]
            if calls:
                return _several(reference, view, calls)
        return Missing("", reference, view, causes=tuple(causes))

    def key(self, reference: str, view: str = CLEAN) -> PortKey | None:
        """:meth:`resolve`, or None where the port is not computed."""
        found = self.resolve(reference, view)
        return found if isinstance(found, PortKey) else None

    def short(self, key: PortKey) -> str:
        """The shortest name that means this port, with its view unless that is the clean one."""
        port = key.name if self.key(key.name, key.view) == key else key.port
        return str(PortKey(port, key.view))

    # -------------------------------------------------------------------------------------------------------------- calls

    def call(self, path: str, name: str, view: str = CLEAN) -> Call | tuple[Missing, ...]:
        """A call of a component for a view, or the needs that keep it from existing.

        A call that emits losses runs once, for the clean view; a masking once, for the view that it opens. An offer runs in a view
        if something that it needs differs there; else the result of the parent view serves.

        Raises:
            Circle: it waits for itself.
        """
        at = (path, name, view)
        if at not in self._calls:
            if at in self._pending:
                circle = [*self._pending[self._pending.index(at) :], at]
                raise Circle((path, name) for path, name, _ in circle)
            self._pending.append(at)
            try:
                self._calls[at] = self._make_call(self.components[path], name, view)
            finally:
                self._pending.pop()
        return self._calls[at]

    def _make_call(self, component: PlannedComponent, name: str, view: str) -> Call | tuple[Missing, ...]:
        contract = component.calls[name]
        if component.opens is not None:
            view = component.opens
            needs_view = self.views[view].parent or CLEAN
        else:
            view = needs_view = CLEAN if contract.losses else view
        takes: list[tuple[str, PortKey]] = []
        missing: list[Missing] = []
        for argument, need in contract.needs.items():
            found = self.source(component, argument, need, needs_view)
            if isinstance(found, Missing):
                missing += [] if need.is_optional and not found.candidates else [found]
            elif need.dtype != "shape":
                takes.append((argument, found))
        if missing:
            return tuple(missing)
        parent = self.views[view].parent
        if parent is not None and component.opens is None and all(key.view != view for _, key in takes):
            return self.call(component.path, name, parent)
        filled = {argument for argument, _ in takes}
        given = [spec for spec in contract.gives.values() if spec.dtype != "shape" and (spec.when is None or spec.when in filled)]
        prefix = "" if component.opens is not None else f"{component.slot}."
        gives = dict.fromkeys(PortKey(f"{prefix}{spec.port}", view) for spec in given)
        returns = form_of(component.role, name, contract)
        folds = tuple(argument for argument, key in takes if self._is_folded(component, contract.needs[argument], key))
        return Call(component.path, name, view, tuple(takes), tuple(gives), returns, folds)

    def _is_folded(self, component: PlannedComponent, need: TensorSpec, key: PortKey) -> bool:
        return component.each is not None and len(self.provider(key).spec.dims) == len(need.dims) + 1

    def source(self, component: PlannedComponent, argument: str, need: TensorSpec, view: str) -> PortKey | Missing:
        """What fills an argument of a component's call for a view, or why nothing does."""
        port, _, formal = component.needs.get(argument, need.port or argument).partition("@")
        if argument not in component.needs and component.path not in FIXED_SLOTS and _gives_itself(component, port):
            port = f"{component.slot}.{port}"  # a text encoder that follows another one encodes its own embeddings
        formal = formal or need.view or ""
        at = self.bound_view(component, formal) if formal else view
        if at is None:
            return Missing(component.path, port, component.views.get(formal, formal))
        found = self.resolve(port, at)
        return found if isinstance(found, PortKey) else attrs.evolve(found, path=component.path)

    def asked_view(self, component: PlannedComponent, argument: str, need: TensorSpec) -> str | None:
        """The view that a contract, or the recipe in its place, names for an argument; None if it names none."""
        formal = component.needs.get(argument, "").partition("@")[2] or need.view
        return self.bound_view(component, formal) if formal else None

    def takes(self, path: str, name: str = "forward", *, view: str = CLEAN, only: bool = False) -> tuple[tuple[str, PortKey], ...]:
        """The arguments of a call and the ports that they come from, as far as there are any.

        ``only``: views that the contract names count as ``view`` too.
        """
        component = self.components[path]
        found = []
        for argument, need in component.calls[name].needs.items():
            spec = attrs.evolve(need, view=None) if only else need
            key = self.source(component, argument, spec, view)
            if isinstance(key, PortKey) and need.dtype != "shape":
                found.append((argument, key))
        return tuple(found)

    def call_of(self, key: PortKey) -> Call | None:
        """The call that computes a port; None for what comes with the batch."""
        if key in self.shapes:
            return None
        if (provider := self.batch.get(key)) is not None:
            call = self.call(provider.path, provider.call, key.view) if self.views[key.view].opener == provider.path else None
            assert not isinstance(call, tuple)
            return call
        for path, name in self.declared[key.name]:
            if path.rpartition(".")[2] == key.slot:
                call = self.call(path, name, key.view)
                if isinstance(call, Call) and key in call.gives:
                    return call
        raise KeyError(key)

    def provider(self, key: PortKey) -> Provider:
        """Who gives a port, and what was declared of it where it is given."""
        if (known := self.batch.get(key) or self.shapes.get(key)) is not None:
            return known
        call = self.call_of(key)
        assert call is not None
        gives = self.components[call.path].calls[call.name].gives.values()
        filled = {argument for argument, _ in call.takes}
        specs = [spec for spec in gives if spec.port == key.name and (spec.when is None or spec.when in filled)]
        spec = max(specs, key=lambda spec: spec.when is not None)
        each = self.components[call.path].each
        if call.folds and each is not None:
            spec = attrs.evolve(spec, dims=(spec.dims[0], each, *spec.dims[1:]))
        return Provider(call.path, call.name, spec, call.view)

    def route(self, wanted: Iterable[PortKey]) -> tuple[Call, ...]:
        """The calls that are needed for ``wanted`` ports, in an order that works; every other call is left out."""
        calls: dict[Call, None] = {}

        def visit(key: PortKey) -> None:
            call = self.call_of(key)
            if call is None or call in calls:
                return
            for _, source in call.takes:
                visit(source)
            calls[call] = None

        for key in wanted:
            visit(key)
        return tuple(calls)

    # ------------------------------------------------------------------------------------------------------------- dimensions

    def symbol(self, path: str, call: str, view: str, dim: Dim) -> Symbol | int:
        """A dimension as the symbol table knows it: local to a call in a view. ``connect`` ties those that weights depend on."""
        if not isinstance(dim, str):
            return dim
        component = self.components.get(path)
        is_local = component is not None and component.role.info.is_module
        return Symbol(path, dim, f"{call}@{view}" if is_local and call else "")

    def sizes(self, key: PortKey) -> tuple[int | None, ...]:
        """The numbers of a port's dimensions; None where one is free. A ragged axis has its largest length."""
        provider = self.provider(key)
        symbols = [self.symbol(provider.path, provider.call, provider.view, dim) for dim in provider.spec.dims]
        return tuple(self.table.value(one) if isinstance(one, Symbol) else one for one in symbols)


def form_of(role: Role, name: str, contract: Contract) -> Literal["tuple", "tensor", "output"]:
    """In which form a call of a component of this role returns what it gives (:class:`Call` says what each means)."""
    if name == "forward" and role.info.output is not None:
        return "output" if role.info.output == "Output" else "tuple"
    ports = {spec.port for spec in contract.gives.values() if spec.dtype != "shape"}
    return "tensor" if len(ports) == 1 and not contract.losses else "output"


def _gives_itself(component: PlannedComponent, port: str) -> bool:
    """Whether another call of the component gives the port: one that does not need it."""
    return any(
        port in {spec.port for spec in contract.gives.values()} and port not in {need.port for need in contract.needs.values()}
        for contract in component.calls.values()
    )


def _given(call: Call, port: str) -> PortKey | None:
    return next((key for key in call.gives if key.name == port), None)


def _several(reference: str, view: str, keys: Iterable[PortKey]) -> Missing:
    return Missing("", reference, view, candidates=tuple(sorted(key.port for key in keys)))
