"""The import graph of the core is free of circles, between files and between folders; folders stand above one another.

Two files have one name only where both mean the same. Imports for type checking count; imports inside functions do not:
they happen when the function runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "medvlp_core"


def name_of(path: Path) -> str:
    """``medvlp_core.planning.plan`` of its file, ``medvlp_core.planning`` of an ``__init__.py``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(CORE.rglob("*.py"))}


def top_level(tree: ast.AST) -> Iterator[ast.stmt]:
    """All statements that are run when the module is imported, or read by a type checker: everything outside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from top_level(node)


def imports(module: str, text: str) -> set[str]:
    """The modules of the core that a module's text imports at its top level."""
    found = set()
    for node in top_level(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found - {module}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan 1972), smallest names first."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


FILES = {module: imports(module, path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def folder_of(module: str) -> str:
    """``planning`` of ``medvlp_core.planning.plan``; a file beside the folders stands for itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    text = "import medvlp_core.errors\nif X:\n    from medvlp_core.spec import roles\ndef f():\n    import medvlp_core.api\n"
    assert imports("x", text) == {"medvlp_core.errors", "medvlp_core.spec.roles"}


def test_files_have_no_circles() -> None:
    # The package itself names everything for type checkers and imports nothing: it is the only file that all others may name.
    graph = {module: set(others) - {"medvlp_core"} for module, others in FILES.items() if module != "medvlp_core"}
    assert circles(graph) == []


def test_folders_have_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for module, others in FILES.items():
        if module != "medvlp_core":
            graph.setdefault(folder_of(module), set()).update(folder_of(other) for other in others if other != "medvlp_core")
    graph = {folder: others - {folder} for folder, others in graph.items()}
    assert circles(graph) == []


@pytest.mark.parametrize("folder", ["spec", "recipe", "planning", "nn", "runtime"])
def test_what_stands_below_does_not_name_what_stands_above(folder: str) -> None:
    above = {"cli", "training", "evaluation", "ablation", "export", "testing", "scaffold", "data"}
    wrong = {
        module: sorted(hit)
        for module, others in FILES.items()
        if folder_of(module) == folder and (hit := {other for other in others if folder_of(other) in above})
    }
    assert wrong == {}


#: Names that two files of the core share, and why both may have them.
SHARED_NAMES = {
    "diff": "recipe/ says where two trees differ, and cli/ is the command of that name that prints it",
    "fields": "spec/ has what a field is, and data/ reads, cuts and stacks its values",
    "host": "spec/ has the protocol of the plugin host, and plugins/ the class that implements it",
    "runner": "both run what their folder is about, one after the other: evaluators and conformance checks",
    "tokenizer": "data/ has the interface, and the stub components of the conformance kit one that implements it",
}


def test_two_files_of_one_name_mean_the_same() -> None:
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        if path.name != "__init__.py":
            found.setdefault(path.stem, []).append(module)
    shared = {name: modules for name, modules in found.items() if len(modules) > 1}
    assert sorted(shared) == sorted(SHARED_NAMES), shared
