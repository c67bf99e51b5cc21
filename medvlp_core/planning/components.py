"""Reads the components of a recipe: which slots it fills, with what, and how their ports are re-pointed. Light."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

import attrs

from medvlp_core.errors import Diagnostics, describe_error, did_you_mean
from medvlp_core.planning.parameters import RESERVED, describe, read_block
from medvlp_core.planning.wiring import INPUTS, PlannedComponent
from medvlp_core.recipe.load import Node
from medvlp_core.spec.component import SpecBlock, calls_of, params_of
from medvlp_core.spec.contract import CLEAN, Contract
from medvlp_core.spec.host import Host
from medvlp_core.spec.roles import MODEL_BLOCKS, SLOTS, Role

SLOT_NAME = re.compile(r"[a-z][a-z0-9_]*$")
#: ``PORT``, ``SLOT.PORT``, either with ``@VIEW``.
PORT_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?(@[a-z][a-z0-9_]*)?$")


@attrs.frozen
class Slot:
    """One block of a recipe: its path, the roles that may stand there, and whether there may be several beside it."""

    path: str
    roles: tuple[Role, ...]
    node: Node
    is_free: bool

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


def read_components(recipe: Node, host: Host, diagnostics: Diagnostics) -> tuple[dict[str, PlannedComponent], frozenset[Role]]:
    """All components that could be read, and the roles of those that could not."""
    _check_model(recipe, diagnostics)
    slots = {slot.path: slot for slot in _slots(recipe, diagnostics)}
    _check_names(slots, diagnostics)
    components: dict[str, PlannedComponent] = {}
    broken: set[Role] = set()
    borrowed = []
    for slot in slots.values():
        if slot.is_free and (slot.node.get("share") or slot.node.get("follow")) and slot.node.get("use") is None:
            borrowed.append(slot)
        elif (component := _read_component(slot, host, diagnostics)) is not None:
            components[slot.path] = component
        else:
            broken |= {slot.roles[0]} if len(slot.roles) == 1 else set(slot.roles)
    for slot in borrowed:
        source = _read_source(slot, slots, components, diagnostics)
        if source is None:
            broken |= set(slot.roles)
        elif (component := _read_borrowed(slot, source, components, diagnostics)) is not None:
            components[slot.path] = component
    return {path: components[path] for path in slots if path in components}, frozenset(broken)


def _check_model(recipe: Node, diagnostics: Diagnostics) -> None:
    model = recipe.get("model")
    for key, node in model.value.items() if model is not None and isinstance(model.value, dict) else ():
        if key not in MODEL_BLOCKS:
            hint = did_you_mean(key, MODEL_BLOCKS, what="parts of a model")
            diagnostics.add("MV102", f"a model has no part {key!r}", at=node.key_position or node.position, hint=hint)
    if model is None:
        diagnostics.add("MV105", "the block `model` is missing", at=recipe.position)
    elif not isinstance(model.value, dict) and model.value is not None:
        diagnostics.add("MV103", f"model must be a mapping of parts, found {describe(model)}", at=model.position)


def _slots(recipe: Node, diagnostics: Diagnostics) -> list[Slot]:
    """Every slot that the recipe fills, in the order in which components are read."""
    found: list[Slot] = []
    for name, roles in SLOTS.items():
        base = name.removesuffix(".*")
        node = recipe.get(base)
        if node is None or node.value is None:
            continue
        if base == name:
            found.append(Slot(base, roles, node, is_free=False))
        elif isinstance(node.value, dict):
            for key, child in node.value.items():
                if not SLOT_NAME.match(key):
                    hint = "lower-case letters, digits and _, beginning with a letter"
                    diagnostics.add("MV102", f"{base}: {key!r} is no name for a slot", at=child.key_position, hint=hint)
                elif child.value is not None:
                    found.append(Slot(f"{base}.{key}", roles, child, is_free=True))
        else:
            text = f"{base} must map names to components, found {describe(node)}"
            diagnostics.add("MV103", text, at=node.position, hint=f"write `{base.rpartition('.')[2]}: {{name: {{use: ...}}}}`")
    return found


def _check_names(slots: Mapping[str, Slot], diagnostics: Diagnostics) -> None:
    """Ports, losses and results are called after slots, so that no two slots may have one name."""
    names = {INPUTS: f"the block {INPUTS}"}
    for slot in slots.values():
        if slot.name in names:
            text = f"{slot.path} and {names[slot.name]} have the same name, so their ports and losses cannot be told apart"
            diagnostics.add("MV209", text, at=slot.node.key_position or slot.node.position, hint="rename one of them")
        names.setdefault(slot.name, slot.path)


# --------------------------------------------------------------------------------------------------------- a block with `use`


def _read_component(slot: Slot, host: Host, diagnostics: Diagnostics) -> PlannedComponent | None:
    path, node = slot.path, slot.node
    roles = " or ".join(slot.roles)
    offered = [name for role in slot.roles for name in host.components.offered(role)]
    use = node.get("use")
    if use is None or not isinstance(use.value, str):
        found = describe(node) if use is None else f"use: {describe(use)}"
        hint = f"write `use: NAME`; {roles} components: {', '.join(offered)}"
        diagnostics.add("MV105", f"{path} names no component, found {found}", at=(use or node).position, hint=hint)
        return None
    if use.value not in host.components:
        diagnostics.problems.append(host.unknown_component(use.value, slot.roles[-1], at=use.position))
        return None
    kind = host.components[use.value]
    role = kind.declaration.role
    if role not in slot.roles:
        text = f"{path} takes a component of role {roles}, and {use.value} is of role {role}"
        diagnostics.add("MV106", text, at=use.position, hint=f"{roles} components: {', '.join(offered)}")
        return None
    if kind.declaration.deprecated:
        text = f"{path} ({use.value}): this component is deprecated"
        diagnostics.add("MV109", text, at=use.position, hint=kind.declaration.deprecated, is_warning=True)
    try:
        spec = read_block(kind, node, path=path, diagnostics=diagnostics, who=use.value)
        calls = _sound(calls_of(spec)) if spec is not None else None
    except Exception as error:  # of the plugin's own code: problems(), contract()
        text = f"{path} ({use.value}): its spec failed: {describe_error(error)}"
        details = (f"{kind.__module__}.{kind.__qualname__} from {host.components.distribution(use.value) or 'no distribution'}",)
        diagnostics.add("MV306", text, at=use.position, details=details, hint="its author must repair it")
        return None
    if spec is None or calls is None:
        return None
    _warn_missing_paths(path, use.value, spec, node, diagnostics)
    component = PlannedComponent(path=path, name=use.value, role=role, spec=spec, calls=calls, node=node)
    return _tied(component, diagnostics, extra=("of",) if role is Role.MASKING else ())


def _sound(calls: dict[str, Contract]) -> dict[str, Contract]:
    """The calls.

    Raises:
        ValueError: one says in which view it gives a port, which is that of the call.
    """
    for name, contract in calls.items():
        for label, spec in contract.gives.items():
            if spec.view is not None:
                text = f"{name} gives {label!r} in the view {spec.view!r}, and what a call gives names no view"
                raise ValueError(f"{text}; a shape that an optional need changes is marked with when=ARGUMENT")
    return calls


def _warn_missing_paths(path: str, name: str, spec: SpecBlock, node: Node, diagnostics: Diagnostics) -> None:
    """Files and folders that are not there. No error: a trained model needs no data, and a recipe may be planned elsewhere."""
    for param in params_of(type(spec)):
        value = getattr(spec, param.name)
        for one in value if isinstance(value, tuple) else (value,):
            if param.rules.is_path and one and not os.path.exists(one):
                text = f"{path} ({name}): {param.name}={one!r} does not exist here"
                hint = "" if os.path.isabs(one) else "a relative path starts from the folder that the command runs in"
                at = (node.get(param.name) or node).position
                diagnostics.add("MV511", text, at=at, hint=hint or None, is_warning=True)


# ----------------------------------------------------------------------------------------------- a block with `share`, `follow`


def _read_source(
    slot: Slot, slots: Mapping[str, Slot], components: Mapping[str, PlannedComponent], diagnostics: Diagnostics
) -> PlannedComponent | None:
    """The component whose weights a block shares or follows; None if that is broken, or none, which is then said."""
    if slot.node.get("share") is not None and slot.node.get("follow") is not None:
        text = f"{slot.path} says both share and follow"
        diagnostics.add("MV104", text, at=slot.node.position, hint="share = the same weights, follow = their moving average")
        return None
    key = "share" if slot.node.get("share") is not None else "follow"
    named = slot.node.get(key)
    assert named is not None
    modules = [path for path in slots if path.startswith("model.") and slots[path].node.get("use") is not None]
    if not isinstance(named.value, str) or named.value not in modules:
        text = f"{slot.path}: {key} must name a component of the model with weights of its own, found {describe(named)}"
        hint = did_you_mean(str(named.value), modules, what="components") or f"components: {', '.join(modules)}"
        diagnostics.add("MV104" if isinstance(named.value, str) else "MV103", text, at=named.position, hint=hint)
        return None
    source = components.get(named.value)
    if source is not None and source.role not in slot.roles:
        text = f"{slot.path} takes a component of role {' or '.join(slot.roles)}, and {source.label} is of role {source.role}"
        diagnostics.add("MV106", text, at=named.position)
        return None
    if source is not None and source.role is Role.MASKING and key == "follow":
        text = f"{slot.path}: {source.label} has no weights that could be followed"
        diagnostics.add("MV104", text, at=named.position, hint="`share` gives the same masking once more")
        return None
    return source


def _read_borrowed(
    slot: Slot, source: PlannedComponent, components: Mapping[str, PlannedComponent], diagnostics: Diagnostics
) -> PlannedComponent | None:
    component = attrs.evolve(source, path=slot.path, node=slot.node, needs={}, views={}, opens=None, of=CLEAN)
    follows = slot.node.get("follow") is not None
    for key, child in slot.node.value.items() if isinstance(slot.node.value, dict) else ():
        if key not in RESERVED:
            text = f"{slot.path} has no parameter {key!r}: its parameters are those of {source.path}"
            diagnostics.add("MV102", text, at=child.key_position or child.position, hint=f"set it at {source.path}")
    if not follows:
        # state of its own (a queue) belongs to the owner of the weights, which is handed its rows once
        calls = {name: attrs.evolve(contract, after={}) for name, contract in source.calls.items()}
        extra = ("share", "of") if source.role is Role.MASKING else ("share",)
        return _tied(attrs.evolve(component, shares=source.path, calls=calls), diagnostics, extra=extra)
    decay = slot.node.get("decay")
    value = decay.value if decay is not None else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        found = "nothing" if decay is None else describe(decay)
        text = f"{slot.path}: decay must be a number from 0 to 1, found {found}"
        hint = "decay: 0.999 keeps 999 parts of 1,000 of the average at every step"
        diagnostics.add("MV104" if decay is not None else "MV105", text, at=(decay or slot.node).position, hint=hint)
        return None
    calls = {name: attrs.evolve(contract, losses=(), after={}) for name, contract in source.calls.items()}
    return _tied(
        attrs.evolve(component, follows=source.path, decay=float(value), calls=calls), diagnostics, extra=("follow", "decay")
    )


# ------------------------------------------------------------------------------------------------------ how a block is tied in


def _tied(component: PlannedComponent, diagnostics: Diagnostics, *, extra: tuple[str, ...]) -> PlannedComponent:
    """A component with what its block says of ports and views. ``extra``: the reserved words that it may use beside these."""
    node, allowed = (
        component.node,
        ("use", "needs", "views", *(() if component.losses or component.role in _NOT_EACH else ("each",)), *extra),
    )
    for key in RESERVED:
        if key not in allowed and (child := node.get(key)) is not None:
            text = f"{component.label}: `{key}` does not apply here"
            diagnostics.add("MV102", text, at=child.key_position or child.position, hint=_WHERE.get(key))
    arguments = dict.fromkeys(argument for contract in component.calls.values() for argument in contract.needs)
    every = [need.view for contract in component.calls.values() for need in contract.needs.values()]
    formal = dict.fromkeys(view for view in every if view is not None and view != CLEAN)
    of = node.get("of")
    if of is not None and "of" in allowed and not isinstance(of.value, str):
        diagnostics.add("MV103", f"{component.label}: of must name a view, found {describe(of)}", at=of.position)
    return attrs.evolve(
        component,
        needs=_read_names(component, "needs", arguments, "argument", diagnostics),
        views=_read_names(component, "views", formal, "view", diagnostics),
        opens=None if component.role is not Role.MASKING else "masked" if component.path == "model.masking" else component.slot,
        each=_read_each(component, diagnostics),
        of=of.value if of is not None and "of" in allowed and isinstance(of.value, str) else CLEAN,
    )


_NOT_EACH = (Role.DATA, Role.TOKENIZER, Role.EVALUATOR, Role.MASKING)


def _read_each(component: PlannedComponent, diagnostics: Diagnostics) -> str | None:
    node = component.node.get("each")
    if node is None or component.losses or component.role in _NOT_EACH:
        return None
    named = {dim for contract in component.calls.values() for dim in contract.symbols()}
    if not isinstance(node.value, str) or not node.value.isidentifier() or node.value in named:
        what = f"{node.value!r}, which its contract names already" if node.value in named else describe(node)
        text = f"{component.label}: each must be a letter for the axis that it runs over, found {what}"
        diagnostics.add("MV103", text, at=node.position, hint="write `each: V`")
        return None
    return node.value


_WHERE = {
    "each": "only what gives no losses and reads no records can run over each entry of an axis",
    "share": "a block with `share` has no `use`: it has the weights of another component",
    "follow": "a block with `follow` has no `use`: it is the moving average of another component",
    "decay": "it belongs to a block with `follow`",
    "of": "it says which view a masking is made from",
}


def _read_names(
    component: PlannedComponent, block: str, known: Iterable[str], what: str, diagnostics: Diagnostics
) -> dict[str, str]:
    """The block's ``needs:``, which fills arguments from other ports than those of their names, or its ``views:``, which binds the
    views that its contracts name to views of this recipe.
    """
    found = component.node.get(block)
    if found is None or found.value is None:
        return {}
    if not isinstance(found.value, dict):
        text = f"{component.label}: {block} must be a mapping, found {describe(found)}"
        diagnostics.add("MV103", text, at=found.position, hint=f"write `{block}: {{{what.upper()}: ...}}`")
        return {}
    names = {}
    for key, child in found.value.items():
        if key not in known:
            text = f"{component.label}: {block} names {key!r}, and its contract has no such {what}"
            near = did_you_mean(key, known, what=f"{what}s")
            diagnostics.add("MV102", text, at=child.key_position or child.position, hint=near)
        elif not isinstance(child.value, str) or not (PORT_NAME if what == "argument" else SLOT_NAME).match(child.value):
            text = f"{component.label}: {block}.{key} must name a {'port' if what == 'argument' else what}, found {describe(child)}"
            form = "write PORT, SLOT.PORT, or either with @VIEW" if what == "argument" else None
            diagnostics.add("MV103", text, at=child.position, hint=form)
        else:
            names[key] = child.value
    return names
