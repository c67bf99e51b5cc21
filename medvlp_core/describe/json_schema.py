"""JSON Schema of a recipe, so that editors complete names and parameters and underline mistakes while typing. Light.

It says what a single file may hold: since ``extends`` may bring the rest, nothing is required here. On names, types and ranges it
agrees with ``medvlp check`` (a property test compares them), but for two things: JSON has one kind of number, so an editor cannot
tell ``3.0`` from ``3``, and it has no ``.nan``, which ``check`` refuses. What depends on other values (wiring, references, two
parameters together) only ``medvlp check`` knows.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from medvlp_core.describe.wording import default_text, range_text, recipe_text
from medvlp_core.planning.components import SLOT_NAME
from medvlp_core.planning.losses import RAMP_KEYS
from medvlp_core.planning.plan import FORMAT_VERSION
from medvlp_core.plugins.registry import ComponentRegistry
from medvlp_core.spec.blocks import InitSpec, InputSpec, TrainSpec
from medvlp_core.spec.component import Param, SpecBlock, blocks_in, params_of
from medvlp_core.spec.roles import ROLES, SLOTS, Role

Schema = dict[str, Any]

#: The newest dialect that the usual editors know completely.
DIALECT = "http://json-schema.org/draft-07/schema#"
#: Of a reference that is the whole value, the type is unknown; one inside a text leaves it a text. ``$${`` is no reference.
_WHOLE_REFERENCE = r"^\$\{[^{}]*\}$"
_SOME_REFERENCE = r"(^|[^$])\$\{"
#: A bundle with an optional version, or a text with a reference in it.
_VERSION = r"(===?|~=|!=|<=?|>=?)\s*[\w.*+!-]+"
_REQUIREMENT = rf"^\s*[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?\s*(\(?\s*{_VERSION}(\s*,\s*{_VERSION})*\s*,?\s*\)?)?\s*$|{_SOME_REFERENCE}"
_CORE_BLOCKS: dict[str, type[SpecBlock]] = {"inputs": InputSpec, "init_from": InitSpec, "train": TrainSpec}
_SIMPLE = {int: "integer", float: "number", str: "string", bool: "boolean"}


def json_schema(registry: ComponentRegistry, *, presets: Iterable[str] = ()) -> Schema:
    """The schema of recipes made of the registered components.

    Example:
        >>> json_schema(ComponentRegistry())["properties"]["medvlp"]["const"]
        1
    """
    definitions: Schema = {name: _core_block(kind) for name, kind in _CORE_BLOCKS.items()}
    for slot, roles in SLOTS.items():
        definitions.setdefault(_slot_name(slot), _slot(registry, roles))
    for name in registry:
        definitions[name] = _component(registry, name)
    root: Schema = {"type": "object", "additionalProperties": False, "properties": _file_keys(sorted(presets))}
    for path, definition in {
        **{name: name for name in _CORE_BLOCKS},
        **{slot: _slot_name(slot) for slot in SLOTS},
    }.items():
        _place(root, path.split("."), {"$ref": f"#/definitions/{definition}"})
    losses = _block(additionalProperties=_block(additionalProperties=_weight()))
    root["properties"]["losses"] = {
        "description": "weight of each loss term, 1 if absent: SLOT: {TERM: WEIGHT}; a number, or a ramp over the training",
        **losses,
    }
    return {"$schema": DIALECT, **root, "definitions": definitions}


def _file_keys(presets: list[str]) -> Schema:
    """The keys that describe the file itself."""
    name: Schema = {"type": "string", "examples": presets} if presets else {"type": "string"}
    bundle: Schema = {"type": "string", "pattern": _REQUIREMENT, "patternErrorMessage": "write 'mpma' or 'mpma>=0.1,<1'"}
    return {
        "medvlp": {"const": FORMAT_VERSION, "description": "version of the recipe format"},
        "extends": {
            "description": "preset or file (relative to this one) that this recipe builds on; of several, later ones win",
            "anyOf": [name, {"type": "array", "items": name}, {"type": "null"}],
        },
        "requires": {
            "description": "bundles that must be installed, each with an optional version: mpma, 'mpma>=0.1'",
            **_or_reference({"type": "array", "items": bundle}, "requires must be a list of bundles"),
        },
    }


def _place(schema: Schema, path: list[str], child: Schema) -> None:
    """Put a block's schema at its path; ``*`` is any name."""
    for part in path[:-1]:
        schema = schema["properties"].setdefault(part, _block(properties={}, additionalProperties=False))
    if path[-1] == "*":
        schema["patternProperties"] = {f"^{SLOT_NAME.pattern}": child}
    else:
        schema["properties"][path[-1]] = child


