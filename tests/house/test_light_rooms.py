"""Light rooms stay light: what declares and checks never imports torch or another heavy library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "timm", "transformers", "tokenizers", "numpy", "PIL", "sklearn", "matplotlib", "torchvision")
BUNDLES = sorted(path.parent.parent.name for path in ROOT.glob("plugins/*/*/plugin.py"))
CORE = (
    "errors",
    "components",
    "registry",
    "candidates",
    "contract",
    "blocks",
    "hooks",
    "yamltree",
    "references",
    "yamlio",
    "plugins",
    "parameters",
    "restoring",
    "kernels.registry",
)
PLANNING = (
    "wiring",
    "connect",
    "plan",
    "compose",
    "wording",
    "schema",
    "reference_pages",
    "compatible",
    "cli",
    "cli.check",
    "cli.explain",
    "cli.show",
    "cli.docs",
    "cli.list_components",
    "cli.diff",
    "cli.ablate",
    "cli.estimate",
    "estimate.cards",
    "ablate.grid",
    "ablate.folder",
    "ablate.results",
    "ablate.table",
    "ablate.picture",
    "cli.kernels",
    "cli.bench",
    "cli.bench_train",
    "cli.new",
    "cli.export",
    "export",
    "scaffold.package",
    "testing.partners.plugin",
)
LIGHT = ("medvlp_core", *(f"medvlp_core.{room}" for room in (*CORE, *PLANNING)))


def heavy_after(statements: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has imported after some statements."""
    code = f"import sys\n{statements}\nprint('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    environment = {name: value for name, value in os.environ.items() if name != "MEDVLP_PLUGINS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_probe_sees_heavy_libraries() -> None:
    assert "numpy" in heavy_after("import numpy")


def test_the_core_is_light() -> None:
    assert heavy_after("\n".join(f"import {room}" for room in LIGHT)) == set()


def test_every_bundle_declares_without_torch() -> None:
    assert len(BUNDLES) >= 3
    statements = "from medvlp_core.plugins import load_plugins\nhost = load_plugins()\nassert not host.broken, host.broken\n"
    statements += "for name in host.components:\n    [example.contract() for example in host.components[name].examples()]"
    assert heavy_after(statements) == set()


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "list",
        "list --role decoder --compatible-with mpma:small",
        "schema",
        "docs mpma",
        "check mpma:small",
        "explain mpma:small",
        "fill mpma:small",
        "diff mpma:small mpma:small",
        "ablate mpma:small --over train.steps=1,2 --dry-run",
    ],
)
def test_commands_without_torch(command: str) -> None:
    statements = f"from medvlp_core.cli import main\nassert main({command.split()!r}) == 0"
    assert heavy_after(statements) == set()
