"""``medvlp list``: what is installed, by role, where it comes from, which plugins are broken, and what fits into a recipe."""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medvlp_core.cli.common import columns, print_problems
from medvlp_core.cli.folding import print_folded
from medvlp_core.errors import Diagnostics, Problem
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.roles import Role

if TYPE_CHECKING:
    from medvlp_core.planning.compatible import Fit
    from medvlp_core.plugins.host import PluginHost

USAGE = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """One role only, and only what fits a recipe, if wished."""
    parser.add_argument("--role", metavar="ROLE", choices=[role.value for role in Role], help=f"one of {', '.join(Role)}")
    text = "say which components of the role fit into this recipe (a YAML file or a preset), and why the others do not"
    parser.add_argument("--traceback", action="store_true", help="show where broken plugins raise")
    parser.add_argument("--compatible-with", metavar="RECIPE", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Print the components, then presets, kernels and broken plugins; or what fits, 1 if the recipe itself has errors."""
    from medvlp_core.plugins.host import load_plugins

    if arguments.compatible_with is not None and arguments.role is None:
        hint = f"write e.g. `medvlp list --role fusion --compatible-with {arguments.compatible_with}`; roles: {', '.join(Role)}"
        print(f"medvlp list: --compatible-with needs --role\n    hint: {hint}", file=sys.stderr)
        return USAGE
    host = load_plugins()
    if arguments.compatible_with is not None:
        code = _print_fits(arguments.compatible_with, Role(arguments.role), host)
    else:
        code = _print_installed(arguments.role, host)
    print_problems((problem for plugin in host.plugins for problem in plugin.warnings), sys.stderr)
    if host.broken:
        print("broken plugins, skipped:", file=sys.stderr)
    for broken in host.broken:
        print_problems([broken.problem], sys.stderr)
        if arguments.traceback and broken.traceback:
            print(textwrap.indent(broken.traceback, "    "), end="", file=sys.stderr)
    if not arguments.traceback and any(broken.traceback for broken in host.broken):
        print("`medvlp list --traceback` shows where they raise", file=sys.stderr)
    return code


def _print_installed(only: str | None, host: PluginHost) -> int:
    longest = max(map(len, host.components), default=0)
    for role in Role:
        found = host.components.of_role(role)
        if only not in (None, role.value) or not (found or only):
            continue
        print(f"{role}:" if found else f"{role}: none")
        about = {name: _first_line(kind) for name, kind in found.items()}
        print_folded((f"  {name:<{longest}}  {text}" for name, text in about.items()), hang=longest + 4)
    if host.presets and only is None:
        print("presets:")
        for name in sorted(host.presets):
            print(f"  {name}")
    if host.kernels and only is None:
        print("kernels:")
        longest = max(map(len, host.kernels))
        ops = sorted(host.kernels.values(), key=lambda op: op.name)
        print_folded((f"  {op.name:<{longest}}  {op.summary}" for op in ops), hang=longest + 4)
    brought = [(one.namespace, f"{one.distribution} {one.version}") for one in host.plugins if one.distribution]
    if brought and only is None:
        print("bundles:")
        print("\n".join(columns(sorted(brought))))
    return 0


def _first_line(kind: type[ComponentSpec]) -> str:
    about = (inspect.getdoc(kind) or "").splitlines()[0]
    return f"(deprecated: {kind.declaration.deprecated}) {about}" if kind.declaration.deprecated else about


# ------------------------------------------------------------------------------------------------------------ what fits


def _print_fits(source: str, role: Role, host: PluginHost) -> int:
    from medvlp_core.planning.compatible import compatible

    diagnostics = Diagnostics()
    fits = compatible(source, role, host, diagnostics)
    if diagnostics.has_errors:
        print_problems(diagnostics, sys.stderr)
        print(f"{source}: nothing at {role.info.slot} would change these errors; repair them first", file=sys.stderr)
        return 1
    print_folded(fit_lines(fits, source, role, host))
    return 0


def fit_lines(fits: list[Fit], source: str, role: Role, host: PluginHost) -> Iterator[str]:
    """Three groups: what fits with its default parameters, what needs a parameter first, what does not fit."""
    where = f"into {role.info.slot} of {source}"
    if not fits:
        yield f"{role}: none is installed"
        return
    good = [fit for fit in fits if fit.is_good]
    longest = max(len(fit.name) for fit in fits)
    yield f"fit {where}, with default parameters:" if good else f"none fits {where} with default parameters"
    for fit in good:
        yield f"  {fit.name:<{longest}}  {_first_line(host.components[fit.name])}" + _presence(fit)
        yield from (f"      warning {_brief(problem)}" for problem in fit.warnings)
    groups = (
        ("cannot be tried, for they have a parameter without a default:", [fit for fit in fits if not fit.is_good and fit.needs]),
        ("do not fit with default parameters:", [fit for fit in fits if not fit.is_good and not fit.needs]),
    )
    for title, group in groups:
        if group:
            yield title
        for fit in group:
            yield f"  {fit.name}{_presence(fit)}"
            yield from (f"      {_brief(problem)}" for problem in fit.errors)
    if len(good) < len(fits):
        yield f"`medvlp check {source} --use {role.info.slot.replace('*', 'SLOT')}=NAME` shows the messages whole, with hints"


def _presence(fit: Fit) -> str:
    if fit.present is None:
        return ""
    return " (in the recipe, with the recipe's values)" if fit.present == fit.path else f" (also at {fit.present})"


def _brief(problem: Problem) -> str:
    """Code and text of a problem, on one line."""
    return f"[{problem.code}] {' '.join(problem.text.split())}"
