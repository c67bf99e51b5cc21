"""``medvlp list``: what is installed, by role, where it comes from, and which plugins are broken."""

from __future__ import annotations

import argparse
import inspect
import sys

from medvlp_core.cli.common import columns, print_problems
from medvlp_core.cli.folding import print_folded
from medvlp_core.components import Role


def configure(parser: argparse.ArgumentParser) -> None:
    """One role only, if wished."""
    parser.add_argument("--role", metavar="ROLE", choices=[role.value for role in Role], help=f"one of {', '.join(Role)}")


def run(arguments: argparse.Namespace) -> int:
    """Print the components, then presets, kernels and broken plugins."""
    from medvlp_core.plugins import load_plugins

    host = load_plugins()
    longest = max(map(len, host.components), default=0)
    for role in Role:
        found = host.components.of_role(role)
        if arguments.role not in (None, role.value) or not (found or arguments.role):
            continue
        print(f"{role}:" if found else f"{role}: none")
        about = {name: (inspect.getdoc(kind) or "").splitlines()[0] for name, kind in found.items()}
        print_folded((f"  {name:<{longest}}  {text}" for name, text in about.items()), hang=longest + 4)
    if host.presets and arguments.role is None:
        print("presets:")
        for name in sorted(host.presets):
            print(f"  {name}")
    if host.kernels and arguments.role is None:
        print("kernels:")
        longest = max(map(len, host.kernels))
        ops = sorted(host.kernels.values(), key=lambda op: op.name)
        print_folded((f"  {op.name:<{longest}}  {op.summary}" for op in ops), hang=longest + 4)
    brought = [(one.namespace, f"{one.distribution} {one.version}") for one in host.plugins if one.distribution]
    if brought and arguments.role is None:
        print("bundles:")
        print("\n".join(columns(sorted(brought))))
    if host.broken:
        print("broken plugins, left out:", file=sys.stderr)
        print_problems((broken.problem for broken in host.broken), sys.stderr)
    return 0
