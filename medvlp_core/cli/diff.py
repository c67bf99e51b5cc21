"""``medvlp diff A B``: what distinguishes two recipes, with every default counted and every place named. Light.

Exit codes are those of ``diff``: 0 no difference, 1 differences, 2 trouble.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from medvlp_core.cli.common import add_override_arguments, columns, print_problems, read_plan
from medvlp_core.cli.explain import origin, value_lines
from medvlp_core.cli.folding import print_folded
from medvlp_core.cli.words import completes
from medvlp_core.describe.wording import yaml_value
from medvlp_core.errors import Diagnostics, MedvlpError
from medvlp_core.planning.plan import ModelPlan, plain
from medvlp_core.planning.wiring import INPUTS, PlannedComponent
from medvlp_core.spec.component import SpecBlock
from medvlp_core.spec.roles import ROLES

SAME, DIFFERENT, TROUBLE = 0, 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Two recipes; the overrides belong to the second."""
    completes(parser.add_argument("first", metavar="A", help="a YAML file, or a preset such as mpma:small"), "recipe")
    completes(
        parser.add_argument("recipe", metavar="B", help="the recipe to compare with A; --set, --use and --unset change only B"),
        "recipe",
    )
    add_override_arguments(parser)
    parser.epilog = "Exit code: 0 = no difference, 1 = the recipes differ, 2 = one of them has errors."


def run(arguments: argparse.Namespace) -> int:
    """Print the differences."""
    plans = []
    for recipe, overrides in ((arguments.first, []), (arguments.recipe, arguments.overrides)):
        diagnostics = Diagnostics()
        plan = _read(argparse.Namespace(recipe=recipe, overrides=overrides), diagnostics)
        print_problems(diagnostics, sys.stderr)
        if plan is None:
            count = len(diagnostics.errors)
            print(f"{_title(recipe, overrides)}: {count} error{'' if count == 1 else 's'}", file=sys.stderr)
        plans.append(plan)
    first, second = plans
    if first is None or second is None:
        return TROUBLE
    lines = list(differences(first, second))
    if not lines:
        print("no difference")
        return SAME
    print_folded([f"A: {arguments.first}", f"B: {_title(arguments.recipe, arguments.overrides)}", *lines])
    return DIFFERENT


def _read(arguments: argparse.Namespace, diagnostics: Diagnostics) -> ModelPlan | None:
    """The plan, or None. An error that is raised is one more problem: exit code 1 would say that the recipes differ."""
    try:
        return read_plan(arguments, diagnostics)
    except MedvlpError as error:
        diagnostics.problems += error.problems
        return None


def _title(recipe: str, overrides: list[tuple[str, str]]) -> str:
    return " ".join([recipe, *(f"--{kind} {text}" for kind, text in overrides)])


def differences(a: ModelPlan, b: ModelPlan) -> Iterator[str]:
    """All differences: components, ``inputs``, ``train``, losses, bundles, then the dimensions and calls that follow from them.

    Nothing is yielded exactly if both resolve to the same document, with components in the same order.
    """
    for path in _paths(a, b):
        yield from _component_lines(a, b, path)
    for slot in (info.slot for info in ROLES.values()):
        yield from _order_lines(a, b, slot)
    yield from _section("inputs", _value_lines(a, b, "inputs", _values(a.inputs), _values(b.inputs)))
    init_a, init_b = _values(a.init_from), _values(b.init_from)
    yield from _section("init_from", _value_lines(a, b, "init_from", init_a, init_b))
    yield from _section("train", _value_lines(a, b, "train", _values(a.train), _values(b.train)))
    yield from _section("losses", _value_lines(a, b, "losses", a.losses, b.losses))
    yield from _section("requires", _only_lines(a.resolved()["requires"], b.resolved()["requires"]))
    yield from _section("dimensions", _dimension_lines(a, b))
    yield from _section("calls of a training step", _only_lines(_calls(a), _calls(b)))


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *lines] if lines else []


def _paths(a: ModelPlan, b: ModelPlan) -> list[str]:
    """The slots that one of the two fills: by role, those of ``a`` first."""
    both = {**a.components, **b.components}
    roles = list(ROLES)
    return sorted(both, key=lambda path: roles.index(both[path].role))


def _component_lines(a: ModelPlan, b: ModelPlan, path: str) -> list[str]:
    """One slot: changed parameters, another component, or a component that only one of the two has."""
    old, new = a.components.get(path), b.components.get(path)
    if old is None or new is None:
        plan, side, component = (a, "A", old) if old is not None else (b, "B", new)
        assert component is not None
        return _section(
            f"{path}: only in {side}, {_used(component)}", value_lines(plan, path, component.spec) or ["      no parameters"]
        )
    if old.name == new.name:
        return _section(f"{path}: {old.name}", _value_lines(a, b, path, _values(old.spec), _values(new.spec)))
    lines = [f"  A: {old.name}", *value_lines(a, path, old.spec), f"  B: {new.name}", *value_lines(b, path, new.spec)]
    return _section(f"{path}: {_used(old)} -> {_used(new)}", lines)


def _used(component: PlannedComponent) -> str:
    return f"{component.name} ({component.position()})"


def _order_lines(a: ModelPlan, b: ModelPlan, slot: str) -> list[str]:
    """Slots in another order: weights are drawn in the order of the recipe, so it is a difference."""
    base = slot.removesuffix("*")
    old = [path.removeprefix(base) for path in a.components if path.startswith(base) and path in b.components]
    new = [path.removeprefix(base) for path in b.components if path.startswith(base) and path in a.components]
    return _section(base.rstrip("."), [f"  order: {', '.join(old)} -> {', '.join(new)}"]) if old != new else []


def _values(block: SpecBlock) -> dict[str, Any]:
    return plain(block, has_absolute_paths=True)


def _value_lines(a: ModelPlan, b: ModelPlan, path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``name  old (place) -> new (place)`` for each value that is not the same; ``-`` where one of the two has none."""

    def shown(plan: ModelPlan, values: Mapping[str, Any], name: str) -> str:
        return f"{yaml_value(values[name])} ({origin(plan, f'{path}.{name}')})" if name in values else "-"

    names = [name for name in {**old, **new} if name not in old or name not in new or old[name] != new[name]]
    return columns([(name, f"{shown(a, old, name)} -> {shown(b, new, name)}") for name in names])


def _only_lines(old: list[str], new: list[str]) -> list[str]:
    """What stands in one of two lists only."""
    lines = [f"  only in A: {one}" for one in old if one not in new]
    return lines + [f"  only in B: {one}" for one in new if one not in old]


def _dimension_lines(a: ModelPlan, b: ModelPlan) -> list[str]:
    """``model.fusion  Dt=128 -> 96``: dimensions that slots of both recipes have, with another number."""
    rows = []
    for path in (INPUTS, *(path for path in _paths(a, b) if path in a.components and path in b.components)):
        old, new = a.dims(path), b.dims(path)
        names = sorted({*old, *new})
        if path != INPUTS:
            names = sorted(a.components[path].contract.symbols() & b.components[path].contract.symbols())
        changes = [f"{name}={old.get(name, 'free')} -> {new.get(name, 'free')}" for name in names if old.get(name) != new.get(name)]
        if changes:
            rows.append((path, ", ".join(changes)))
    return columns(rows)


def _calls(plan: ModelPlan) -> list[str]:
    return [f"{step.stage.replace('_', ' ')}: {step.path}" + (f" @{step.view}" if step.view else "") for step in plan.steps]
