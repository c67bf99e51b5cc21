"""``medvlp diff A B``: what distinguishes two recipes, with every default counted and every place named. Light.

Exit codes are those of ``diff``: 0 no difference, 1 differences, 2 trouble.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from medvlp_core.cli.common import add_override_arguments, columns, print_problems, read_plan
from medvlp_core.cli.completion_words import completes
from medvlp_core.cli.diff_json import differences_data
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
from medvlp_core.cli.explain import origin, value_lines
from medvlp_core.cli.folding import print_folded
from medvlp_core.cli.json_output import add_json_argument, print_json
from medvlp_core.describe.wording import yaml_value
from medvlp_core.errors import Diagnostics, MedvlpError, Problem
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import PlannedComponent
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
    add_json_argument(parser)
    parser.epilog = "Exit code: 0 = no difference, 1 = the recipes differ, 2 = one of them has errors."


def run(arguments: argparse.Namespace) -> int:
    """Print the differences."""
    plans = []
    problems: list[Problem] = []
    for recipe, overrides in ((arguments.first, []), (arguments.recipe, arguments.overrides)):
        diagnostics = Diagnostics()
        plan = _read(argparse.Namespace(recipe=recipe, overrides=overrides), diagnostics)
        plans.append(plan)
        problems += diagnostics
        if arguments.json:
            continue
        print_problems(diagnostics, sys.stderr)
        if plan is None:
            count = len(diagnostics.errors)
            print(f"{_title(recipe, overrides)}: {count} error{'' if count == 1 else 's'}", file=sys.stderr)
    first, second = plans
    titles = {"a": arguments.first, "b": _title(arguments.recipe, arguments.overrides)}
    if first is None or second is None:
        if arguments.json:
            print_json("diff", problems=problems, **titles, same=None)
        return TROUBLE
    lines = list(differences(first, second))
    if arguments.json:
        print_json("diff", problems=problems, **titles, same=not lines, **differences_data(first, second))
    else:
        print_folded([f"A: {titles['a']}", f"B: {titles['b']}", *lines] if lines else ["no difference"])
    return DIFFERENT if lines else SAME


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
    for path in paths_of_both(a, b):
        yield from _component_lines(a, b, path)
    for slot in (info.slot for info in ROLES.values()):
        yield from _order_lines(a, b, slot)
    for block, (old, new) in block_values(a, b).items():
        yield from _section(block, _value_lines(a, b, block, old, new))
    yield from _section("requires", _only_lines(a.resolved()["requires"], b.resolved()["requires"]))
    yield from _section("dimensions", _dimension_lines(a, b))
    yield from _section("calls of a training step", _only_lines(calls_of(a), calls_of(b)))


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *lines] if lines else []


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
        return _section(f"{path}: {old.name}", _value_lines(a, b, path, values_of(old.spec), values_of(new.spec)))
    lines = [f"  A: {old.name}", *value_lines(a, path, old.spec), f"  B: {new.name}", *value_lines(b, path, new.spec)]
    return _section(f"{path}: {_used(old)} -> {_used(new)}", lines)


def _used(component: PlannedComponent) -> str:
    return f"{component.name} ({component.position()})"


def _order_lines(a: ModelPlan, b: ModelPlan, slot: str) -> list[str]:
    change = changed_order(a, b, slot)
    if change is None:
        return []
    old, new = change
    return _section(slot.removesuffix("*").rstrip("."), [f"  order: {', '.join(old)} -> {', '.join(new)}"])


def _value_lines(a: ModelPlan, b: ModelPlan, path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``name  old (place) -> new (place)`` for each value that is not the same; ``-`` where one of the two has none."""

    def shown(plan: ModelPlan, values: Mapping[str, Any], name: str) -> str:
        return f"{yaml_value(values[name])} ({origin(plan, f'{path}.{name}')})" if name in values else "-"

    return columns([(name, f"{shown(a, old, name)} -> {shown(b, new, name)}") for name in changed_names(old, new)])


def _only_lines(old: list[str], new: list[str]) -> list[str]:
    only_a, only_b = only_in_one(old, new)
    return [f"  only in A: {one}" for one in only_a] + [f"  only in B: {one}" for one in only_b]


def _dimension_lines(a: ModelPlan, b: ModelPlan) -> list[str]:
    """``model.fusion  Dt=128 -> 96``: the changed dimensions, slot by slot."""
    rows: dict[str, list[str]] = {}
    for path, name, old, new in changed_dimensions(a, b):
        rows.setdefault(path, []).append(f"{name}={'free' if old is None else old} -> {'free' if new is None else new}")
    return columns([(path, ", ".join(changes)) for path, changes in rows.items()])
