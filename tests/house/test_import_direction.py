"""Who may import whom: the core knows no bundle, bundles do not know each other, one bundle alone knows timm and transformers."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"medvlp_core": ROOT / "medvlp_core"} | {
    path.parent.name: path.parent for path in sorted(ROOT.glob("plugins/*/*/plugin.py"))
}
FILES = [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]
#: Libraries that wrap models of others stay in one bundle.
STANDARD_ONLY = {"timm", "transformers"}


def imported(text: str) -> set[str]:
    """Top-level packages that a source file imports anywhere, type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_walk_finds_nested_imports() -> None:
    text = "import os.path\ndef f():\n    from timm.models import vit\nif x:\n    import medvlp_mpma.fusion as m\n"
    assert imported(text) == {"os", "timm", "medvlp_mpma"}


def test_all_packages_are_looked_at() -> None:
    assert {"medvlp_core", "medvlp_standard", "medvlp_mpma", "medvlp_open_cxr", "medvlp_bench"} <= set(PACKAGES)
    assert len(FILES) > 40


@pytest.mark.parametrize("package", PACKAGES)
def test_dependence_runs_one_way(package: str) -> None:
    others = set(PACKAGES) - {package, "medvlp_core"}
    wrong = {
        str(path.relative_to(ROOT)): sorted(hit)
        for owner, path in FILES
        if owner == package and (hit := imported(path.read_text(encoding="utf-8")) & others)
    }
    assert wrong == {}


def test_only_the_standard_bundle_knows_timm_and_transformers() -> None:
    users = {owner for owner, path in FILES if imported(path.read_text(encoding="utf-8")) & STANDARD_ONLY}
    assert users <= {"medvlp_standard"}


# ------------------------------------------------------------------------------------------------------------- public names

#: Modules of the core that are public besides ``medvlp_core`` and the ``__init__`` of its folders.
PUBLIC_MODULES = {
    "medvlp_core.errors",
    "medvlp_core.kernels.benchmark",
    "medvlp_core.kernels.benchmark_files",
    "medvlp_core.kernels.benchmark_report",
    "medvlp_core.kernels.machine",
    "medvlp_core.kernels.timing",
}
OUTSIDE = sorted([*ROOT.glob("plugins/**/*.py"), *ROOT.glob("examples/**/*.py")])


def core_names(text: str) -> list[tuple[str, str]]:
    """``(module, name)`` of everything that a source file takes from the core; the name is empty for a plain import."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.startswith("medvlp_core.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "medvlp_core":
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def is_public(module: str, name: str) -> bool:
    """Whether a bundle may import a name: it stands in ``__all__`` of the core or of one of its folders, or in a public module."""
    if module in PUBLIC_MODULES or f"{module}.{name}" in PUBLIC_MODULES:
        return True
    return module.count(".") <= 1 and name in getattr(importlib.import_module(module), "__all__", ())


def test_private_names_are_seen() -> None:
    assert not is_public("medvlp_core.planning.compose", "compose")
    assert not is_public("medvlp_core.nn", "_abstract")
    assert is_public("medvlp_core", "Contract")
    assert is_public("medvlp_core.kernels", "timing")


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_bundles_and_examples_import_public_names_only(path: Path) -> None:
    taken = core_names(path.read_text(encoding="utf-8"))
    assert [f"{module}.{name}" for module, name in taken if not is_public(module, name)] == []
