"""In what two plans differ, for the lines and for the document of ``medvlp diff``. Light."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medvlp_core.planning.losses import weight_data
from medvlp_core.planning.plan import ModelPlan, plain
from medvlp_core.planning.wiring import INPUTS
from medvlp_core.spec.component import SpecBlock
from medvlp_core.spec.roles import ROLES


def block_values(a: ModelPlan, b: ModelPlan) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The blocks that belong to no component, with their values in both recipes."""
    return {
        "inputs": (values_of(a.inputs), values_of(b.inputs)),
        "init_from": (values_of(a.init_from), values_of(b.init_from)),
        "train": (values_of(a.train), values_of(b.train)),
        "losses": (_weights(a), _weights(b)),
    }


def _weights(plan: ModelPlan) -> dict[str, Any]:
    return {term: weight_data(weight) for term, weight in plan.losses.items()}


def paths_of_both(a: ModelPlan, b: ModelPlan) -> list[str]:
    """The slots that one of the two fills: by role, those of ``a`` first."""
    both = {**a.components, **b.components}
    roles = list(ROLES)
    return sorted(both, key=lambda path: roles.index(both[path].role))


def changed_order(a: ModelPlan, b: ModelPlan, slot: str) -> tuple[list[str], list[str]] | None:
    """Slots in another order: losses are added in the order of the recipe, so it is a difference."""
    base = slot.removesuffix("*")
    old = [path.removeprefix(base) for path in a.components if path.startswith(base) and path in b.components]
    new = [path.removeprefix(base) for path in b.components if path.startswith(base) and path in a.components]
    return (old, new) if old != new else None


def values_of(block: SpecBlock) -> dict[str, Any]:
    """The parameters of a block as they are compared: paths absolute."""
    return plain(block, has_absolute_paths=True)


def changed_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The values that only one of the two has, or that are not the same."""
    return [name for name in {**old, **new} if name not in old or name not in new or old[name] != new[name]]


def only_in_one(old: list[str], new: list[str]) -> tuple[list[str], list[str]]:
    """What stands only in the first list, and what only in the second."""
    return [one for one in old if one not in new], [one for one in new if one not in old]


def changed_dimensions(a: ModelPlan, b: ModelPlan) -> list[tuple[str, str, int | None, int | None]]:
    """Dimensions that slots of both recipes have, with another number: slot, symbol and both numbers; None = free."""
    found = []
    for path in (INPUTS, *(path for path in paths_of_both(a, b) if path in a.components and path in b.components)):
        old, new = a.dims(path), b.dims(path)
        names = {*old, *new}
        if path != INPUTS:
            names = set(a.components[path].sizes) & set(b.components[path].sizes)
        found += [(path, name, old.get(name), new.get(name)) for name in sorted(names) if old.get(name) != new.get(name)]
    return found


def calls_of(plan: ModelPlan) -> list[str]:
    """The calls of a training step, one text each."""
    return [str(call) for call in plan.calls]
