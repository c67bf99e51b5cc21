"""Who may import whom: the core knows no bundle, bundles do not know each other, one bundle alone knows timm and transformers."""

from __future__ import annotations

import ast
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
