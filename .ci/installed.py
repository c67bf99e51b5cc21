"""Compares the packages of this environment with constraints.txt, and exits with 1 if one is another version or is not listed."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
#: What every virtual environment brings.
NOT_LISTED = {"pip"}


def main() -> None:
    """Compare, and say what differs."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    listed = {canonicalize_name(one.name): one.specifier for one in wanted if one.marker is None or one.marker.evaluate()}
    installed = {canonicalize_name(one.metadata["Name"]): one.version for one in distributions()}
    third_party = {name: installed[name] for name in sorted(installed) if name not in NOT_LISTED and not name.startswith("medvlp-")}
    wrong = [
        f"{name} {version} is installed, and constraints.txt has {listed.get(name, 'no such package')}"
        for name, version in third_party.items()
        if name not in listed or not listed[name].contains(version, prereleases=True)
    ]
    if wrong:
        sys.exit("\n".join([*wrong, "hint: install with -c constraints.txt, or write it anew with .ci/constraints"]))
    print(f"{len(third_party)} packages, all as in constraints.txt")


if __name__ == "__main__":
    main()
