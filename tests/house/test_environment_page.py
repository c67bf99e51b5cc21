"""docs/environment.md names every environment variable that the source reads or sets, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "environment.md"
FOLDERS = ("medvlp_core", "plugins", "examples")
#: A name in capitals that is a constant of a plug-in's module, not a variable.
NO_VARIABLE = {"MEDVLP_INTERFACE"}
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]+")


def is_environ(node: ast.AST) -> bool:
    """Whether an expression is ``os.environ``."""
    return isinstance(node, ast.Attribute) and node.attr == "environ"


def keys(node: ast.AST) -> list[ast.expr]:
    """The keys under which a node reads, sets or looks for a variable."""
    if isinstance(node, ast.Subscript) and is_environ(node.value):
        return [node.slice]
    if isinstance(node, ast.Compare) and any(is_environ(one) for one in node.comparators):
        return [node.left]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr == "getenv" or (is_environ(node.func.value) and node.func.attr in ("get", "setdefault", "pop")):
            return node.args[:1]
        if node.func.attr == "dict" and node.args and is_environ(node.args[0]):  # mock.patch.dict(os.environ, {...})
            return [key for one in node.args[1:] if isinstance(one, ast.Dict) for key in one.keys if key is not None]
    if isinstance(node, ast.Dict) and any(
        key is None and is_environ(value) for key, value in zip(node.keys, node.values, strict=True)
    ):
        return [key for key in node.keys if key is not None]
    return []


def names_in(text: str) -> set[str]:
    """The variables that a source file reads or sets.

    A key that is a name stands for the module's constant of that name, else for every text in capitals of the function.
    """
    if not re.search(r"environ|getenv", text):
        return set()
    tree = ast.parse(text)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {name for scope in scopes(tree) for name in names_of_scope(scope, constants)}


def scopes(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and all its functions."""
    yield tree
    yield from (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def names_of_scope(scope: ast.AST, constants: dict[str, str]) -> set[str]:
    found = set()
    for node in ast.walk(scope):
        for key in keys(node):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                found.add(key.value)
            elif isinstance(key, ast.Name) and key.id in constants:
                found.add(constants[key.id])
            elif isinstance(scope, ast.FunctionDef):
                texts = {one.value for one in ast.walk(scope) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
                found |= {text for text in texts if VARIABLE.fullmatch(text)}
    return found


def sources(*folders: str) -> list[Path]:
    """Text files of some folders of the repository."""
    kinds = {".py", ".md", ".yaml", ".toml", ".tmpl", ""}
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.is_file() and path.suffix in kinds]


def on_the_page() -> list[str]:
    """The names in the first column of its tables."""
    rows = re.findall(r"^\| (`.*?`) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_every_way_to_a_variable_is_seen() -> None:
    text = """
import os
ALLOW = "FROM_CONSTANT"
os.environ["INDEXED"]
os.getenv("GOT")
def f():
    "IN_FOX" in os.environ
    os.environ.get(ALLOW)
    environment = {**os.environ, "MERGED": "1"}
def g():
    for name in ("LOOPED_A", "LOOPED_B"):
        os.environ.get(name, "no")
"""
    expected = {"FROM_CONSTANT", "INDEXED", "GOT", "IN_FOX", "MERGED", "LOOPED_A", "LOOPED_B"}
    assert names_in(text) == expected


def test_every_variable_of_the_source_is_on_the_page() -> None:
    used = {name for path in sources(*FOLDERS) if path.suffix == ".py" for name in names_in(path.read_text(encoding="utf-8"))}
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in sources(*FOLDERS, "tests", ".ci")]
    ours = {name for text in texts for name in re.findall(r"\bMEDVLP_[A-Z_]+\b", text)}
    assert {"MEDVLP_PLUGINS", "WORLD_SIZE", "NO_COLOR", "HF_HOME"} <= used
    assert sorted((used | ours) - NO_VARIABLE - set(on_the_page())) == []


def test_every_variable_of_the_page_is_in_the_source() -> None:
    texts = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in sources(*FOLDERS, "tests", ".ci"))
    assert [name for name in on_the_page() if not re.search(rf"\b{name}\b", texts)] == []
    assert len(set(on_the_page())) == len(on_the_page())
