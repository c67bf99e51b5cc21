"""What the commands share: the parser, the recipe arguments, printing problems. Light; rich only for a terminal."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import attrs

from medvlp_core.cli.colour import ERROR, HINT, WARNING, print_styled
from medvlp_core.cli.completion_words import Kind, completes
from medvlp_core.cli.json_output import print_json
from medvlp_core.errors import Diagnostics, PluginError, Problem, nearest

if TYPE_CHECKING:
    from medvlp_core.planning.plan import ModelPlan
    from medvlp_core.plugins.host import PluginHost


@attrs.frozen(kw_only=True)
class Command:
    """A subcommand: ``configure`` declares its arguments, ``run`` does the work and returns the exit code.

    ``example`` is a command line, shown at the end of its help.
    """

    name: str
    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    example: str = ""


@attrs.define
class PluginCommands:
    """What ``medvlp_add_commands`` gets as ``commands``."""

    taken: frozenset[str]
    found: dict[str, Command] = attrs.field(factory=dict)

    def add(
        self,
        name: str,
        help: str,
        configure: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace], int],
        example: str = "",
    ) -> None:
        """Add a subcommand; ``example`` is a command line for its help.

        Raises:
            PluginError: there is one of that name.
        """
        if name in self.taken or name in self.found:
            raise PluginError(Problem(code="MV302", text=f"there is already a command {name!r}"))
        self.found[name] = Command(name=name, help=help, configure=configure, run=run, example=example)


class CommandParser(argparse.ArgumentParser):
    """argparse that names the nearest option instead of only complaining, and ends the help with an example."""

    def __init__(self, *, example: str = "", **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.example = example

    def format_help(self) -> str:
        """The help, with the example as it is typed."""
        return super().format_help() + (f"\nexample:\n  {self.example}\n" if self.example else "")

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """Parse; an unknown option is an error with a hint, exit code 2."""
        parsed, rest = self.parse_known_args(args)
        if rest:
            options = [option for action in self._all_actions(parsed) for option in action.option_strings]
            typed = rest[0].partition("=")[0]
            near = nearest(typed, options) if typed.startswith("-") else None
            what = "option" if typed.startswith("-") else "argument"
            self.error(f"unknown {what} {rest[0]!r}" + (f"\n    hint: did you mean '{near}'?" if near else ""))
        return parsed

    def _all_actions(self, parsed: argparse.Namespace) -> list[argparse.Action]:
        """Own actions, and those of the command below this one that was chosen."""
        found = list(self._actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += action.choices[getattr(parsed, action.dest)]._actions
        return found

    def error(self, message: str) -> NoReturn:
        """Print the usage line and the complaint, and leave with 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {message}\n")


class _AddOverride(argparse.Action):
    """Collects --set, --use and --unset in one list, so that their order counts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        kind = (option_string or "").removeprefix("--")
        namespace.overrides = [*namespace.overrides, (kind, values)]


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and the overrides."""
    completes(parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a preset such as mpma:small"), "recipe")
    add_override_arguments(parser)


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """``--set``, ``--use`` and ``--unset``, in ``overrides`` as (kind, text) in the order given."""
    parser.set_defaults(overrides=[])
    options: tuple[tuple[Kind, str, str], ...] = (
        ("set", "PATH=VALUE", "set a value, e.g. train.steps=100; the value is read as YAML"),
        ("use", "PATH=COMPONENT", "put another component into a slot, e.g. model.fusion=standard.cross_attention"),
        ("unset", "PATH", "remove a block or value, e.g. model.alignments.gla"),
    )
    for name, form, text in options:
        completes(parser.add_argument(f"--{name}", metavar=form, action=_AddOverride, dest="overrides", help=text), name)


def read_plan(arguments: argparse.Namespace, diagnostics: Diagnostics, host: PluginHost | None = None) -> ModelPlan | None:
    """Load and plan the recipe of the command line; problems and warnings go to ``diagnostics``."""
    from medvlp_core.planning.compose import load_and_compose
    from medvlp_core.plugins.host import load_plugins
    from medvlp_core.recipe.load import parse_overrides

    overrides = parse_overrides(arguments.overrides, diagnostics)
    return load_and_compose(arguments.recipe, overrides, host or load_plugins(), diagnostics)


def is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that a launcher such as torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def plan_or_complain(arguments: argparse.Namespace) -> ModelPlan | None:
    """The plan; problems are printed to stderr, and None means that there were errors.

    With ``--json`` nothing is printed but, if there were errors, the document of the command with them; the warnings are those of
    the plan.
    """
    diagnostics = Diagnostics()
    plan = read_plan(arguments, diagnostics)
    if getattr(arguments, "json", False):
        if plan is None:
            print_json(arguments.command, problems=diagnostics, recipe=arguments.recipe)
        return plan
    if not is_first_process():  # the first one says what all find
        if plan is not None:
            return plan
        time.sleep(5)  # if the first one found errors too, the launcher ends this process now
    print_problems(diagnostics, sys.stderr)
    return plan


def print_problems(problems: Iterable[Problem], stream: TextIO) -> None:
    """Print problems as they are; where a person is looking, errors are red and warnings yellow."""
    for problem in problems:
        code = rf"\[{problem.code}\]"
        head = {f"{code} warning:": WARNING} if problem.is_warning else {code: ERROR}
        print_styled(str(problem), stream, {**head, r"(?m)^    hint: .*$": HINT})


def columns(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """Rows as aligned lines; the last column runs free.

    Example:
        >>> columns([("a", "long", "x"), ("bcd", "s", "y")])
        ['  a    long  x', '  bcd  s     y']
    """
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    return [
        (indent + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])).rstrip()
        for row in rows
    ]


def number(value: int) -> str:
    """``1234567`` as ``1,234,567``."""
    return f"{value:,}"
