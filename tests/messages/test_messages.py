"""Broken recipes and the exact text that a user sees: ``cases/NAME.yaml`` beside ``cases/NAME.txt``.

A case may name overrides in comments (``# --set a.b=1``). ``MEDVLP_WRITE_MESSAGES=1`` writes the texts anew; read them then.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import toy_bundle

from medvlp_core.errors import CODES, Diagnostics
from medvlp_core.planning.compose import compose
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import load_recipe, parse_override

CASES = Path(__file__).parent / "cases"
NAMES = sorted(path.stem for path in CASES.glob("*.yaml"))

#: Codes that a recipe can cause without torch; the others have tests where they arise.
RECIPE_CODES = {code for code in CODES if code < "MV206"} | {"MV207", "MV208", "MV209", "MV212", "MV211", "MV511"}


def message(name: str) -> str:
    """What ``medvlp check cases/NAME.yaml`` says, run from the folder of the cases."""
    diagnostics = Diagnostics()
    host = PluginHost.from_modules({"toy": toy_bundle})
    assert not host.broken
    lines = Path(f"{name}.yaml").read_bytes().decode("utf-8", errors="replace").splitlines()
    typed = [line.removeprefix("# --").partition(" ") for line in lines if line.startswith("# --")]
    parsed = [parse_override(kind, text, diagnostics) for kind, _, text in typed]  # type: ignore[arg-type]
    overrides = [override for override in parsed if override is not None]
    recipe = load_recipe(f"{name}.yaml", presets=host.presets, overrides=overrides, environment={}, diagnostics=diagnostics)
    compose(recipe, host, diagnostics)
    return "".join(f"{problem}\n" for problem in diagnostics)


@pytest.mark.parametrize("name", NAMES)
def test_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    found = message(name)
    expected = CASES / f"{name}.txt"
    if os.environ.get("MEDVLP_WRITE_MESSAGES"):
        expected.write_text(found, encoding="utf-8")
    assert found == expected.read_text(encoding="utf-8")


def test_every_code_of_a_recipe_has_a_case() -> None:
    texts = "".join((CASES / f"{name}.txt").read_text(encoding="utf-8") for name in NAMES)
    assert {code for code in RECIPE_CODES if f"[{code}]" not in texts} == set()


def test_every_text_belongs_to_a_case() -> None:
    assert {path.stem for path in CASES.glob("*.txt")} == set(NAMES)


def test_ten_mistakes_are_ten_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    heads = [line for line in message("ten_mistakes").splitlines() if not line.startswith(" ")]
    assert len(heads) == 10
    assert all(line.startswith("ten_mistakes.yaml:") for line in heads)
    assert len({line.partition("[")[2][:5] for line in heads}) == 10


def test_the_base_is_right() -> None:
    diagnostics = Diagnostics()
    host = PluginHost.from_modules({"toy": toy_bundle})
    assert compose(load_recipe("toy:base", presets=host.presets, diagnostics=diagnostics), host, diagnostics) is not None
    assert not diagnostics.problems
