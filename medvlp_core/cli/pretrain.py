"""``medvlp pretrain RECIPE``: trains the model of a recipe. Needs torch."""

from __future__ import annotations

import argparse

from medvlp_core.cli.common import add_recipe_arguments, plan_or_complain


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, where to write and where to compute."""
    add_recipe_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="run folder, new or empty (default: runs/NAME-DATE-TIME)")
    parser.add_argument("--device", metavar="D", help="torch device, e.g. cpu or cuda:0 (default: the GPU if there is one)")


def run(arguments: argparse.Namespace) -> int:
    """Check first, without torch; then train. 1 if the recipe is wrong or an evaluator failed."""
    plan = plan_or_complain(arguments)
    if plan is None:
        return 1
    from medvlp_core.train.run import pretrain

    return 1 if pretrain(plan, out=arguments.out, device=arguments.device).problems else 0
