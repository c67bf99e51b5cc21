"""``medvlp new``: writes a plug-in package that works, for its author to change."""

from __future__ import annotations

import argparse
from pathlib import Path

from medvlp_core.spec.roles import Role


def configure(parser: argparse.ArgumentParser) -> None:
    """What it is called, what it is for and where it goes."""
    parser.add_argument("name", metavar="NAME", help="name of the package, e.g. acme; its components are called acme.something")
    parser.add_argument("--role", required=True, metavar="ROLE", help=f"what its component does: {', '.join(Role)}")
    parser.add_argument("--component", metavar="NOUN", help="name of the component, behind the dot (default: the template's)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write, a new or empty folder (default: NAME)")


def run(arguments: argparse.Namespace) -> int:
    """Write the package and say how to go on.

    Raises:
        PluginError: names or folder cannot be used; then nothing is written (MV305).
    """
    from medvlp_core.plugins.host import load_plugins
    from medvlp_core.scaffold.package import describe, render, write

    package = describe(arguments.name, arguments.role, arguments.component, load_plugins())
    found = render(package)
    folder = arguments.out or Path(package.name)
    write(found, folder)
    print(f"{folder}: a package with {package.what}, {package.name}.{package.component}")
    print("\n".join(f"  {path}" for path in found if "/sample/" not in path))
    print("next:")
    print(f"  python -m pip install -e {folder}")
    print(f"  medvlp check {package.name}:small")
    print(f"  medvlp conform {package.name}")
    print(f"  medvlp pretrain {package.name}:small --set train.steps=20")
    return 0
