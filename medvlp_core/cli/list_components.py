"""``medvlp list``: what is installed, by role, where it comes from, which plugins are broken, and what fits into a recipe."""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medvlp_core.cli.common import columns, print_problems
from medvlp_core.cli.completion_words import completes
from medvlp_core.cli.folding import print_folded
from medvlp_core.cli.json_output import add_json_argument, print_json, problem_data
from medvlp_core.errors import Diagnostics, Problem
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.roles import Role

if TYPE_CHECKING:
    from medvlp_core.planning.compatible import Fit
    from medvlp_core.plugins.host import PluginHost

USAGE = 2


def configure(parser: argparse.ArgumentParser) -> None:
    """One role only, and only what fits a recipe, if asked for."""
    parser.add_argument("--role", metavar="ROLE", choices=[role.value for role in Role], help=f"one of {', '.join(Role)}")
    text = "say which components of the role fit into this recipe (a YAML file or a preset), and why the others do not"
    parser.add_argument("--traceback", action="store_true", help="show where broken plugins raise")
    completes(parser.add_argument("--compatible-with", metavar="RECIPE", help=text), "recipe")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the components, then presets, kernels and broken plugins; or what fits, 1 if the recipe itself has errors."""
    from medvlp_core.plugins.host import load_plugins

    if arguments.compatible_with is not None and arguments.role is None:
        hint = f"write e.g. `medvlp list --role fusion --compatible-with {arguments.compatible_with}`; roles: {', '.join(Role)}"
        print(f"medvlp list: --compatible-with needs --role\n    hint: {hint}", file=sys.stderr)
        return USAGE
    host = load_plugins()
    if arguments.json:
        return _print_json(arguments, host)
    if arguments.compatible_with is not None:
        code = _print_fits(arguments.compatible_with, Role(arguments.role), host)
    else:
        code = _print_installed(arguments.role, host)
    _print_broken(host, has_traceback=arguments.traceback)
    return code


def _print_broken(host: PluginHost, *, has_traceback: bool) -> None:
    print_problems((problem for plugin in host.plugins for problem in plugin.warnings), sys.stderr)
    if host.broken:
        print("broken plugins, skipped:", file=sys.stderr)
    for broken in host.broken:
        print_problems([broken.problem], sys.stderr)
        if has_traceback and broken.traceback:
            print(textwrap.indent(broken.traceback, "    "), end="", file=sys.stderr)
    if not has_traceback and any(broken.traceback for broken in host.broken):
        print("`medvlp list --traceback` shows where they raise", file=sys.stderr)


def _print_json(arguments: argparse.Namespace, host: PluginHost) -> int:
    """The document: what is installed, or what fits; problems are those of plugins, and of a recipe that is broken."""
    problems = [problem for plugin in host.plugins for problem in plugin.warnings] + [broken.problem for broken in host.broken]
    if arguments.compatible_with is None:
        print_json("list", problems=problems, **installed(arguments.role, host))
        return 0
    from medvlp_core.planning.compatible import compatible

    diagnostics = Diagnostics()
    role = Role(arguments.role)
    fits = compatible(arguments.compatible_with, role, host, diagnostics)
    found = [fit_data(fit) for fit in fits]
    where = {"recipe": arguments.compatible_with, "role": role, "slot": role.info.slot}
    print_json("list", problems=[*diagnostics, *problems], **where, fits=found)
    return 1 if diagnostics.has_errors else 0


def installed(only: str | None, host: PluginHost) -> dict[str, Any]:
    """Components by role, presets, kernels and bundles; with ``only`` one role's components."""
    roles = {}
    for role in Role:
        if only in (None, role.value):
            roles[role.value] = [component_data(name, host) for name in host.components.of_role(role)]
    if only is not None:
        return {"components": roles}
    kernels = [{"name": op.name, "summary": op.summary} for op in sorted(host.kernels.values(), key=lambda op: op.name)]
    brought = [plugin for plugin in sorted(host.plugins, key=lambda one: one.namespace) if plugin.distribution]
    bundles = [{"namespace": one.namespace, "distribution": one.distribution, "version": one.version} for one in brought]
    return {"components": roles, "presets": sorted(host.presets), "kernels": kernels, "bundles": bundles}


def component_data(name: str, host: PluginHost) -> dict[str, Any]:
    """One component: name, distribution, first line of its documentation, and what to use instead if it is deprecated."""
    kind = host.components[name]
    about = (inspect.getdoc(kind) or "").splitlines()[0]
    deprecated = kind.declaration.deprecated or None
    return {"name": name, "distribution": host.components.distribution(name), "about": about, "deprecated": deprecated}


def fit_data(fit: Fit) -> dict[str, Any]:
    """Whether a component fits with its default parameters, and why not; ``present`` is the slot that has it already."""
    problems = [problem_data(problem) for problem in (*fit.errors, *fit.warnings)]
    needs = list(fit.needs)
    return {"name": fit.name, "slot": fit.path, "fits": fit.is_good, "needs": needs, "present": fit.present, "problems": problems}


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
