"""``medvlp estimate RECIPE``: what a run will cost, before it starts. Needs torch, but no GPU and no data."""

from __future__ import annotations

import argparse
import os
import sys

from medvlp_bench.estimate.cards import NAMES
from medvlp_core import did_you_mean
from medvlp_core.cli import add_json_argument, add_recipe_arguments, plan_or_complain, print_folded, print_json, print_problems

USAGE = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, and the GPUs."""
    add_recipe_arguments(parser)
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(NAMES)} (default: h100)")
    parser.add_argument("--gpus", metavar="N", type=int, help="how many of them (default: 1)")
    parser.add_argument("--pairs", metavar="N", type=int, help="training pairs, if the data are not on this machine")
    parser.add_argument("--check", action="store_true", help="run one step on this CPU and compare it with its estimate")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the estimate. 1 if the recipe is wrong or does not fit on the GPU, 2 for options that make no sense."""
    name, gpus = (arguments.gpu or "h100").lower(), 1 if arguments.gpus is None else arguments.gpus
    if complaint := _complaint(arguments, name, gpus):
        print(f"medvlp estimate: {complaint}", file=sys.stderr)
        return USAGE
    plan = plan_or_complain(arguments)
    if plan is None:
        return 1
    if arguments.check:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells its inner life otherwise
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from medvlp_bench.estimate.compare import check_lines

        print_folded(check_lines(plan))
        return 0
    from medvlp_bench.estimate.estimate import card_for, estimate
    from medvlp_bench.estimate.report import estimate_data, lines

    card = card_for(name, needs_half=plan.train.precision != "fp32")
    found = estimate(plan, card, gpus, arguments.pairs)
    if arguments.json:
        problems = [*plan.warnings, *([found.problem] if found.problem is not None else [])]
        print_json("estimate", problems=problems, recipe=arguments.recipe, **estimate_data(found))
        return 0 if found.problem is None else 1
    print_folded(lines(found))
    if found.problem is not None:
        print_problems([found.problem], sys.stderr)
        return 1
    return 0


def _complaint(arguments: argparse.Namespace, name: str, gpus: int) -> str | None:
    """What is wrong with the options, if anything is."""
    given = {"--gpu": arguments.gpu, "--gpus": arguments.gpus, "--pairs": arguments.pairs}
    ignored = [option for option, value in given.items() if value is not None]
    if arguments.check and arguments.json:
        return "--check prints lines only: leave --json away"
    if arguments.check and ignored:
        return f"--check runs a step on this machine's CPU, whatever the GPUs and the data: leave {' and '.join(ignored)} away"
    if name not in NAMES:
        return f"there is no GPU {arguments.gpu!r} in the table\n    hint: {did_you_mean(name, NAMES, what='GPUs')}"
    for option, value in (("--gpus", gpus), ("--pairs", arguments.pairs)):
        if value is not None and value < 1:
            return f"{option} {value}: expected 1 or more"
    if name == "cpu" and gpus > 1:
        return "--gpu cpu is this machine, of which there is one: leave --gpus away"
    return None
