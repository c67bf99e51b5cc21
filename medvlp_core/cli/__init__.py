"""The command line ``medvlp``: one file per command, imported only when it runs. Light: torch is for a few of them.

Exit codes: 0 all is well, 1 problems were found, 2 the command line is wrong (docs/commands.md has all of them). What
``__all__`` names is for bundles that add commands with the hook ``medvlp_add_commands``.
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
    read_plan,
)
from medvlp_core.cli.completion_words import completes
from medvlp_core.cli.folding import fold, print_folded
from medvlp_core.cli.json_output import add_json_argument, only_json, print_json
from medvlp_core.errors import MedvlpError, did_you_mean

__all__ = [
    "Command",
    "CommandParser",
    "PluginCommands",
    "add_json_argument",
    "add_override_arguments",
    "add_recipe_arguments",
    "columns",
    "completes",
    "fold",
    "main",
    "number",
    "plan_or_complain",
    "print_folded",
    "print_json",
    "print_problems",
    "read_plan",
]

#: Built-in commands: module below ``medvlp_core.cli`` and what they do.
COMMANDS: dict[str, tuple[str, str]] = {
    "check": ("check", "check a recipe completely: names, parameters, wiring; without torch"),
    "explain": ("explain", "show what a recipe amounts to: parts, dimensions, calls, losses, origins"),
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
    "completion": ("completion", "print the script that completes commands, presets and component names in a shell"),
}

#: The groups of the overview: every built-in command, with an example for its help.
GROUPS: dict[str, dict[str, str]] = {
    "recipes": {
        "check": "medvlp check mpma:small --set train.steps=100",
        "explain": "medvlp explain mpma:small --use model.fusion=standard.cross_attention",
        "diff": "medvlp diff mpma:small mpma:base",
        "fill": "medvlp fill mpma:small > mine.yaml",
        "schema": "medvlp schema --out recipe.schema.json",
    },
    "components": {
        "list": "medvlp list --role fusion --compatible-with mpma:small",
        "show": "medvlp show mpma.memory_fusion",
        "new": "medvlp new acme --role fusion",
        "conform": "medvlp conform acme --check ignores_padding",
        "docs": "medvlp docs acme > components.md",
    },
    "runs": {
        "pretrain": "medvlp pretrain mpma:small --set train.steps=100 --out runs/first",
        "ablate": "medvlp ablate mpma:small --over model.fusion=mpma.memory_fusion,standard.cross_attention --seeds 0,1",
        "export": "medvlp export runs/first --to timm --out exported",
    },
    "this machine": {
        "kernels": "medvlp kernels --dtype bfloat16",
        "completion": 'eval "$(medvlp completion bash)"',
    },
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
    commands = {name: built_in(name)} if name in COMMANDS else plugin_commands()
    if name not in commands:
        print(f"medvlp: there is no command {name!r}\n    hint: {_hint(name, [*COMMANDS, *commands])}", file=sys.stderr)
        return USAGE
    command = commands[name]
    try:
        parsed = parser_of(command).parse(arguments[1:])
    except SystemExit as leave:  # argparse has printed its help (0) or its complaint (2)
        return int(leave.code or 0)
    if not getattr(parsed, "json", False):
        return command.run(parsed)
    with only_json():
        try:
            return command.run(parsed)
        except MedvlpError as error:
            print_json(name, problems=error.problems or [str(error) or type(error).__name__])
            return 1


def parser_of(command: Command) -> CommandParser:
    """The parser of a command, with its own arguments; the parsed ones have the command's name as ``command``."""
    parser = CommandParser(prog=f"medvlp {command.name}", description=command.help, example=command.example)
    parser.set_defaults(command=command.name)
    command.configure(parser)
    return parser


def built_in(name: str) -> Command:
    """A command of :data:`COMMANDS`; imports its module."""
    file, text = COMMANDS[name]
    module = importlib.import_module(f"medvlp_core.cli.{file}")
    example = next((group[name] for group in GROUPS.values() if name in group), "")
    return Command(name=name, help=text, configure=module.configure, run=module.run, example=example)


def plugin_commands() -> dict[str, Command]:
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
    lines = ["usage: medvlp COMMAND ...", "", "Compose, check and pre-train medical vision-language models from YAML recipes."]
    groups = {title: [(name, COMMANDS[name][1]) for name in group] for title, group in GROUPS.items()}
    groups["from plug-ins"] = [(command.name, command.help) for command in plugin_commands().values()]
    for title, commands in groups.items():
        if commands:
            lines += ["", f"{title}:", *(f"  {name:<10} {text}" for name, text in commands)]
    lines += ["", "`medvlp COMMAND --help` explains a command; `medvlp --version` prints the version."]
    return "\n".join(lines)
