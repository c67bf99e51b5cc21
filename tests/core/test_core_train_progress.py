"""What a user sees and what metrics.jsonl holds."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from medvlp_core.train.events import CheckpointSaved, StepDone
from medvlp_core.train.metrics_file import MetricsFile, read_metrics
from medvlp_core.train.progress import ProgressDisplay, summary


def step(number: int, *, steps: int = 10, loss: float = 1.0, seconds: float = 0.5) -> StepDone:
    return StepDone(
        step=number,
        steps=steps,
        epoch=number // 4,
        total=2 * loss,
        losses={"gla.global": loss, "report.mlm": loss / 2},
        learning_rate=1e-3,
        grad_norm=float(number),
        pairs=8,
        seconds=seconds,
    )


def test_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=200)
    with ProgressDisplay(console, log_every_steps=4) as display:
        for number in range(1, 11):
            display(step(number))
        display(CheckpointSaved(step=10, folder=Path("runs/a[b]/step-10")))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["1/10", "4/10", "8/10", "10/10"]
    assert "gla.global 1.000" in lines[1]
    assert "16 pairs/s" in lines[1]
    assert "ETA 0:00:03" in lines[1]
    assert "checkpoint: runs/a[b]/step-10" in lines[-1]


def test_a_bar_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True)
    with ProgressDisplay(console, log_every_steps=4) as display:
        for number in range(1, 11):
            display(step(number))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "10/10" in text
    assert "pairs/s" in text
    assert "step 4/10" not in text


def test_the_slow_first_step_does_not_spoil_the_estimate() -> None:
    text = summary((step(1, seconds=50.0), step(2), step(3)))
    assert "16 pairs/s" in text
    assert "ETA 0:00:04" in text


def test_metrics_are_written_line_by_line_and_averaged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, log_every_steps=4) as metrics:
        for number in range(1, 7):
            metrics(step(number, steps=6, loss=float(number)))
            if number == 4:
                assert len(path.read_text().splitlines()) == 2, "the file can be read while the run goes on"
        metrics(CheckpointSaved(step=6, folder=tmp_path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 6]
    assert lines[1]["losses"] == {"gla.global": 3.0, "report.mlm": 1.5}
    assert lines[1]["total"] == 6.0
    assert lines[1]["steps_averaged"] == 3
    assert lines[1]["pairs_per_second"] == pytest.approx(16.0)
    assert lines[2]["seconds"] == pytest.approx(3.0)
    assert lines[2]["grad_norm"] == pytest.approx(5.5)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert read_metrics(tmp_path / "none.jsonl") == []
