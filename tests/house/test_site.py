"""The documentation as a site: every page is in its navigation, and what only GitHub understands is rewritten."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / ".mkdocs.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    [path] = CONFIG["hooks"]
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for one in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(one)


def test_the_navigation_holds_every_page_once(hooks: ModuleType) -> None:
    docs = ROOT / CONFIG["docs_dir"]
    pages = [path.relative_to(docs).as_posix() for path in docs.rglob("*.md")]
    nav = hooks.on_config({"docs_dir": str(docs)})["nav"]
    assert Counter(leaves(nav)) == Counter(pages), "docs/README.md is the navigation: give the page a row there"
    assert nav[0] == "README.md"
    assert all(isinstance(section, dict) and len(next(iter(section.values()))) >= 1 for section in nav[1:])


@pytest.mark.parametrize(
    ("page", "text", "shown"),
    [
        ("yaml.md", "```yaml mine.yaml\nmedvlp: 1\n```", '```{.yaml title="mine.yaml"}\nmedvlp: 1\n```'),
        ("errors.md", "```text golden:mv204\nx\n```", "```text\nx\n```"),
        ("yaml.md", "```console\n$ medvlp list\n```", "```console\n$ medvlp list\n```"),
        ("yaml.md", "see [the two commands](../README.md#two-commands)", "see the two commands (`README.md`)"),
        ("yaml.md", "[`examples/acme_fusion`](../examples/acme_fusion)", "`examples/acme_fusion`"),
        ("design/0009-kernels.md", "[kernels.md](../kernels.md#paths)", "[kernels.md](../kernels.md#paths)"),
        ("design/0009-kernels.md", "[specs](../../plugins/mpma/specs.py)", "specs (`plugins/mpma/specs.py`)"),
    ],
)
def test_what_only_github_understands_is_rewritten(hooks: ModuleType, page: str, text: str, shown: str) -> None:
    assert hooks.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page))) == shown


def test_the_api_reference_has_a_page_for_every_public_folder() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")}
    index = pages.pop("README")
    modules = {stem: "medvlp_core" if stem == "medvlp_core" else f"medvlp_core.{stem}" for stem in pages}
    assert pages == {stem: f"# {module}\n\n::: {module}\n" for stem, module in modules.items()}
    assert [stem for stem, module in modules.items() if f"| [`{module}`]({stem}.md) |" not in index] == []
    lists_names = {path.parent.name for path in (ROOT / "medvlp_core").glob("*/__init__.py") if "\n__all__ = [" in path.read_text()}
    assert lists_names <= set(pages)


def test_docstrings_are_rewritten_for_the_reference() -> None:
    [path] = CONFIG["plugins"][2]["mkdocstrings"]["handlers"]["python"]["options"]["extensions"]
    text = (ROOT / path).read_text(encoding="utf-8").replace("import griffe\n", "class griffe:\n    Extension = Object = object\n")
    names: dict[str, Any] = {}
    exec(compile(text, path, "exec"), names)
    shown = names["as_markdown"]("See :func:`medvlp_core.load`::\n\n    x\n\nExample:\n    >>> 1\n    1\n")
    assert shown == "See `medvlp_core.load`:\n\n    x\n\nExamples:\n    >>> 1\n    1\n"


def test_nothing_is_fetched_from_elsewhere_and_nothing_is_left_in_the_tree() -> None:
    assert CONFIG["theme"]["font"] is False
    assert [one if isinstance(one, str) else next(iter(one)) for one in CONFIG["plugins"]] == ["offline", "search", "mkdocstrings"]
    [polyfill] = CONFIG["extra"]["polyfills"]
    assert "iframe-worker" in polyfill, "else the offline plugin adds an address of its own"
    assert (ROOT / CONFIG["docs_dir"] / polyfill).is_file()
    assert CONFIG["site_dir"].startswith("build/")
    assert "build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
