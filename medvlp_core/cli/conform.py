"""``medvlp conform``: check the components of an installed bundle against everything the framework expects of them."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from medvlp_core.cli.completion_words import completes
from medvlp_core.cli.folding import print_folded
from medvlp_core.cli.json_output import add_json_argument, print_json
from medvlp_core.errors import PluginError, did_you_mean, nearest

if TYPE_CHECKING:
    from medvlp_core.testing.checks import Check
    from medvlp_core.testing.runner import Outcome, Result

USAGE = 2
#: Known outcomes in the order of the closing line.
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "not applicable")


def configure(parser: argparse.ArgumentParser) -> None:
    """The bundle, and which part of the checks."""
    completes(
        parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="namespace of an installed bundle, e.g. acme"), "bundle"
    )
    completes(parser.add_argument("--component", metavar="NAME", help="one component only, e.g. acme.gate"), "name")
    parser.add_argument("--check", metavar="CHECK", help="one check only, e.g. ignores_padding")
    parser.add_argument("--checks", action="store_true", help="list the checks and what each asks for, and do nothing else")
    parser.add_argument(
        "--verbose", action="store_true", help="show the checks that passed, with their time, and those that do not apply"
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what fails, component by component; 1 if anything does."""
    from medvlp_core.testing.check_modules import CHECKS

    if arguments.checks:
        _print_checks(has_json=arguments.json)
        return 0
    if arguments.bundle is None:
        print("medvlp conform: which bundle?\n    hint: `medvlp conform acme`; `medvlp list` shows the bundles", file=sys.stderr)
        return USAGE
    if arguments.check is not None and arguments.check not in CHECKS:
        near = nearest(arguments.check, CHECKS)
        hint = (f"did you mean {near!r}? " if near else "") + "`medvlp conform --checks` lists them"
        print(f"medvlp conform: there is no check {arguments.check!r}\n    hint: {hint}", file=sys.stderr)
        return USAGE
    return _conform(arguments)


def _conform(arguments: argparse.Namespace) -> int:
    from medvlp_core.plugins.host import load_plugins
    from medvlp_core.testing.runner import cases, components_of, run_conformance

    host = load_plugins()
    try:
        names = components_of(arguments.bundle, host)
    except PluginError as error:
        if arguments.bundle in [*(one.namespace for one in host.plugins), *(one.namespace for one in host.broken)]:
            raise
        print(error, file=sys.stderr)
        return USAGE
    if arguments.component is not None and arguments.component not in names:
        hint = did_you_mean(arguments.component, names, what="components")
        print(f"medvlp conform: {arguments.bundle} has no component {arguments.component!r}\n    hint: {hint}", file=sys.stderr)
        return USAGE
    wanted_component, wanted_check = arguments.component, arguments.check

    def is_wanted(name: str, one: Check) -> bool:
        return wanted_component in (None, name) and wanted_check in (None, one.name)

    if not any(is_wanted(name, one) for name, one in cases(arguments.bundle, host)):
        what = f"any component of {arguments.bundle}" if wanted_component is None else wanted_component
        hint = "`medvlp conform --checks` says for which roles each check is"
        print(f"medvlp conform: {wanted_check} is not for {what}\n    hint: {hint}", file=sys.stderr)
        return USAGE
    found: list[Result] = []
    every = run_conformance(arguments.bundle, host, wanted=is_wanted)
    if arguments.json:
        return _print_json(arguments.bundle, list(every))
    for component, results in itertools.groupby(every, lambda one: one.component):
        print(component, flush=True)
        found += _print_results(results, is_verbose=arguments.verbose)
    counts: Counter[Outcome] = Counter(result.outcome for result in found)
    seconds = sum(result.seconds for result in found)
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    print(f"{arguments.bundle}: {told} ({seconds:.0f} s)")
    return 1 if counts["failed"] else 0


def _print_json(bundle: str, results: list[Result]) -> int:
    counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in OUTCOMES}
    keys = ("component", "check", "outcome", "text", "seconds")
    print_json("conform", bundle=bundle, counts=counts, results=[{key: getattr(result, key) for key in keys} for result in results])
    return 1 if counts["failed"] else 0


def _print_results(results: Iterable[Result], *, is_verbose: bool) -> list[Result]:
    """Print those of one component as they come, each message once; all of them."""
    found = []
    checks: dict[str, list[str]] = {}  # that fail with a message
    for result in results:
        found.append(result)
        if result.outcome == "failed":
            checks.setdefault(result.text, []).append(result.check)
        if result.outcome != "failed" or len(checks[result.text]) == 1:
            print_folded(_lines(result, is_verbose=is_verbose), hang=6)
    for first, *more in checks.values():
        if more:
            above = "above" if len(checks) == 1 else first
            told = f"{len(more)} more check{' fails' if len(more) == 1 else 's fail'} as {above}: {', '.join(more)}"
            print_folded([f"  {told}"], hang=6)
    return found


def _lines(result: Result, *, is_verbose: bool) -> list[str]:
    if result.outcome == "failed":
        return [f"  FAILED {result.check}", *(f"    {line}" for line in result.text.splitlines())]
    if not is_verbose:
        return []
    if result.outcome == "not applicable":
        return [f"  not applicable {result.check}: {result.text}"]
    return [f"  passed {result.check} ({result.seconds:.2f} s)"]


def _print_checks(*, has_json: bool) -> None:
    from medvlp_core.spec.roles import Role
    from medvlp_core.testing.check_modules import CHECKS

    if has_json:
        every = [
            {"name": one.name, "group": one.group, "roles": sorted(one.roles), "summary": one.summary} for one in CHECKS.values()
        ]
        print_json("conform", checks=every)
        return
    longest = max(map(len, CHECKS))
    for group in dict.fromkeys(one.group for one in CHECKS.values()):
        print(f"{group}:")
        for one in CHECKS.values():
            if one.group == group:
                is_for_all = one.roles in (frozenset(Role), frozenset())  # of its kind: checks of ops have no role
                shown = "" if is_for_all else f" [{', '.join(sorted(one.roles))}]"
                print_folded([f"  {one.name:<{longest}}  {one.summary}{shown}"], hang=longest + 4)
