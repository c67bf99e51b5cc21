"""``medvlp fill RECIPE``: the recipe with every default written out and every bundle pinned."""

from __future__ import annotations

import argparse

from medvlp_core.cli.common import add_recipe_arguments, plan_or_complain

configure = add_recipe_arguments


def run(arguments: argparse.Namespace) -> int:
    """Write the filled recipe to stdout; checking it gives the same plan."""
    plan = plan_or_complain(arguments)
    if plan is None:
        return 1
    print(plan.resolved_yaml(), end="")
    return 0
