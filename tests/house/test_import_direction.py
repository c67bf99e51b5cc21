"""Who may import whom: the core knows no bundle, bundles do not know each other, one bundle alone knows timm and transformers."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from doc_examples import FENCE

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

#: The list of the core's public modules, besides ``medvlp_core`` and the ``__init__`` of its folders.
PUBLIC_MODULES = {
    "medvlp_core.kernels.benchmark",
    "medvlp_core.kernels.benchmark_files",
    "medvlp_core.kernels.benchmark_report",
    "medvlp_core.kernels.machine",
    "medvlp_core.kernels.timing",
}
OUTSIDE = sorted([*ROOT.glob("plugins/**/*.py"), *ROOT.glob("examples/**/*.py")])
#: Pages whose Python blocks are read as well.
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/*/*.md")]
)
#: What pages may take from the inside of the core, and why.
FROM_INSIDE = {
    # Its examples cause each message where it comes from; some come in the middle of a run.
    "docs/errors.md": {"medvlp_core.plugins.import_string.load_object", "medvlp_core.training.translate_errors.translate_errors"},
    # Plans a fragment of a recipe with a plug-in that is not installed.
    "docs/versioning.md": {"medvlp_core.planning.compose.compose", "medvlp_core.recipe.tree.parse_yaml"},
    # Shows how the text of one scalar is read.
    "docs/yaml.md": {"medvlp_core.recipe.tree.scalar"},
}


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_teach_public_names_only(page: Path) -> None:
    blocks = [block for language, _, block in FENCE.findall(page.read_text(encoding="utf-8")) if language == "python"]
    taken = {f"{module}.{name}" for block in blocks for module, name in core_names(block) if not is_public(module, name)}
    assert taken == FROM_INSIDE.get(str(page.relative_to(ROOT)), set())


def test_the_public_modules_are_named_where_authors_look() -> None:
    """The architecture page and the docstring of ``medvlp_core.kernels`` have the same list as this file."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [sentence] = re.findall(r"^besides the public modules (.*?)\. Everything else is private", page, re.MULTILINE | re.DOTALL)
    assert {
        name if name.startswith("medvlp_core") else f"medvlp_core.kernels{name}" for name in re.findall(r"`([\w.]+)`", sentence)
    } == (PUBLIC_MODULES)
    [sentence] = re.findall(
        r"^(.*) are public modules\.$", importlib.import_module("medvlp_core.kernels").__doc__ or "", re.MULTILINE
    )
    assert {f"medvlp_core.kernels.{name}" for name in re.findall(r"``(\w+)``", sentence)} == PUBLIC_MODULES
