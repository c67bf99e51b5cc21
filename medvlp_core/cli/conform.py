"""``medvlp conform``: check the components of an installed bundle against everything the framework expects of them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

from medvlp_core.cli.folding import print_folded
from medvlp_core.errors import did_you_mean

if TYPE_CHECKING:
    from medvlp_core.testing.runner import Outcome, Result

USAGE = 2
#: Known outcomes in the order of the closing line.
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "not applicable")


def configure(parser: argparse.ArgumentParser) -> None:
    """The bundle, and which part of the checks."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="namespace of an installed bundle, e.g. acme")
    parser.add_argument("--component", metavar="NAME", help="one component only, e.g. acme.gate")
    parser.add_argument("--check", metavar="CHECK", help="one check only, e.g. ignores_padding")
    parser.add_argument("--checks", action="store_true", help="list the checks and what each asks for, and do nothing else")
    parser.add_argument(
        "--verbose", action="store_true", help="show the checks that passed, with their time, and those that do not apply"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what fails, component by component; 1 if anything does."""
    from medvlp_core.testing.rooms import CHECKS

    if arguments.checks:
        _print_checks()
        return 0
    if arguments.bundle is None:
        print("medvlp conform: which bundle?\n    hint: `medvlp conform acme`; `medvlp list` shows the bundles", file=sys.stderr)
        return USAGE
    if arguments.check is not None and arguments.check not in CHECKS:
        hint = did_you_mean(arguments.check, CHECKS, what="checks")
        print(f"medvlp conform: there is no check {arguments.check!r}\n    hint: {hint}", file=sys.stderr)
        return USAGE
    return _conform(arguments)


def _conform(arguments: argparse.Namespace) -> int:
    from medvlp_core.plugins import load_plugins
    from medvlp_core.testing.runner import components_of, run_conformance

    host = load_plugins()
    names = components_of(arguments.bundle, host)
    if arguments.component is not None and arguments.component not in names:
        hint = did_you_mean(arguments.component, names, what="components")
        print(f"medvlp conform: {arguments.bundle} has no component {arguments.component!r}\n    hint: {hint}", file=sys.stderr)
        return USAGE
    found: list[Result] = []
    current = ""
    wanted_component, wanted_check = arguments.component, arguments.check
    for result in run_conformance(
        arguments.bundle,
        host,
        wanted=lambda name, one: wanted_component in (None, name) and wanted_check in (None, one.name),
    ):
        if result.component != current:
            current = result.component
            print(current, flush=True)
        is_said = any((one.component, one.text) == (result.component, result.text) for one in found)
        found.append(result)
        print_folded(_lines(result, is_verbose=arguments.verbose, is_said=is_said), hang=6)
    counts: Counter[Outcome] = Counter(result.outcome for result in found)
    seconds = sum(result.seconds for result in found)
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    print(f"{arguments.bundle}: {told or 'no such check for this role'} ({seconds:.0f} s)")
    return 1 if counts["failed"] else 0


def _lines(result: Result, *, is_verbose: bool, is_said: bool) -> list[str]:
    if result.outcome == "failed" and is_said:
        return [f"  FAILED {result.check}: as above"]
    if result.outcome == "failed":
        return [f"  FAILED {result.check}", *(f"    {line}" for line in result.text.splitlines())]
    if not is_verbose:
        return []
    if result.outcome == "not applicable":
        return [f"  not applicable {result.check}: {result.text}"]
    return [f"  passed {result.check} ({result.seconds:.2f} s)"]


def _print_checks() -> None:
    from medvlp_core.components import Role
    from medvlp_core.testing.rooms import CHECKS

    longest = max(map(len, CHECKS))
    for group in dict.fromkeys(one.group for one in CHECKS.values()):
        print(f"{group}:")
        for one in CHECKS.values():
            if one.group == group:
                is_for_all = one.roles in (frozenset(Role), frozenset())  # of its kind: checks of ops have no role
                shown = "" if is_for_all else f" [{', '.join(sorted(one.roles))}]"
                print_folded([f"  {one.name:<{longest}}  {one.summary}{shown}"], hang=longest + 4)
