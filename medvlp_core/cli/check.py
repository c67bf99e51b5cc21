"""``medvlp check RECIPE``: every problem of a recipe at once, without torch."""

from __future__ import annotations

import argparse
import sys

from medvlp_core.cli.common import add_recipe_arguments, print_problems, read_plan
from medvlp_core.errors import Diagnostics

configure = add_recipe_arguments


def run(arguments: argparse.Namespace) -> int:
    """Print the problems, or one line that says what the recipe is."""
    diagnostics = Diagnostics()
    plan = read_plan(arguments, diagnostics)
    print_problems(diagnostics, sys.stdout)
    counts = [_count(len(diagnostics.errors), "error"), _count(len(diagnostics.warnings), "warning")]
    if plan is None:
        print(f"{arguments.recipe}: {', '.join(filter(None, counts))}")
        return 1
    sizes = [
        _count(len(plan.components), "component"),
        _count(len(plan.losses), "loss term"),
        _count(len(plan.steps), "call") + " a step",
    ]
    print(f"{arguments.recipe}: ok, {', '.join([*sizes, *filter(None, counts)])}")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
