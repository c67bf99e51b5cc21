"""Adds `medvlp bench` and `medvlp estimate` to the command line. Light: torch is imported when a command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp_bench.commands import bench, estimate
from medvlp_core import hookimpl

if TYPE_CHECKING:
    from medvlp_core.cli import PluginCommands

#: The version of medvlp's plugin interface that this bundle is written for.
MEDVLP_INTERFACE = 2


@hookimpl
def medvlp_add_commands(commands: PluginCommands) -> None:
    """Add both commands."""
    about = "measure kernels, or the training loop, on this machine against others' ways, after a check"
    commands.add("bench", about, bench.configure, bench.run, example="medvlp bench kernels")
    about = "what a run will cost, before it starts: operations, memory, time"
    example = "medvlp estimate mpma:base --gpu h100 --gpus 8"
    commands.add("estimate", about, estimate.configure, estimate.run, example=example)
