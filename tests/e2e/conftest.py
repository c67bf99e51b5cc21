"""A run of the recipe of killing.py that nothing happened to, and copies of it to resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import killing
import pytest

from medvlp_core.cli import main
from medvlp_core.training.checkpoint import list_checkpoints


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(killing.RECIPE)
    return path


@pytest.fixture(scope="session")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to. Tests read it; those that write take the copy ``run``."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["pretrain", str(recipe), "--out", str(run), "--device", "cpu"]) == 0
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it whose evaluation did not begin; the checkpoints of steps 12 and 14 are there, and maybe the best one."""
    copy = shutil.copytree(whole, tmp_path / "run")
    (copy / "evaluation.json").unlink()
    assert {"step-0000012", "step-0000014"} <= {path.name for path in list_checkpoints(copy)}
    return copy
