"""The phases of a Trainer, one by one."""

from __future__ import annotations

import io
from pathlib import Path

import attrs
import pytest
from rich.console import Console

import medvlp_core
from medvlp_core.errors import DataError, SpecError
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.training.trainer import Trainer


@pytest.fixture
def plan(micro: str, tmp_path: Path) -> ModelPlan:
    path = tmp_path / "micro.yaml"
    path.write_text(micro + "evaluators: {probe: {use: standard.linear_probe, label: Nobody has this}}\n", encoding="utf-8")
    return medvlp_core.plan(path)


def test_start_and_build_write_nothing(plan: ModelPlan, tmp_path: Path) -> None:
    trainer = Trainer(plan, out=tmp_path / "run", device="cpu", console=Console(file=io.StringIO()))
    trainer.start()
    assert (trainer.plan, trainer.resume_point, trainer.checkpoint) == (plan, None, None)
    trainer.build()
    assert trainer.built.plan is plan
    assert [one.path for one in trainer.skipped] == ["evaluators.probe"]
    assert not (tmp_path / "run").exists()


def test_start_refuses_what_cannot_work(plan: ModelPlan, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="fp16 needs a GPU"):
        Trainer(attrs.evolve(plan, train=attrs.evolve(plan.train, precision="fp16")), device="cpu").start()
    with pytest.raises(DataError, match=r"MV508.*not empty"):
        Trainer(plan, out=tmp_path, device="cpu").start()
    with pytest.raises(DataError, match=r"MV508.*there is no run to resume"):
        Trainer.resuming(tmp_path, device="cpu").start()
