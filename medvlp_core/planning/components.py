"""Reads the components of a recipe: which slots it fills, with what, and how their ports are re-pointed. Light."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from medvlp_core.errors import Diagnostics, describe_error, did_you_mean
from medvlp_core.planning.parameters import describe, read_block
from medvlp_core.planning.wiring import PlannedComponent
from medvlp_core.recipe.load import Node
from medvlp_core.spec.component import SpecBlock, calls_of, params_of
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.host import Host
from medvlp_core.spec.roles import HEADS, MODULE_NAMES, ROLES, Role

SLOT_NAME = re.compile(r"[a-z][a-z0-9_]*$")
#: ``PORT``, ``SLOT.PORT``, either with ``@VIEW``.
PORT_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?(@[a-z][a-z0-9_]*)?$")


def _slots(recipe: Node, diagnostics: Diagnostics) -> list[tuple[str, Role, Node]]:
    """Every slot that the recipe fills, in the order in which components are built."""
    found: list[tuple[str, Role, Node]] = []
    for role, info in ROLES.items():
        base = info.base
        node = recipe.get(base)
        if node is None or node.value is None:
            continue
        if not info.is_many:
            found.append((base, role, node))
        elif isinstance(node.value, dict):
            for key, child in node.value.items():
                if not SLOT_NAME.match(key):
                    hint = "lower-case letters, digits and _, beginning with a letter"
                    diagnostics.add("MV102", f"{base}: {key!r} is no name for a slot", at=child.key_position, hint=hint)
                elif child.value is not None:
                    found.append((f"{base}.{key}", role, child))
        else:
            text = f"{base} must map names to components, found {describe(node)}"
            diagnostics.add("MV103", text, at=node.position, hint=f"write `{base.rpartition('.')[2]}: {{name: {{use: ...}}}}`")
    return found


def read_components(recipe: Node, host: Host, diagnostics: Diagnostics) -> tuple[dict[str, PlannedComponent], frozenset[Role]]:
    """All components that could be read, and the roles of those that could not."""
    model = recipe.get("model")
    known = set(MODULE_NAMES.values())
    for key, node in model.value.items() if model is not None and isinstance(model.value, dict) else ():
        if key not in known:
            hint = did_you_mean(key, known, what="parts of a model")
            diagnostics.add("MV102", f"a model has no part {key!r}", at=node.key_position or node.position, hint=hint)
    if model is None:
        diagnostics.add("MV105", "the block `model` is missing", at=recipe.position)
    elif not isinstance(model.value, dict) and model.value is not None:
        diagnostics.add("MV103", f"model must be a mapping of parts, found {describe(model)}", at=model.position)
    components: dict[str, PlannedComponent] = {}
    broken: set[Role] = set()
    names: dict[str, str] = {}
    for path, role, node in _slots(recipe, diagnostics):
        component = _read_component(path, role, node, host, diagnostics)
        slot = path.rpartition(".")[2]
        if role in HEADS and slot in names:
            text = f"{path} and {names[slot]} have the same name, so their losses cannot be told apart"
            diagnostics.add("MV209", text, at=node.key_position or node.position, hint="rename one of them")
        if role in HEADS:
            names[slot] = path
        if component is None:
            broken.add(role)
        else:
            components[path] = component
    return components, frozenset(broken)


def _read_component(path: str, role: Role, node: Node, host: Host, diagnostics: Diagnostics) -> PlannedComponent | None:
    use = node.get("use")
    if use is None or not isinstance(use.value, str):
        found = describe(node) if use is None else f"use: {describe(use)}"
        hint = f"write `use: NAME`; {role} components: {', '.join(host.components.offered(role))}"
        diagnostics.add("MV105", f"{path} names no component, found {found}", at=(use or node).position, hint=hint)
        return None
    if use.value not in host.components:
        diagnostics.problems.append(host.unknown_component(use.value, role, at=use.position))
        return None
    kind = host.components[use.value]
    if kind.declaration.role is not role:
        text = f"{path} takes a component of role {role}, and {use.value} is of role {kind.declaration.role}"
        diagnostics.add("MV106", text, at=use.position, hint=f"{role} components: {', '.join(host.components.offered(role))}")
        return None
    if kind.declaration.deprecated:
        text = f"{path} ({use.value}): this component is deprecated"
        diagnostics.add("MV109", text, at=use.position, hint=kind.declaration.deprecated, is_warning=True)
    try:
        spec = read_block(kind, node, path=path, diagnostics=diagnostics, who=use.value)
        calls = calls_of(spec) if spec is not None else None
    except Exception as error:  # of the plugin's own code: problems(), contract()
        text = f"{path} ({use.value}): its spec failed: {describe_error(error)}"
        details = (f"{kind.__module__}.{kind.__qualname__} from {host.components.distribution(use.value) or 'no distribution'}",)
        diagnostics.add("MV306", text, at=use.position, details=details, hint="its author must repair it")
        return None
    if spec is None or calls is None:
        return None
    _warn_missing_paths(path, use.value, spec, node, diagnostics)
    return PlannedComponent(
        path=path,
        name=use.value,
        role=role,
        spec=spec,
        calls=calls,
        needs=_read_needs(path, use.value, calls, node, diagnostics),
        views=_read_views(path, use.value, calls, node, diagnostics),
        node=node,
    )


def _read_needs(path: str, name: str, calls: dict[str, Contract], node: Node, diagnostics: Diagnostics) -> dict[str, str]:
    """The block's ``needs:``, which fills arguments from other ports than those of their names."""
    arguments = dict.fromkeys(argument for contract in calls.values() for argument in contract.needs)
    return _read_names(path, name, "needs", arguments, "argument", node, diagnostics)


def _read_views(path: str, name: str, calls: dict[str, Contract], node: Node, diagnostics: Diagnostics) -> dict[str, str]:
    """The block's ``views:``, which binds the views that the component's contracts name to views of this recipe."""
    formal = dict.fromkeys(need.view for one in calls.values() for need in one.needs.values() if need.view not in (None, "clean"))
    return _read_names(path, name, "views", [str(view) for view in formal], "view", node, diagnostics)


def _read_names(
    path: str, name: str, block: str, known: Iterable[str], what: str, node: Node, diagnostics: Diagnostics
) -> dict[str, str]:
    found = node.get(block)
    if found is None or found.value is None:
        return {}
    if not isinstance(found.value, dict):
        hint = f"write `{block}: {{{what.upper()}: ...}}`"
        diagnostics.add(
            "MV103", f"{path} ({name}): {block} must be a mapping, found {describe(found)}", at=found.position, hint=hint
        )
        return {}
    names = {}
    for key, child in found.value.items():
        if key not in known:
            text = f"{path} ({name}): {block} names {key!r}, and its contract has no such {what}"
            near = did_you_mean(key, known, what=f"{what}s")
            diagnostics.add("MV102", text, at=child.key_position or child.position, hint=near)
        elif not isinstance(child.value, str) or not PORT_NAME.match(child.value):
            text = f"{path} ({name}): {block}.{key} must name a {'port' if what == 'argument' else what}, found {describe(child)}"
            form = "write PORT, SLOT.PORT, or either with @VIEW" if what == "argument" else None
            diagnostics.add("MV103", text, at=child.position, hint=form)
        else:
            names[key] = child.value
    return names


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
