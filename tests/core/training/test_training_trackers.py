"""Trackers, with real TensorBoard files; the others through a stand-in."""

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medvlp_core.errors import MedvlpError
from medvlp_core.evaluation.protocol import Card, Row
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training import trackers
from medvlp_core.training.events import CheckpointSaved, Evaluated
from medvlp_core.training.trackers import RunTrackers, check_trackers

LINE = {
    "step": 2,
    "total": 3.0,
    "losses": {"gla.global": 1.5},
    "grad_norm": None,
    "statistics": {"fusion.memory.slots_in_use": 0.5},
}


def plan_with(*names: str) -> Any:
    train = TrainSpec(steps=4, trackers=names)
    return SimpleNamespace(name="toy", train=train, resolved=lambda: {"train": {"steps": 4, "epochs": None}})


def run(
    folder: Path, *, resume: Any = None, names: tuple[str, ...] = ("tensorboard",), console: Console | None = None
) -> RunTrackers:
    return RunTrackers(plan_with(*names), folder, console or Console(file=io.StringIO()), resume)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_every_line_the_validation_and_the_cards(tmp_path: Path) -> None:
    card = Card(evaluator="words", rows=(Row(metric="accuracy", value=0.25, count=8),))
    with run(tmp_path) as told:
        told.start()
        told.line(LINE)
        told(CheckpointSaved(step=2, folder=tmp_path, validation=0.75))
        told(Evaluated(card=card, seconds=1.0))
    assert scalars(tmp_path / "tensorboard") == {
        "total": [(2, 3.0)],
        "losses/gla.global": [(2, 1.5)],
        "statistics/fusion.memory.slots_in_use": [(2, 0.5)],
        "validation": [(2, 0.75)],
        "evaluation/words/accuracy": [(2, 0.25)],
    }


def test_a_resumed_run_supersedes_the_steps_that_it_takes_again(tmp_path: Path) -> None:
    for resume, lines in ((None, (1, 2, 3)), (SimpleNamespace(step=2), (3, 4))):
        with run(tmp_path, resume=resume) as told:
            told.start()
            for step in lines:
                told.line({"step": step, "total": float(10 * len(lines) + step)})
    assert scalars(tmp_path / "tensorboard")["total"] == [(1, 31.0), (2, 32.0), (3, 23.0), (4, 24.0)]


def test_nothing_stays_of_a_run_without_a_step(tmp_path: Path) -> None:
    with run(tmp_path) as told:
        told.start()
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_other_processes_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorboard").mkdir()
    monkeypatch.setattr(trackers, "is_main", lambda: False)
    with run(tmp_path) as told:
        told.start()
        told(CheckpointSaved(step=2, folder=tmp_path, validation=0.75))
    assert (tmp_path / "tensorboard").is_dir()


@attrs.define
class Breaking:
    """A tracker whose server goes away."""

    calls: int = 0

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls += 1
        raise ConnectionError("no route")

    def finish(self) -> None:
        raise AssertionError("it was skipped")


def test_a_tracker_that_breaks_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Breaking()
    monkeypatch.setattr(trackers, "start_tracker", lambda *_: one)
    console = Console(file=io.StringIO(), width=200)
    with run(tmp_path, console=console) as told:
        told.start()
        told.line(LINE)
        told.line({**LINE, "step": 4})
    assert one.calls == 1
    text = r"warning: the tracker tensorboard gets no more numbers: ConnectionError: no route .*; metrics.jsonl has them all\n"
    assert re.fullmatch(text, console.file.getvalue())  # type: ignore[attr-defined]


def test_what_cannot_start_or_is_not_installed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("not logged in")

    monkeypatch.setattr(trackers, "start_tracker", fail)
    with run(tmp_path) as told, pytest.raises(MedvlpError) as caught:
        told.start()
    assert str(caught.value.problems[0]).startswith("[MV605] train.trackers: tensorboard cannot start: RuntimeError: not logged in")
    monkeypatch.setitem(trackers.TRACKERS, "wandb", "no_such_package")
    with pytest.raises(MedvlpError) as caught:
        check_trackers(("tensorboard", "wandb"))
    assert [str(one) for one in caught.value.problems] == [
        "[MV605] train.trackers: wandb needs no_such_package, not installed here\n"
        "    hint: pip install no_such_package, or leave it away: --set 'train.trackers=[]'"
    ]
