"""What is free of torch is whole folders: a module in one of them, or an author's declaration, never imports a heavy library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "timm", "transformers", "tokenizers", "numpy", "PIL", "sklearn", "matplotlib", "torchvision")
BUNDLES = sorted(path.parent.parent.name for path in ROOT.glob("plugins/*/*/plugin.py"))
#: Folders of the core in which everything is torch-free (docs/architecture.md).
LIGHT_FOLDERS = ("spec", "recipe", "plugins", "planning", "describe", "cli", "scaffold")
#: Single modules that these import, or that a command needs before it trains: see docs/architecture.md.
LIGHT_MODULES = (
    "medvlp_core",
    "medvlp_core.api",
    "medvlp_core.display",
    "medvlp_core.errors",
    "medvlp_core.ablation.grid",
    "medvlp_core.ablation.results",
)


def modules_of(folder: str) -> list[str]:
    """Every module of a folder of the core, at any depth."""
    paths = sorted((ROOT / "medvlp_core" / folder).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def heavy_after(statements: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has imported after some statements."""
    code = f"import sys\n{statements}\nprint('HEAVY', *[name for name in {HEAVY!r} if name in sys.modules])"
    environment = {name: value for name, value in os.environ.items() if name != "MEDVLP_PLUGINS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_probe_sees_heavy_libraries() -> None:
    assert "numpy" in heavy_after("import numpy")


@pytest.mark.parametrize("folder", LIGHT_FOLDERS)
def test_every_module_of_a_light_folder_is_light(folder: str) -> None:
    modules = modules_of(folder)
    assert modules
    assert heavy_after("\n".join(f"import {module}" for module in modules)) == set()


def test_single_modules_that_are_light() -> None:
    assert heavy_after("\n".join(f"import {module}" for module in LIGHT_MODULES)) == set()


def test_what_authors_declare_with_is_light() -> None:
    names = (
        "AtLeast, ComponentSpec, Contract, Divides, Equal, KernelOp, OneOf, Problem, Role, TensorSpec, component, hookimpl, param"
    )
    assert heavy_after(f"from medvlp_core import {names}") == set()


def test_every_bundle_declares_without_torch() -> None:
    assert len(BUNDLES) >= 3
    statements = "from medvlp_core.plugins.host import load_plugins\nhost = load_plugins()\nassert not host.broken, host.broken\n"
    statements += "for name in host.components:\n    [example.calls() for example in host.components[name].examples()]"
    assert heavy_after(statements) == set()


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "bench kernels --help",
        "estimate --help",
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