# -------------------------------------------------------------------------------------------------------------------- blocks


def _block(**rules: Any) -> Schema:
    """A mapping; null removes it where it is inherited."""
    return _or_reference({"type": ["object", "null"], **rules}, "this must be a mapping")


def _weight() -> Schema:
    """A number of at least 0, or a ramp: where it begins and ends, and at which shares of the training."""
    number: Schema = {"type": "number", "minimum": 0}
    help_texts = {
        "from": "weight before the ramp",
        "to": "weight after it",
        "begin": "share of the steps",
        "end": "share of the steps",
    }
    properties = {
        key: {
            "description": help_texts[key],
            **_or_reference({**number, **({"maximum": 1} if key in ("begin", "end") else {})}, f"{key} must be a number"),
        }
        for key in RAMP_KEYS
    }
    ramp: Schema = {"properties": properties, "additionalProperties": False}
    return _or_reference({**number, "type": ["number", "object"], **ramp}, "a weight must be a number or a ramp")


def _core_block(kind: type[SpecBlock]) -> Schema:
    properties = {param.name: _param(param) for param in params_of(kind)}
    return {"description": _first_line(kind), **_block(properties=properties, additionalProperties=False)}


def _slot_name(slot: str) -> str:
    """The definition of a slot: that of its own role, else of the only one that fits."""
    return next((role.value for role, info in ROLES.items() if info.slot == slot), SLOTS[slot][0].value)


def _tied(*, is_masking: bool) -> Schema:
    """What a block may say beside the parameters of its component: which ports it reads, and in which views."""
    texts = _block(additionalProperties={"type": "string"})
    found = {
        "needs": {"description": "ARGUMENT: PORT, SLOT.PORT or either with @VIEW: another port than the argument's own", **texts},
        "views": {"description": "the views of this recipe that the views of the contract mean", **texts},
        "each": {"description": "the folded axis"},
    }
    return found | ({"of": {"description": "the view that it is made from", "type": "string"}} if is_masking else {})


def _borrowed() -> Schema:
    """A block without a component of its own: it shares the weights of another one, or follows them."""
    path: Schema = {"type": "string", "description": "a component of the model: model.image_encoder"}
    decay = {"description": "share of the moving average that stays at every step", **_or_reference({"type": "number"}, "a number")}
    properties = {"share": path, "follow": path, "decay": decay, **_tied(is_masking=False)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _slot(registry: ComponentRegistry, roles: Sequence[Role]) -> Schema:
    """A place for one component: which there are, and for each the parameters that go with it.

    A block without ``use`` changes an inherited component: what it holds must fit one of the role.
    """
    found = {name: kind for role in roles for name, kind in registry.of_role(role).items()}
    names = {"enum": list(found), "markdownEnumDescriptions": [_first_line(found[name]) for name in found]}
    use = {"description": f"the {' or '.join(roles)} component", "anyOf": [names, {"type": "string", "pattern": _SOME_REFERENCE}]}
    branches: list[Schema] = [
        {
            "if": {"type": "object", "properties": {"use": {"const": name}}, "required": ["use"]},
            "then": {"$ref": f"#/definitions/{name}"},
        }
        for name in found
    ]
    borrowed = [_borrowed()] if all(role.info.is_module for role in roles) else []
    inherited: Schema = {"anyOf": [*({"$ref": f"#/definitions/{name}"} for name in found), *borrowed] or [False]}
    branches.append({"if": {"type": "object", "not": {"required": ["use"]}}, "then": inherited})
    return {**_block(properties={"use": use}), "allOf": branches}


def _component(registry: ComponentRegistry, name: str) -> Schema:
    kind = registry[name]
    return {
        **_deprecation(kind.declaration.deprecated),
        "description": f"{_first_line(kind)} From {registry.distribution(name)}.",
        "markdownDescription": _about(registry, name),
        "type": "object",
        "properties": {
            "use": {"const": name},
            **_tied(is_masking=kind.declaration.role is Role.MASKING),
            **{param.name: _param(param) for param in params_of(kind)},
        },
        "additionalProperties": False,
    }


def _deprecation(instead: str) -> Schema:
    """Editors strike out what is deprecated and say what to use instead."""
    return {"deprecated": True, "deprecationMessage": instead} if instead else {}


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0]


