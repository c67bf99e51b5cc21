"""Every public class and function says what it is for and has full annotations; every shipped recipe plans."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.compose import compose
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "medvlp_core").rglob("*.py"), *ROOT.glob("plugins/*/medvlp_*/**/*.py"), *ROOT.glob("examples/*.py")])
EXAMPLES = sorted((ROOT / "examples" / "configs").glob("*.yaml"))

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Public classes and functions of a module, and the methods of those classes; nested functions are private."""
    for node in body:
        is_overload = any(isinstance(one, ast.Name) and one.id == "overload" for one in getattr(node, "decorator_list", ()))
        if is_overload:  # the implementation has the docstring
            continue
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions, private and nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def bare(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Arguments without an annotation, and ``return`` if the result has none."""
    given = function.args
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    names = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
    return names + ["return"] * (function.returns is None)


def faults(text: str) -> list[str]:
    """What a module lacks."""
    tree = ast.parse(text)
    found = [] if ast.get_docstring(tree) else ["module"]
    found += [name for name, node in public(tree.body) if not ast.get_docstring(node)]
    return found + [f"{function.name}({', '.join(names)})" for function in functions(tree) if (names := bare(function))]


def test_the_check_finds_faults() -> None:
    assert faults('"""Doc."""\ndef f(a, *, b: int) -> int:\n    """Doc."""\nclass C:\n    def g(self) -> None: ...\n') == [
        "C",
        "C.g",
        "f(a)",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_documented_and_annotated(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.strip():
        assert faults(text) == []


def test_all_packages_are_looked_at() -> None:
    assert len(FILES) > 90


# ------------------------------------------------------------------------------------------------------------- public names


def only_refers(docstring: str) -> bool:
    """Whether a docstring says no more than where else to look; an example is no explanation."""
    told = re.sub(r"^Example:.*", "", inspect.cleandoc(docstring), flags=re.DOTALL | re.MULTILINE).strip()
    return "\n\n" not in told and re.search(r"\b[Ss]ee :\w+:", told) is not None


def test_a_docstring_that_only_refers_is_found() -> None:
    assert only_refers("See :func:`medvlp_core.load`.")
    assert only_refers("Train; see :func:`train`.\n\nExample:\n    >>> train()\n")
    assert not only_refers("Train; see :func:`train`.\n\nRaises:\n    ValueError: no steps.\n")


@pytest.mark.parametrize("module", ["medvlp_core", *sorted(path.parent.name for path in ROOT.glob("medvlp_core/*/__init__.py"))])
def test_the_help_of_public_names_explains_them(module: str) -> None:
    found = importlib.import_module(module if module == "medvlp_core" else f"medvlp_core.{module}")
    listed = [(name, getattr(found, name)) for name in getattr(found, "__all__", ())]
    callables = [(name, one) for name, one in listed if inspect.isfunction(one) or inspect.isclass(one)]
    assert [name for name, one in callables if not one.__doc__ or only_refers(one.__doc__)] == []


# ------------------------------------------------------------------------------------------------------------------ recipes


def test_the_examples_are_all_found() -> None:
    assert [path.stem for path in EXAMPLES] == ["captioning", "mixed_cross_attention", "mixed_m3ae_like", "mpma", "mpma_small"]


@pytest.mark.parametrize("source", [*EXAMPLES, "mpma:base", "mpma:small"], ids=lambda source: Path(source).name)
def test_every_shipped_recipe_plans_without_a_complaint(source: str | Path, host: PluginHost) -> None:
    diagnostics = Diagnostics()
    # mpma:base brings no data; mpma.yaml names a manifest by an environment variable, with a default that is not there.
    expected = {"mpma:base": ["MV105"], "mpma.yaml": ["MV511"]}.get(Path(source).name, [])
    recipe = load_recipe(source, presets=host.presets, environment={}, diagnostics=diagnostics)
    plan = compose(recipe, host, diagnostics)
    assert [problem.code for problem in diagnostics] == expected
    assert plan is not None
    assert plan.skipped == ()


def test_every_preset_is_planned(host: PluginHost) -> None:
    names = [name for name in host.presets if not name.startswith("gallery:")]  # tests/gallery plans and trains these
    assert sorted(names) == ["mpma:base", "mpma:small"]


def test_the_paper_scale_example_takes_the_manifest_from_the_environment(host: PluginHost) -> None:
    diagnostics = Diagnostics()
    path = ROOT / "examples" / "configs" / "mpma.yaml"
    recipe = load_recipe(path, presets=host.presets, environment={"MEDVLP_MANIFEST": "studies.jsonl"}, diagnostics=diagnostics)
    plan = compose(recipe, host, diagnostics)
    assert plan is not None
    assert plan.components["data"].spec.path == "studies.jsonl"  # type: ignore[attr-defined]
