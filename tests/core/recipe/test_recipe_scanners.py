"""Texts read by libyaml and by PyYAML's own scanner: the same tree, the same places, the same messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medvlp_core.errors import Diagnostics
from medvlp_core.recipe import tree
from medvlp_core.recipe.tree import Node, dump_yaml, parse_yaml

ROOT = Path(__file__).parents[3]
#: A landing is judged by cases that are the same each time; by hand new ones are drawn.
IS_CI = bool(os.environ.get("CI"))
FILES = sorted(path for folder in ("plugins", "examples", "tests") for path in (ROOT / folder).rglob("*.yaml"))

#: What recipes are made of, and what breaks them. The second part holds what the two scanners read otherwise.
PIECES = ["a", "b: ", "- ", "  ", "\n", "\n  ", "\n    ", "{", "}", "[", "]", ", ", ",", ": ", ":", "'", '"', " #", "#", "|\n  "]
PIECES += [">-\n  ", "&x ", "*x", "@", "é", "😀", "\\n", "1e-4", "<<", "~", "${a.b}", "x y", "--- ", "...", "''", "[a: 1]"]
PIECES += ["x" * 1030]  # longer than a key may be
ODD = ["\t", "\r", "\r\n", "\x85", "\u2028", "\ufeff", "?", "? ", "!", "!!str ", "!a ", "%YAML 1.1\n", "%", "|#", ">+2#", "\x07"]

texts = st.lists(st.sampled_from(PIECES) | st.sampled_from(PIECES + ODD), max_size=14).map("".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
data = st.recursive(
    scalars | st.sampled_from(["on", "a: b", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab_<~1", min_size=1, max_size=5), inner, max_size=4),
    max_leaves=15,
)


def everything(node: Node | None) -> Any:
    """Values with their types and places."""
    if node is None:
        return None
    value: Any = node.value
    if isinstance(value, dict):
        value = [(key, everything(child)) for key, child in value.items()]
    elif isinstance(value, list):
        value = [everything(child) for child in value]
    return type(node.value), repr(value) if isinstance(value, float) else value, node.position, node.key_position


def read(text: str) -> tuple[Any, list[str]]:
    diagnostics = Diagnostics()
    node = parse_yaml(text, file="a.yaml", diagnostics=diagnostics)
    return everything(node), [str(one) for one in diagnostics]


def check_alike(text: str) -> None:
    usual = read(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "_LIBYAML", None)
        assert read(text) == usual


pytestmark = pytest.mark.skipif(tree._LIBYAML is None, reason="PyYAML is installed without libyaml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_read_alike(path: Path) -> None:
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    check_alike(text)
    check_alike(text[: len(text) // 2])


@settings(deadline=None, max_examples=400, derandomize=IS_CI)
@given(texts)
@example("heads: \nb: {c: , d}")
@example("a: \ud800")
@example("a: \0")
@example("'\n    !<\n\t? ")
@example("!@!?a")
@example("a: {b?: c}")
@example("${a.b}b: *x")
def test_any_text_is_read_alike(text: str) -> None:
    check_alike(text)


@settings(deadline=None, max_examples=60)
@given(data)
def test_written_data_is_read_alike(value: Any) -> None:
    check_alike(dump_yaml({"key": value}))


PRESETS = [path for path in FILES if "presets" in path.parts]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: str(path.relative_to(ROOT)))
def test_presets_are_read_by_libyaml(path: Path) -> None:
    """Else they would take ten times as long, and nothing would say so."""
    assert tree._events_of_libyaml(path.read_text("utf-8")) is not None