def _about(registry: ComponentRegistry, name: str) -> str:
    """What hovers over a component: where it comes from, what it is, how its smallest example is written."""
    kind = registry[name]
    example = recipe_text(next(iter(kind.examples())))
    source = f"**{name}**, {kind.declaration.role} from {registry.distribution(name)}"
    if kind.declaration.deprecated:
        source += f"\n\n**deprecated**: {kind.declaration.deprecated}"
    return f"{source}\n\n{inspect.getdoc(kind)}\n\n```yaml\n{example}```"


# ---------------------------------------------------------------------------------------------------------------- parameters


def _param(param: Param) -> Schema:
    facts = [f"`{param.type_name}`", "required" if param.is_required else f"default `{default_text(param).removeprefix('= ')}`"]
    facts += [range_text(param)] if range_text(param) else []
    facts += [f"**deprecated**: {param.rules.deprecated}"] if param.rules.deprecated else []
    about = f"{param.rules.help}\n\n{', '.join(facts)}"
    schema: Schema = {"description": param.rules.help, "markdownDescription": about, **_value(param.type, param)}
    schema |= _deprecation(param.rules.deprecated)
    if not param.is_required:
        schema["default"] = list(param.default) if isinstance(param.default, tuple) else param.default
    return schema


def _value(kind: Any, param: Param) -> Schema:
    """The schema of a type; ranges apply to numbers and to the items of a list or mapping.

    Keywords such as ``minimum`` and ``pattern`` speak of one type each, so one flat schema holds a value, null and references.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    rules, complaint = param.rules, f"{param.name} must be {param.type_name}"
    if origin in (typing.Union, types.UnionType):
        inner = _value(next(arg for arg in args if arg is not type(None)), param)
        if "anyOf" in inner:
            return {"anyOf": [*inner["anyOf"], {"type": "null"}]}
        return {**inner, "type": list(dict.fromkeys((*_as_list(inner["type"]), "null")))}
    if origin is tuple:
        return _or_reference({"type": "array", "items": _value(args[0], param)}, complaint)
    if (blocks := blocks_in(kind)) is not None:
        return _block(additionalProperties=_core_block(blocks))
    if origin is dict:
        return _block(additionalProperties=_value(args[1], param))
    if rules.one_of is not None:
        allowed = [value for value in rules.one_of if rules.violation(value) is None]
        return {"anyOf": [{"enum": allowed}, {"type": "string", "pattern": _SOME_REFERENCE if kind is str else _WHOLE_REFERENCE}]}
    if kind is str:
        return {"type": "string"}
    schema: Schema = {"type": _SIMPLE[kind]}
    limits = {"minimum": rules.at_least, "maximum": rules.at_most, "exclusiveMinimum": rules.above, "exclusiveMaximum": rules.below}
    if kind in (int, float):
        schema |= {word: limit for word, limit in limits.items() if limit is not None}
    return _or_reference(schema, complaint)


def _or_reference(schema: Schema, complaint: str) -> Schema:
    """The same, or a reference that is the whole value; ``complaint`` is what editors say of anything else."""
    extra = {"pattern": _WHOLE_REFERENCE, "patternErrorMessage": complaint, "errorMessage": complaint}
    return {**schema, "type": list(dict.fromkeys((*_as_list(schema["type"]), "string"))), **extra}


def _as_list(kind: str | list[str]) -> list[str]:
    return kind if isinstance(kind, list) else [kind]
