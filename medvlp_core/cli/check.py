"""``medvlp check RECIPE``: every problem of a recipe at once, without torch."""

from __future__ import annotations

import argparse
import sys

from medvlp_core.cli.colour import ERROR, GOOD, WARNING, print_styled
from medvlp_core.cli.common import add_recipe_arguments, print_problems, read_plan
from medvlp_core.cli.json_output import add_json_argument, print_json
from medvlp_core.errors import Diagnostics
from medvlp_core.planning.plan import ModelPlan


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe."""
    add_recipe_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the problems, or one line that says what the recipe is."""
    diagnostics = Diagnostics()
    plan = read_plan(arguments, diagnostics)
    if arguments.json:
        print_json("check", problems=diagnostics, recipe=arguments.recipe, ok=plan is not None, counts=counts(plan, diagnostics))
        return 0 if plan is not None else 1
    print_problems(diagnostics, sys.stdout)
    found = counts(plan, diagnostics)
    told = [_count(found["errors"], "error"), _count(found["warnings"], "warning")]
    if plan is not None:
        sizes = _count(found["components"], "component"), _count(found["loss_terms"], "loss term")
        told = ["ok", *sizes, _count(found["calls"], "call") + " a step", *told]
    styles = {r"\bok\b": GOOD, r"\d+ errors?$|\d+ errors?(?=,)": ERROR, r"\d+ warnings?$": WARNING}
    print_styled(f"{arguments.recipe}: {', '.join(filter(None, told))}", sys.stdout, styles)
    return 0 if plan is not None else 1


def counts(plan: ModelPlan | None, diagnostics: Diagnostics) -> dict[str, int]:
    """How many problems, and of a recipe without errors how many components, loss terms and calls a step."""
    found = {"errors": len(diagnostics.errors), "warnings": len(diagnostics.warnings)}
    if plan is not None:
        found |= {"components": len(plan.components), "loss_terms": len(plan.losses), "calls": len(plan.calls)}
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""
