"""``medvlp estimate RECIPE``: what a run will cost, before it starts. Needs torch, but no GPU and no data."""

from __future__ import annotations

import argparse
import os
import sys

from medvlp_core.cli.common import add_recipe_arguments, plan_or_complain, print_problems
from medvlp_core.cli.folding import print_folded
from medvlp_core.errors import did_you_mean
from medvlp_core.estimate.cards import NAMES

USAGE = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, and the GPUs."""
    add_recipe_arguments(parser)
    parser.add_argument("--gpu", metavar="NAME", default="h100", help=f"{', '.join(NAMES)} (default: h100)")
    parser.add_argument("--gpus", metavar="N", type=int, default=1, help="how many of them (default: 1)")
    parser.add_argument("--pairs", metavar="N", type=int, help="training pairs, if the data are not on this machine")
    parser.add_argument("--check", action="store_true", help="run one step on this CPU and compare it with its estimate")


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate. 1 if the recipe is wrong or does not fit on the GPU, 2 for unknown GPUs and impossible numbers."""
    name = arguments.gpu.lower()
    if name not in NAMES:
        return _usage(f"there is no GPU {arguments.gpu!r} in the table\n    hint: {did_you_mean(name, NAMES, what='GPUs')}")
    for option, value in (("--gpus", arguments.gpus), ("--pairs", arguments.pairs)):
        if value is not None and value < 1:
            return _usage(f"{option} {value}: expected 1 or more")
    if name == "cpu" and arguments.gpus > 1:
        return _usage("--gpu cpu is this machine, of which there is one: leave --gpus away")
    plan = plan_or_complain(arguments)
    if plan is None:
        return 1
    if arguments.check:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells its inner life otherwise
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from medvlp_core.estimate.check import check_lines

        print_folded(check_lines(plan))
        return 0
    from medvlp_core.estimate.estimate import card_for, estimate
    from medvlp_core.estimate.report import lines

    card = card_for(name, needs_half=plan.train.precision != "fp32")
    found = estimate(plan, card, arguments.gpus, arguments.pairs)
    print_folded(lines(found))
    if found.problem is not None:
        print_problems([found.problem], sys.stderr)
        return 1
    return 0


def _usage(text: str) -> int:
    print(f"medvlp estimate: {text}", file=sys.stderr)
    return USAGE
