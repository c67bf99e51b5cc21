"""``medvlp pretrain RECIPE``: trains the model of a recipe. Needs torch."""

from __future__ import annotations

import argparse
import sys

from medvlp_core.cli.common import add_override_arguments, plan_or_complain
from medvlp_core.cli.completion_words import completes
from medvlp_core.errors import Diagnostics

USAGE = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe or the run to resume, where to write and where to compute."""
    completes(
        parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a YAML file, or a preset such as mpma:small"), "recipe"
    )
    add_override_arguments(parser)
    parser.add_argument("--out", metavar="DIR", help="run folder, new or empty (default: runs/NAME-DATE-TIME)")
    parser.add_argument("--device", metavar="D", help="torch device, e.g. cpu or cuda:0 (default: the GPU if there is one)")
    resume = "resume a run that was stopped or killed; takes no RECIPE, and --set only for what changes nothing that is learned"
    parser.add_argument("--resume", metavar="RUN", help=resume)


def run(arguments: argparse.Namespace) -> int:
    """Check first, without torch; then train. 1 if the recipe is wrong or an evaluator failed; 130 or 143 after a signal."""
    if arguments.resume is not None:
        return _resume(arguments)
    if arguments.recipe is None:
        hint = "`medvlp pretrain mpma:small`, or `medvlp pretrain --resume RUN`"
        print(f"medvlp pretrain: which recipe?\n    hint: {hint}", file=sys.stderr)
        return USAGE
    plan = plan_or_complain(arguments)
    if plan is None:
        return 1
    from medvlp_core.training.trainer import pretrain

    result = pretrain(plan, out=arguments.out, device=arguments.device)
    return 1 if result is not None and result.problems else 0


def _resume(arguments: argparse.Namespace) -> int:
    given = [shown for name, shown in (("recipe", "RECIPE"), ("out", "--out")) if getattr(arguments, name)]
    if given:
        hint = "a run is resumed in its folder, as it began; to begin a new one from its weights, use init_from"
        print(f"medvlp pretrain: --resume takes no {' and no '.join(given)}\n    hint: {hint}", file=sys.stderr)
        return USAGE
    from medvlp_core.recipe.load import parse_overrides

    diagnostics = Diagnostics()
    overrides = parse_overrides(arguments.overrides, diagnostics)
    diagnostics.raise_errors()
    from medvlp_core.training.trainer import resume

    result = resume(arguments.resume, overrides, device=arguments.device)
    return 1 if result is not None and result.problems else 0
