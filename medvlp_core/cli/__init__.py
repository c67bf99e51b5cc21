"""The command line ``medvlp``: one file per command, imported only when it runs. Light: torch is for a few of them.

Exit codes: 0 all is well, 1 problems were found, 2 the command line is wrong.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from medvlp_core import __version__
from medvlp_core.cli.common import (
    Command,
    CommandParser,
    PluginCommands,
    add_override_arguments,
    add_recipe_arguments,
    columns,
    is_first_process,
    number,
    plan_or_complain,
    print_problems,
)
from medvlp_core.cli.folding import fold, print_folded
from medvlp_core.errors import MedvlpError, did_you_mean

__all__ = [
    "Command",
    "PluginCommands",
    "add_override_arguments",
    "add_recipe_arguments",
    "columns",
    "fold",
    "main",
    "number",
    "plan_or_complain",
    "print_folded",
    "print_problems",
]

#: Built-in commands: module below ``medvlp_core.cli`` and what they do.
COMMANDS: dict[str, tuple[str, str]] = {
    "check": ("check", "check a recipe completely: names, parameters, wiring; without torch"),
    "explain": ("explain", "show what a recipe amounts to: parts, dimensions, passes, losses, origins"),
    "list": ("list_components", "list the components and presets that are installed"),
    "show": ("show", "show one component or preset: parameters, ports, documentation"),
    "docs": ("docs", "print the components of a bundle as a page in Markdown"),
    "fill": ("fill", "write a recipe with every default filled in"),
    "diff": ("diff", "compare two recipes as resolved: components, parameters, where each value comes from"),
    "schema": ("schema", "write a JSON Schema of recipes for editors"),
    "conform": ("conform", "check the components of a bundle against all that is expected of them"),
    "kernels": ("kernels", "show which implementation of each op serves on this machine, and why not another"),
    "pretrain": ("pretrain", "train the model of a recipe"),
    "export": ("export", "write a trained model for timm, transformers, safetensors or onnx"),
    "ablate": ("ablate", "train a recipe in every combination of some values, over seeds, and compare"),
    "new": ("new", "write a plug-in package that works, for its author to change"),
}

#: Commands of bundles of this repository, by the namespace that brings them: for the hint where it is not installed.
BUNDLE_COMMANDS = {"bench": "bench", "estimate": "bench"}

USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy neighbour core makes a step many times slower
    try:
        return _run(arguments)
    except MedvlpError as error:
        print_problems(error.problems, sys.stderr)
        if not error.problems:  # raised with plain text, or with nothing at all
            print(str(error) or type(error).__name__, file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe went away (`medvlp list | head`): nothing is wrong, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if is_first_process():
            print("interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help", "help"):
        print(_overview(), file=sys.stdout if name else sys.stderr)
        return 0 if name else USAGE
    if name in ("-V", "--version"):
        print(f"medvlp {__version__}")
        return 0
    commands = {name: _built_in(name)} if name in COMMANDS else _plugin_commands()
    if name not in commands:
        print(f"medvlp: there is no command {name!r}\n    hint: {_hint(name, [*COMMANDS, *commands])}", file=sys.stderr)
        return USAGE
    command = commands[name]
    parser = CommandParser(prog=f"medvlp {name}", description=command.help)
    command.configure(parser)
    try:
        parsed = parser.parse(arguments[1:])
    except SystemExit as leave:  # argparse has printed its help (0) or its complaint (2)
        return int(leave.code or 0)
    return command.run(parsed)


def _built_in(name: str) -> Command:
    module = importlib.import_module(f"medvlp_core.cli.{COMMANDS[name][0]}")
    return Command(name=name, help=COMMANDS[name][1], configure=module.configure, run=module.run)


def _plugin_commands() -> dict[str, Command]:
    """The commands that plugins add. One that fails is named on stderr and keeps no other from working."""
    from medvlp_core.plugins.host import load_plugins

    commands = PluginCommands(taken=frozenset(COMMANDS))
    print_problems(load_plugins().call("medvlp_add_commands", commands=commands), sys.stderr)
    return commands.found


def _hint(name: str, known: Sequence[str]) -> str:
    """What to do about an unknown command: install or mend the bundle that brings it, or take the nearest."""
    from medvlp_core.plugins.host import load_plugins

    missing = load_plugins().install_hint(BUNDLE_COMMANDS[name]) if name in BUNDLE_COMMANDS else None
    return missing or did_you_mean(name, [*known, *BUNDLE_COMMANDS], what="commands")


def _overview() -> str:
    lines = ["usage: medvlp COMMAND ...", "", "Compose, check and pre-train medical vision-language models from YAML recipes.", ""]
    lines += ["commands:"]
    lines += [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    lines += [f"  {command.name:<10} {command.help}" for command in _plugin_commands().values()]
    lines += ["", "`medvlp COMMAND --help` explains a command; `medvlp --version` prints the version."]
    return "\n".join(lines)
