"""The bare rival of docs/benchmarks: it computes what medvlp computes, and knows nothing of medvlp."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "benchmarks" / "bare_two_towers.py"
SHORT = ["--rounds", "1", "--steps", "3"]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bare_two_towers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_compute_the_same_and_are_timed(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(SHORT) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "images and token ids of 3 batches are equal to the last bit"
    found = re.fullmatch(r"losses of 3 steps differ by (\S+) at most", lines[1])
    assert found is not None
    assert float(found[1]) < 1e-5
    assert [line.split()[0] for line in lines[2:]] == ["medvlp", "by", "overhead:", "overhead,"]


def test_other_images_are_not_timed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "MEAN", 0.5)  # the recipe keeps the value that the script had
    assert script.main(SHORT) == 1
    assert capsys.readouterr().out == "images or token ids of 3 batches differ: nothing is timed\n"


def test_other_losses_are_not_timed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "LEARNING_RATE", 1e-3)
    assert script.main(SHORT) == 1
    assert capsys.readouterr().out.endswith("that is more than 0.0001: nothing is timed\n")


def test_the_bare_part_imports_nothing_of_medvlp() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    line = 1 + text[: text.index("- the comparison\n")].count("\n")
    body = [node for node in ast.parse(text).body if node.lineno < line and not isinstance(node, ast.If)]
    assert {"Pairs", "Collate", "TwoTowers", "train_by_hand"} <= {getattr(node, "name", "") for node in body}
    imports = [one for node in body for one in ast.walk(node) if isinstance(one, (ast.Import, ast.ImportFrom))]
    names = [getattr(one, "module", None) or one.names[0].name for one in imports]
    assert "timm" in names
    assert not [name for name in names if name.startswith("medvlp")]
