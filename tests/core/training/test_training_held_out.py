"""``medvlp_core.evaluate``: cards of any split, and nothing overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import medvlp_core
from medvlp_core.errors import DataError

EVALUATORS = """
evaluators:
  probe: {use: standard.linear_probe, label: Nobody has this}
  retrieval: {use: standard.retrieval, ks: [1]}
  curves: {use: standard.loss_curves}
"""


@pytest.fixture(scope="module")
def run(micro: str, save_untrained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluating")
    (folder / "micro.yaml").write_text(micro + EVALUATORS, encoding="utf-8")
    save_untrained(folder / "micro.yaml", folder / "run")
    return folder / "run"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_evaluator_gives_a_card_and_nothing_is_written(run: Path) -> None:
    before = files(run)
    cards = medvlp_core.evaluate(run, split="val", device="cpu")
    assert files(run) == before
    assert [card.evaluator for card in cards] == ["probe", "retrieval", "curves"]
    probe, retrieval, curves = cards
    assert (probe.rows, probe.problem) == ((), probe.problem)
    assert str(probe.problem).startswith("skipped: ")
    assert {row.count for row in retrieval.rows} == {len(medvlp_core.load(run, device="cpu").run.pipeline().records("val"))}
    assert curves.pictures == ()


def test_out_takes_the_numbers_and_the_pictures_once(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints/step-0000000"
    cards = medvlp_core.evaluate(checkpoint, device="cpu", out=tmp_path / "again")
    document = json.loads((tmp_path / "again/evaluation.json").read_text())
    assert document["split"] == "test", "the held-out one"
    assert [one["evaluator"] for one in document["results"]] == ["retrieval", "curves"]
    assert [one["evaluator"] for one in document["skipped"]] == ["evaluators.probe"]
    assert document["results"][0] == json.loads(json.dumps(cards[1].as_json()))
    with pytest.raises(DataError, match=r"MV508.*again: there is an evaluation already, and none is overwritten"):
        medvlp_core.evaluate(run, device="cpu", out=tmp_path / "again")


def test_a_split_that_does_not_exist_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MV503.*no split 'tset'\n.*train .*, val .*, test "):
        medvlp_core.evaluate(run, split="tset", device="cpu", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="MV507"):
        medvlp_core.evaluate(tmp_path, device="cpu")
