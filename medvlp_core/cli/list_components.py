"""``medvlp list``: what is installed, by role, and which plugins are broken."""

from __future__ import annotations

import argparse
import inspect
import sys

from medvlp_core.cli.common import columns, print_problems
from medvlp_core.components import Role


def configure(parser: argparse.ArgumentParser) -> None:
    """One role only, if wished."""
    parser.add_argument("--role", metavar="ROLE", choices=[role.value for role in Role], help=f"one of {', '.join(Role)}")


def run(arguments: argparse.Namespace) -> int:
    """Print the components, then presets and broken plugins."""
    from medvlp_core.plugins import load_plugins

    host = load_plugins()
    names = list(host.components)
    rows = {
        name: (name, host.components.distribution(name), (inspect.getdoc(host.components[name]) or "").splitlines()[0])
        for name in names
    }
    aligned = dict(zip(names, columns([rows[name] for name in names]), strict=True))
    for role in Role:
        found = host.components.of_role(role)
        if arguments.role not in (None, role.value) or not (found or arguments.role):
            continue
        print(f"{role}:" if found else f"{role}: none")
        for name in found:
            print(aligned[name])
    if host.presets and arguments.role is None:
        print("presets:")
        for name in sorted(host.presets):
            print(f"  {name}")
    if host.broken:
        print("broken plugins, left out:", file=sys.stderr)
        print_problems((broken.problem for broken in host.broken), sys.stderr)
    return 0
