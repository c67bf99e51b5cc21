"""Metrics against independent references; verdicts and cards."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import roc_auc_score

from medvlp_core.evaluation import runner
from medvlp_core.evaluation.metrics import auroc, bootstrap_interval, chance_precision, precision_at_k
from medvlp_core.evaluation.protocol import Card, Row
from medvlp_core.evaluation.table import print_cards
from medvlp_core.spec.contract import Contract


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auroc_equals_sklearn_with_ties(pairs: list[tuple[bool, int]]) -> None:
    truth = np.array([one for one, _ in pairs])
    scores = np.array([float(two) for _, two in pairs])
    if truth.all() or not truth.any():
        assert np.isnan(auroc(truth, scores))
    else:
        assert auroc(truth, scores) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_precision_at_k_without_ties_equals_a_loop() -> None:
    generator = np.random.default_rng(0)
    scores, is_hit = generator.normal(size=(7, 11)), generator.random((7, 11)) < 0.4
    for k in (1, 3, 11):
        expected = []
        for row in range(7):
            order = sorted(range(11), key=lambda column: -scores[row, column])[:k]
            expected.append(sum(is_hit[row, column] for column in order) / k)
        np.testing.assert_allclose(precision_at_k(scores, is_hit, k), expected)


def test_precision_at_k_is_the_mean_over_the_orders_of_a_tie() -> None:
    generator = np.random.default_rng(1)
    scores = np.array([[2.0, 1.0, 1.0, 1.0, 0.0]])
    is_hit = np.array([[True, True, False, False, True]])
    drawn = [is_hit[0, np.lexsort((generator.random(5), -scores[0]))[:2]].mean() for _ in range(4000)]
    assert precision_at_k(scores, is_hit, 2)[0] == pytest.approx(np.mean(drawn), abs=0.02)
    # A model that scores everything the same is exactly at chance, for every K, whatever the order of the records is.
    for k in (1, 2, 9):
        np.testing.assert_allclose(precision_at_k(np.zeros((1, 5)), is_hit, k), chance_precision(is_hit))


def test_bootstrap_interval_covers_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(lambda index: float(values[index].mean()), 400) or (0, 0)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)
    assert bootstrap_interval(lambda index: float("nan"), 4) is None


def row(value: float, **changes: object) -> Row:
    return Row(metric="AUROC", value=value, count=10, baselines={"chance": 0.5}, **changes)  # type: ignore[arg-type]


def test_verdicts() -> None:
    assert row(0.8, interval=(0.6, 0.9)).verdict("chance") == "beats"
    assert row(0.8, interval=(0.4, 0.9)).verdict("chance") == "within noise"
    assert row(0.4, interval=(0.6, 0.9)).verdict("chance") == "does not beat"
    assert row(float("nan")).verdict("chance") == "does not beat"
    assert row(0.5).verdict("chance") == "does not beat", "equal is not better"
    # The paired interval decides where there is one.
    assert row(0.8, interval=(0.6, 0.9), gain_intervals={"chance": (-0.1, 0.4)}).verdict("chance") == "within noise"
    lower = row(0.3, is_higher_better=False, interval=(0.2, 0.4))
    assert lower.gain("chance") == pytest.approx(0.2)
    assert lower.verdict("chance") == "beats"
    assert row(0.3, is_higher_better=False, interval=(0.2, 0.6)).verdict("chance") == "within noise"


def test_a_card_is_strict_json() -> None:
    card = Card(evaluator="probe", rows=(row(float("nan"), interval=(0.1, float("inf"))),), pictures=("a.png",))
    document = json.loads(json.dumps(card.as_json(), allow_nan=False))
    assert document["rows"][0]["value"] is None
    assert document["rows"][0]["interval"] == [0.1, None]
    assert document["rows"][0]["verdicts"] == {"chance": "does not beat"}


def test_the_table_shows_every_baseline_and_what_is_missing() -> None:
    console = Console(file=io.StringIO(), width=160)
    good = Card(evaluator="probe", rows=(row(0.8, interval=(0.6, 0.9)),), note="ten [test] images")
    bad = Card(evaluator="zero_shot", problem="[MV503] label 'X' is unknown")
    print_cards(console, [good, bad], [("evaluators.retrieval", "needs image_embedding")], split="test")
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    for part in (
        "0.800 [0.600, 0.900]",
        "n = 10",
        "chance",
        "+0.300",
        "beats",
        "ten [test] images",
        "zero_shot: no result: [MV503]",
        "skipped evaluators.retrieval: needs image_embedding",
    ):
        assert part in text


def test_the_table_has_one_line_for_each_comparison_at_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    words = Row(
        metric="masked words: cross-entropy",
        value=2.455,
        is_higher_better=False,
        count=18039,
        resampled=226,
        interval=(2.301, 2.617),
        baselines={"wrong image": 2.4546, "most frequent word": 4.1},
        gain_intervals={"wrong image": (-0.0004, 0.013), "most frequent word": None},
    )
    probe = row(0.9, interval=(0.8, 0.95))
    card = Card(evaluator="words", rows=(words, attrs.evolve(probe, metric="linear probe AUROC: Pneumonia")))
    print_cards(console, [card], [], split="test")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    for start in (
        "masked words: cross-entropy ↓",
        "  wrong image",
        "  most frequent word",
        "linear probe AUROC: Pneumonia",
        "  chance",
    ):
        assert sum(line[1:].startswith(start) for line in lines) == 1, start
    assert next(line for line in lines if "wrong image" in line).split()[-3:] == ["does", "not", "beat"]
    assert "-0.000" not in text
    assert "↓: lower is better" in text


def test_fewer_than_ten_items_give_no_verdict() -> None:
    few = row(0.9, interval=(0.8, 0.95))
    assert attrs.evolve(few, count=9).verdict("chance") == "too few"
    assert attrs.evolve(few, count=500, resampled=9).verdict("chance") == "too few"
    assert few.verdict("chance") == "beats"


@attrs.frozen
class StandIn:
    """What the runner needs of an evaluation run."""

    plan: Any
    model: Any
    folder: Path
    split: str = "test"
    evaluator: str | None = None


def evaluator(name: str, obstacle: str | None) -> Any:
    """A stand-in component and evaluator."""
    card = Card(evaluator="", note=f"{name} ran.")
    built = SimpleNamespace(obstacle=lambda pipeline, split: obstacle, evaluate=lambda run: card)
    calls = {"forward": Contract()}  # it needs nothing of the model
    return SimpleNamespace(path=f"evaluators.{name}", name=f"standard.{name}", built=built, calls=calls)


def test_evaluators_with_an_obstacle_are_skipped_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "build_component", lambda plan, component: component.built)
    parts = {"a": evaluator("a", "no split"), "b": evaluator("b", None), "c": evaluator("c", "no split")}
    plan: Any = SimpleNamespace(evaluators=parts, skipped=())
    unable = runner.find_obstacles(plan, None, "test")  # type: ignore[arg-type]
    assert runner.by_reason(unable) == [("evaluators.a, evaluators.c", "no split")]
    model = SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None)
    run: Any = StandIn(plan, model, tmp_path)
    cards = runner.evaluate_all(run, unable, on_done=lambda card, seconds: None)
    assert [(card.evaluator, card.problem) for card in cards] == [("b", None)]
    runner.write_cards(tmp_path / "evaluation.json", run, cards, unable)
    document = json.loads((tmp_path / "evaluation.json").read_text())
    assert [(one["evaluator"], one["reason"]) for one in document["skipped"]] == [
        ("evaluators.a", "no split"),
        ("evaluators.c", "no split"),
    ]


def test_an_evaluator_that_breaks_does_not_cost_the_results_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Any) -> Card:
        raise ZeroDivisionError("no images")

    monkeypatch.setattr(runner, "build_component", lambda plan, component: component.built)
    parts = {"a": evaluator("a", None), "b": evaluator("b", None)}
    parts["a"].built.evaluate = broken
    model = SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None)
    run: Any = StandIn(SimpleNamespace(evaluators=parts, skipped=()), model, tmp_path)
    first, second = runner.evaluate_all(run, on_done=lambda card, seconds: None)
    assert re.fullmatch(r"ZeroDivisionError: no images \(test_evaluation\.py:\d+\)", first.problem or "")
    assert second.problem is None


def test_a_card_shows_every_number_with_its_verdicts() -> None:
    row = Row(metric="top <1>", value=0.46, count=1200, interval=(0.4, 0.52), baselines={"chance": 0.25, "pixels": 0.45})
    card = Card(evaluator="retrieval", rows=(row, Row(metric="loss", value=2.0, count=3)), pictures=("a.png",), note="a & b")
    assert repr(card).splitlines() == [
        "Card retrieval",
        "  top <1>   0.460 [0.400, 0.520], n = 1,200; chance 0.250: beats; pixels 0.450: within noise",
        "  loss      2.000, n = 3",
        "  pictures  a.png",
        "  note      a & b",
    ]
    html = card._repr_html_()
    assert "<th>top &lt;1&gt;</th>" in html
    assert "<td>a &amp; b</td>" in html
    assert repr(Card(evaluator="probe", problem="no labels")) == "Card probe\n  problem  no labels"
