"""The document of ``medvlp diff --json``: what the lines of the command say, as plain data. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvlp_core.cli.differences import (
    block_values,
    calls_of,
    changed_dimensions,
    changed_names,
    changed_order,
    only_in_one,
    paths_of_both,
    values_of,
)
from medvlp_core.cli.json_output import position_data
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import PlannedComponent
from medvlp_core.spec.roles import ROLES

Data = dict[str, Any]


def differences_data(a: ModelPlan, b: ModelPlan) -> Data:
    """Every list is empty exactly if the recipes resolve to the same."""
    components = [_component(a, b, path) for path in paths_of_both(a, b)]
    orders = {info.base: changed_order(a, b, info.slot) for info in ROLES.values()}
    blocks = {name: _changes(a, b, name, old, new) for name, (old, new) in block_values(a, b).items()}
    requires = only_in_one(a.resolved()["requires"], b.resolved()["requires"])
    calls = only_in_one(calls_of(a), calls_of(b))
    return {
        "components": [one for one in components if one is not None],
        "order": [{"slot": slot, "a": order[0], "b": order[1]} for slot, order in orders.items() if order is not None],
        **blocks,
        "requires": {"only_a": requires[0], "only_b": requires[1]},
        "dimensions": [dict(zip(("path", "symbol", "a", "b"), row, strict=True)) for row in changed_dimensions(a, b)],
        "calls": {"only_a": calls[0], "only_b": calls[1]},
    }


def _component(a: ModelPlan, b: ModelPlan, path: str) -> Data | None:
    """One slot: which component each of the two has there, and the parameters that are not the same."""
    old, new = a.components.get(path), b.components.get(path)
    if old is not None and new is not None and old.name == new.name:
        changes = _changes(a, b, path, values_of(old.spec), values_of(new.spec))
        if not changes:
            return None
    else:
        changes = _changes(a, b, path, values_of(old.spec), {}) if old is not None else []
        changes += _changes(a, b, path, {}, values_of(new.spec)) if new is not None else []
    return {"path": path, "a": _used(old), "b": _used(new), "parameters": changes}


def _used(component: PlannedComponent | None) -> Data | None:
    return {"name": component.name, **position_data(component.position())} if component is not None else None


def _changes(a: ModelPlan, b: ModelPlan, path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Data]:
    """Values that are not the same, each with its place; None where one of the two has none."""

    def shown(plan: ModelPlan, values: Mapping[str, Any], name: str) -> Data | None:
        return {"value": values[name], **position_data(plan.source(f"{path}.{name}"))} if name in values else None

    return [{"name": name, "a": shown(a, old, name), "b": shown(b, new, name)} for name in changed_names(old, new)]
