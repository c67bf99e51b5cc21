"""``medvlp bench kernels --first-run``: what the ops' bundles do on a GPU that they never saw. Imports torch when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvlp_core import did_you_mean

if TYPE_CHECKING:
    from medvlp_core import KernelOp

USAGE = 2
MINUTES = 9.0


def configure(parser: argparse.ArgumentParser) -> None:
    """The options that only a first run has."""
    group = parser.add_argument_group("the first time on a GPU")
    about = "check, time and tune the kernels in one go, and write what is to be kept (with --op and --out only)"
    group.add_argument("--first-run", action="store_true", help=about)
    group.add_argument("--rehearse", action="store_true", help="the same code at toy size on a CPU, in Triton's interpreter")
    group.add_argument("--minutes", metavar="N", type=float, help=f"time for all (default: {MINUTES:g})")
    group.add_argument("--steps", metavar="A,B", help="only these steps (default: all)")


def complaint(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the options, if anything is."""
    of_first_run = {"--rehearse": arguments.rehearse, "--minutes": arguments.minutes is not None, "--steps": bool(arguments.steps)}
    given = [option for option, is_given in of_first_run.items() if is_given]
    if given and not arguments.first_run:
        return f"{given[0]} belongs to a first run\n    hint: medvlp bench kernels --first-run {given[0]} ..."
    if arguments.first_run:
        names = ("shape", "device", "dtype", "scale", "repeats")
        others = [f"--{name}" for name in names if getattr(arguments, name)]
        others += ["--direction"] if arguments.direction != "all" else []
        if others:
            return f"--first-run chooses devices, shapes and rounds itself: leave {' and '.join(others)} away"
    return None


def run(arguments: argparse.Namespace, ops: Sequence[KernelOp]) -> int:
    """Run what the ops declare, each once. 0, 1 if something is wrong or failed, 2 without a GPU and for an unknown step."""
    import torch

    from medvlp_core.kernels.benchmark import load_first_run
    from medvlp_core.training import make_run_folder

    found = {op.first_run: (op.name.partition(".")[0], load_first_run(op)) for op in reversed(ops)}
    known = [step for _, one in found.values() for step in one.steps]
    wanted = arguments.steps.split(",") if arguments.steps else known
    for step in wanted:
        if step not in known:
            return _usage(f"a first run has no step {step!r}\n    hint: {did_you_mean(step, known, what='steps')}")
    if not arguments.rehearse and not torch.cuda.is_available():
        return _usage("torch finds no GPU here (--rehearse tries the first run without one)")
    folder = make_run_folder(arguments.out, "first-run")
    minutes = MINUTES if arguments.minutes is None else arguments.minutes
    are_fine = []
    for namespace, one in found.values():
        out = folder if len(found) == 1 else folder / namespace
        out.mkdir(exist_ok=True)
        steps = [step for step in one.steps if step in wanted]
        are_fine.append(one.run(out, minutes=minutes / len(found), steps=steps, is_rehearsal=arguments.rehearse))
    return 0 if all(are_fine) else 1


def _usage(text: str) -> int:
    print(f"medvlp bench: {text}", file=sys.stderr)
    return USAGE
