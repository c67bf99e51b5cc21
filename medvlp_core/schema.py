"""JSON Schema of a recipe, so that editors complete names and parameters and underline mistakes while typing. Light.

It says what a single file may hold: since ``extends`` may bring the rest, nothing is required here. ``medvlp check`` says more.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from typing import Any

from medvlp_core.blocks import InputSpec, TrainSpec
from medvlp_core.components import SLOTS, ComponentRegistry, Param, Role, SpecBlock, params_of
from medvlp_core.plan import FORMAT_VERSION

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {"$ref": "#/$defs/reference"}
_SIMPLE = {int: "integer", float: "number", str: "string", bool: "boolean"}


def json_schema(registry: ComponentRegistry, *, presets: Iterable[str] = ()) -> Schema:
    """The schema of recipes made of the registered components.

    Example:
        >>> json_schema(ComponentRegistry())["properties"]["medvlp"]["const"]
        1
    """
    definitions: Schema = {
        "reference": {
            "type": "string",
            "pattern": r"\$\{",
            "description": "taken from elsewhere: ${path.in.recipe} or ${env:NAME}",
        },
        "inputs": _block(InputSpec),
        "train": _block(TrainSpec),
    }
    for role in Role:
        definitions[role.value] = _slot(registry, role)
    for name in registry:
        definitions[name] = _block(registry[name], use=name)
    root: Schema = {"type": "object", "additionalProperties": False, "properties": _file_keys(sorted(presets))}
    for path, definition in {"inputs": "inputs", "train": "train", **{slot: role.value for role, slot in SLOTS.items()}}.items():
        _place(root, path.split("."), {"$ref": f"#/$defs/{definition}"})
    weight = {"anyOf": [{"type": "number", "minimum": 0}, _REFERENCE]}
    losses = {"type": "object", "additionalProperties": {"type": ["object", "null"], "additionalProperties": weight}}
    root["properties"]["losses"] = {"description": "weight of each loss term, 1 if absent: SLOT: {TERM: WEIGHT}", **losses}
    return {"$schema": DIALECT, "title": "medvlp recipe", **root, "$defs": definitions}


def _file_keys(presets: list[str]) -> Schema:
    """The keys that describe the file itself."""
    name = {"type": "string", "examples": presets} if presets else {"type": "string"}
    return {
        "medvlp": {"const": FORMAT_VERSION, "description": "version of the recipe format"},
        "extends": {
            "description": "preset or file (relative to this one) that this recipe builds on; of several, later ones win",
            "anyOf": [name, {"type": "array", "items": name}],
        },
        "requires": {
            "description": "bundles that must be installed, each with an optional version: mpma, 'mpma>=0.1'",
            "type": "array",
            "items": {"type": "string"},
        },
    }


def _place(schema: Schema, path: list[str], child: Schema) -> None:
    """Put a block's schema at its path; ``*`` is any name, and null removes an inherited block."""
    for part in path[:-1]:
        block = {"type": ["object", "null"], "properties": {}, "additionalProperties": False}
        schema = schema["properties"].setdefault(part, block)
    if path[-1] == "*":
        schema["additionalProperties"] = child
    else:
        schema["properties"][path[-1]] = child


def _slot(registry: ComponentRegistry, role: Role) -> Schema:
    """A place for one component: which there are, and for each the parameters that go with it."""
    found = registry.of_role(role)
    use = {"description": f"the {role} component", "anyOf": [{"enum": list(found)}, _REFERENCE]}
    branches = [
        {"if": {"type": "object", "properties": {"use": {"const": name}}, "required": ["use"]}, "then": {"$ref": f"#/$defs/{name}"}}
        for name in found
    ]
    slot: Schema = {"type": ["object", "null"], "properties": {"use": use}}
    return {**slot, "allOf": branches} if branches else slot


def _block(kind: type[SpecBlock], *, use: str | None = None) -> Schema:
    properties: Schema = {"use": {"const": use}} if use else {}
    properties |= {param.name: _param(param) for param in params_of(kind)}
    doc = (kind.__doc__ or "").strip().splitlines()[0]
    return {
        "description": doc,
        "type": "object" if use else ["object", "null"],
        "properties": properties,
        "additionalProperties": False,
    }


def _param(param: Param) -> Schema:
    schema: Schema = {"description": param.rules.help, "anyOf": [_value(param.type, param), _REFERENCE]}
    if not param.is_required:
        schema["default"] = list(param.default) if isinstance(param.default, tuple) else param.default
    return schema


def _value(kind: Any, param: Param) -> Schema:
    """The schema of a type; ranges apply to numbers and to the items of a list."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [_value(arg, param) for arg in args if arg is not type(None)]
        return {"anyOf": [*inner, {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _value(args[0], param)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(args[1], param)}
    rules = param.rules
    if rules.one_of is not None:
        return {"enum": list(rules.one_of)}
    schema: Schema = {"type": _SIMPLE[kind]}
    limits = {"minimum": rules.at_least, "maximum": rules.at_most, "exclusiveMinimum": rules.above, "exclusiveMaximum": rules.below}
    if kind in (int, float):
        schema |= {word: limit for word, limit in limits.items() if limit is not None}
    return schema
