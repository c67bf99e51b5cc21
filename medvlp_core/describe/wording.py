"""Parameters, contracts and values in words, for commands, editors and reference pages. Light."""

from __future__ import annotations

import json
import os
from typing import Any

from medvlp_core.planning.plan import plain
from medvlp_core.recipe.load import dump_yaml
from medvlp_core.spec.component import ComponentSpec, Param, SpecBlock, params_of
from medvlp_core.spec.contract import Constraint


def default_text(param: Param) -> str:
    """``required``, or ``= default`` as YAML."""
    return "required" if param.is_required else f"= {yaml_value(param.default)}"


def yaml_value(value: Any) -> str:
    """A value as it stands in a recipe, on one line."""
    if isinstance(value, dict):
        value = {key: plain(item) if isinstance(item, SpecBlock) else item for key, item in value.items()}
        return json.dumps(value) if value else "{}"
    text = dump_yaml({"value": list(value) if isinstance(value, tuple) else value}).removeprefix("value:")
    return " ".join(line.strip() for line in text.strip().splitlines())


def range_text(param: Param) -> str:
    """``at least 0, below 1`` or ``a | b``; empty if everything goes."""
    rules = param.rules
    if rules.one_of is not None:
        return " | ".join(map(str, rules.one_of))
    parts = [
        f"at least {rules.at_least}" if rules.at_least is not None else "",
        f"above {rules.above}" if rules.above is not None else "",
        f"at most {rules.at_most}" if rules.at_most is not None else "",
        f"below {rules.below}" if rules.below is not None else "",
    ]
    return ", ".join(filter(None, parts))


def constraint_text(constraint: Constraint) -> str:
    """A constraint in words: ``12 (heads) divides Dt``."""
    names = {"Divides": "by", "Equal": "to", "AtLeast": "least", "OneOf": "values"}
    kind = type(constraint).__name__
    other = getattr(constraint, names[kind])
    other = f"{other} ({constraint.field})" if constraint.field and other != constraint.field else str(other)
    words = {
        "Divides": f"{other} divides {constraint.dim}",
        "Equal": f"{constraint.dim} equals {other}",
        "AtLeast": f"{constraint.dim} is at least {other}",
        "OneOf": f"{constraint.dim} is one of {other}",
    }
    return words[kind]


def recipe_text(example: ComponentSpec) -> str:
    """The part of a recipe that makes this example; parameters with their default value are left out."""
    document = recipe_block(example)
    for part in reversed(type(example).declaration.role.info.slot.replace("*", "my_name").split(".")):
        document = {part: document}
    return dump_yaml(document)


def recipe_block(example: ComponentSpec) -> dict[str, Any]:
    """What stands in the example's slot, as plain data."""
    defaults = {param.name: param.default for param in params_of(type(example))}
    given = {name: _portable(value) for name, value in plain(example).items() if getattr(example, name) != defaults[name]}
    return {"use": type(example).declaration.name, **given}


def _portable(value: Any) -> Any:
    """A path of this machine (examples may use files that ship with their package) as a path to fill in."""
    is_path = isinstance(value, str) and os.path.isabs(value)
    return f"/path/to/{os.path.basename(value)}" if is_path else value
