"""``medvlp bench WHAT``: measures speed on this machine, after a check. Imports torch when it runs."""

from __future__ import annotations

import argparse

from medvlp_bench.commands import kernels, train


def configure(parser: argparse.ArgumentParser) -> None:
    """What is measured: a command below this one each."""
    commands = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    kernels.configure(commands.add_parser("kernels", help="every op: our backends against others' ways"))
    train.configure(commands.add_parser("train", help="the training loop of a recipe: against a loop written by hand"))


def run(arguments: argparse.Namespace) -> int:
    """Measure kernels or training; the exit code."""
    return train.run(arguments) if arguments.what == "train" else kernels.run(arguments)
