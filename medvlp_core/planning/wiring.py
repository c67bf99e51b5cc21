"""The wiring of a model: who gives each port in which view, and which calls must run to get a port. Light.

The wiring is a table of providers, ``(port, view) -> component``, and a symbol table;
:func:`medvlp_core.planning.connect.connect` fills and checks it. :meth:`Wiring.route` answers "what must run, in which order, so
that these ports exist", for training as for any later use of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from medvlp_core.errors import Position
from medvlp_core.recipe.load import Node
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.contract import (
    Contract,
    SymbolTable,
    TensorSpec,
    View,
)
from medvlp_core.spec.roles import Role, Stage

PortKey = tuple[str, View | None]

VIEWS: tuple[View, View] = ("clean", "masked")
INPUTS = "inputs"
TEXT_ENCODER = "model.text_encoder"

#: What the input pipeline itself gives; its sizes are solved from the components that need them.
INPUT_PORTS = {"image": TensorSpec.parse("B C H W"), "image_target": TensorSpec.parse("B C Ht Wt")}


@attrs.frozen(kw_only=True)
class PlannedComponent:
    """One component of a recipe: where it stands, what it is, and what it needs and gives with its parameters."""

    path: str
    name: str
    role: Role
    spec: ComponentSpec
    contract: Contract
    node: Node = attrs.field(eq=False, repr=False)

    @property
    def slot(self) -> str:
        """The last part of the path: ``gla`` of ``model.alignments.gla``."""
        return self.path.rpartition(".")[2]

    @property
    def label(self) -> str:
        """``model.fusion (mpma.memory_fusion)``, as messages write it."""
        return f"{self.path} ({self.name})"

    def position(self, field: str | None = None) -> Position:
        """Where the component, or one of its parameters if the recipe gives it, stands."""
        for key in (field, "use"):
            if key and (child := self.node.get(key)) is not None:
                return child.position
        return self.node.position


@attrs.frozen
class Provider:
    """Who gives a port: the component's path, the declared spec and the stage of the forward pass that computes it."""

    path: str
    spec: TensorSpec
    stage: Stage


@attrs.frozen
class Step:
    """One call in the forward pass: ``takes`` maps argument names to the ports they are filled from."""

    path: str
    stage: Stage
    view: View | None
    takes: tuple[tuple[str, PortKey], ...]

    def __str__(self) -> str:
        return f"{self.stage} {self.path}" + (f" @{self.view}" if self.view else "")


@attrs.define
class Wiring:
    """Providers of all ports and the dimensions they tie together. Filled by ``connect``."""

    components: Mapping[str, PlannedComponent]
    providers: dict[PortKey, Provider] = attrs.field(factory=dict)
    table: SymbolTable = attrs.field(factory=SymbolTable)
    broken_roles: frozenset[Role] = frozenset()

    def find(self, port: str, view: View | None) -> PortKey | None:
        """The key under which a port is given in a view, or None."""
        for key in ((port, view), (port, None)):
            if key in self.providers:
                return key
        return None

    def wanted_view(self, component: PlannedComponent, need: TensorSpec, pass_view: View | None) -> View:
        """The view that a need means: its own, that of the pass in viewed roles, else clean."""
        return need.view or (pass_view if component.role.info.runs_in_views and pass_view else "clean")

    def takes(self, path: str, view: View | None = None) -> tuple[tuple[str, PortKey], ...]:
        """The arguments of a component's forward in one view; optional ones that nobody gives are left out."""
        component = self.components[path]
        found = []
        for argument, need in component.contract.needs.items():
            key = self.find(need.port or argument, self.wanted_view(component, need, view))
            if key is not None and need.dtype != "shape":
                found.append((argument, key))
        return tuple(found)

    def step_for(self, key: PortKey) -> Step | None:
        """The call that computes a port, or None for ports that come with the batch."""
        provider, view = self.providers[key], key[1]
        path, stage = provider.path, provider.stage
        if stage in ("batch", "static", "head"):
            return None
        if stage == "mask":
            return Step(path, stage, None, self.takes(path))
        if stage in ("encode_image", "fuse"):
            return Step(path, stage, view, self.takes(path, view))
        valid = ("text_is_valid", self.find("text_is_valid", view) or ("text_is_valid", None))
        if stage == "embed_text":
            ids = ("token_ids", self.find("token_ids", view) or ("token_ids", view))
            return Step(path, stage, view, (ids,))
        source = "fused_text_embeddings" if stage == "encode_fused" else "text_embeddings"
        return Step(path, stage, view, (("text_embeddings", (source, view)), valid))

    def route(self, wanted: Iterable[PortKey]) -> tuple[Step, ...]:
        """The calls that are needed for ``wanted`` ports, in an order that works; every other call is left out.

        Raises:
            RecursionError: components wait for each other (checked in :func:`connect`, so not for a checked plan).
        """
        steps: dict[Step, None] = {}
        pending: list[Step] = []

        def visit(key: PortKey) -> None:
            step = self.step_for(key) if key in self.providers else None
            if step is None or step in steps:
                return
            if step in pending:
                raise RecursionError(" -> ".join(str(one) for one in [*pending, step]))
            pending.append(step)
            for _, source in step.takes:
                visit(source)
            pending.pop()
            steps[step] = None

        for key in wanted:
            visit(key)
        return tuple(steps)
