"""What a user sees and what metrics.jsonl holds."""

import io
import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console

from medvlp_core.training.events import CheckpointSaved, Event, StepDone, StepSkipped
from medvlp_core.training.metrics_file import BadStepsFile, MetricsFile, StepWindow, read_metrics
from medvlp_core.training.progress import ProgressDisplay, pace_text

TWO = ("gla.global", "report.mlm")
MPMA = ("gla.global", "gla.local", "image.reconstruction", "report.mlm")


def step(number: int, *, steps: int = 10, loss: float = 1.0, seconds: float = 0.5, names: tuple[str, ...] = TWO) -> StepDone:
    return StepDone(
        step=number,
        steps=steps,
        epoch=number // 4,
        total=2 * loss,
        losses=dict.fromkeys(names, loss),
        learning_rate=1e-3,
        grad_norm=float(number),
        pairs=8,
        seconds=seconds,
    )


def test_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(file=io.StringIO(), width=200)
    with ProgressDisplay(console, StepWindow(4)) as display:
        for number in range(1, 11):
            display(step(number))
        display(CheckpointSaved(step=10, folder=Path("runs/a[b]/step-10")))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["1/10", "4/10", "8/10", "10/10"]
    assert "gla.global 1.000" in lines[1]
    assert "16 pairs/s" in lines[1]
    assert "ETA 0:00:03" in lines[1]
    assert "losses of step 1: " in lines[0]
    assert "losses, mean of steps 2-4: " in lines[1]
    assert "checkpoint: runs/a[b]/step-10" in lines[-1]


class Screen(io.StringIO):
    """As much of a terminal as rich uses: the cursor goes up, lines are cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [""]
        self.row = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.split(r"(\x1b\[[0-9;?]*[a-zA-Z]|\n|\r)", text):
            if part == "\n":
                self.row += 1
                self.lines += [""] * (self.row == len(self.lines))
            elif part == "\x1b[1A":
                self.row -= 1
            elif part == "\x1b[2K":
                self.lines[self.row] = ""
            elif not part.startswith(("\x1b", "\r")):
                self.lines[self.row] += part
        return len(text)


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_everything_is_seen(width: int) -> None:
    screen = Screen()
    console = Console(file=screen, width=width, height=30, force_terminal=True, color_system=None, _environ={})
    with ProgressDisplay(console, StepWindow(4)) as display:
        for number in range(1, 10):
            display(step(number, names=MPMA))
            display._bar.refresh()
        bar, *losses = filter(None, screen.lines)
        assert re.fullmatch(r"step  9/10 ━{20,}[╸ ]* epoch 2  16 pairs/s  ETA 0:00:0[01]", bar)
        assert "losses, mean of steps 5-8: " in losses[0]
        shown = " ".join(losses)
        assert all(f"{name} 1.000" in shown for name in MPMA), "a loss stands on one line with its number"
        assert max(map(len, screen.lines)) <= width
        display(step(10, names=MPMA))
        display(CheckpointSaved(step=10, folder=Path("runs/a/step-10")))
    text = [line for line in screen.lines if line]
    assert text[0] == "step 10/10  epoch 2  16 pairs/s  ETA 0:00:00"
    assert text[1].startswith("losses, mean of steps 9-10: gla.global 1.000")
    assert text[-1] == "checkpoint: runs/a/step-10", "no bar stays behind"
    assert "━" not in "".join(text)


def test_the_last_state_stays_when_training_stops() -> None:
    screen = Screen()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None, _environ={})

    def train() -> None:
        with ProgressDisplay(console, StepWindow(4)) as display:
            display(step(1))
            display(step(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    lines = [line for line in screen.lines if line]
    assert lines == ["step 2/10  epoch 0  16 pairs/s  ETA 0:00:04", "losses of step 1: gla.global 1.000  report.mlm 1.000"]


def test_the_slow_first_step_does_not_spoil_the_estimate() -> None:
    assert pace_text((step(1, seconds=50.0), step(2), step(3))) == "epoch 0  16 pairs/s  ETA 0:00:04"


def test_metrics_are_written_line_by_line_and_averaged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, log_every_steps=4) as metrics:
        for number in range(1, 7):
            metrics(step(number, steps=6, loss=float(number)))
            if number == 4:
                assert len(path.read_text().splitlines()) == 2, "the file can be read during the run"
        metrics(CheckpointSaved(step=6, folder=tmp_path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 6]
    assert lines[1]["losses"] == {"gla.global": 3.0, "report.mlm": 3.0}
    assert lines[1]["total"] == 6.0
    assert lines[1]["steps_averaged"] == 3
    assert lines[1]["pairs_per_second"] == pytest.approx(16.0)
    assert lines[2]["seconds"] == pytest.approx(3.0)
    assert lines[2]["grad_norm"] == pytest.approx(5.5)


def skipped(number: int, steps: int) -> StepSkipped:
    losses = {"gla.global": float("nan"), "report.mlm": 1.0}
    return StepSkipped(step=number, steps=steps, losses=losses, grad_norm=float("inf"), records=("a", "b"))


def story(steps: int, bad: tuple[int, ...]) -> list[Event]:
    return [skipped(number, steps) if number in bad else step(number, steps=steps) for number in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("bad", "lines"),
    [
        ((), [(1, 1), (4, 3), (8, 4), (10, 2)]),
        ((4, 10), [(1, 1), (3, 2), (8, 4), (9, 1)]),
        ((1, 5, 6, 7, 8), [(4, 3), (10, 2)]),
    ],
)
def test_steps_that_were_skipped_end_lines_too(tmp_path: Path, bad: tuple[int, ...], lines: list[tuple[int, int]]) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path, log_every_steps=4) as metrics:
        for event in story(10, bad):
            metrics(event)
    assert [(line["step"], line["steps_averaged"]) for line in read_metrics(path)] == lines


@pytest.mark.parametrize("at", [1, 2, 4, 6, 9])
def test_metrics_and_display_resume_where_a_checkpoint_stood(tmp_path: Path, at: int) -> None:
    """A run is killed two steps after its checkpoint, with half a line in the file."""
    events = story(10, bad=(5, 6))
    path, bad_path = tmp_path / "metrics.jsonl", tmp_path / "bad_steps.jsonl"

    def write(events: list[Event], progress: Any, done: int) -> tuple[Any, str]:
        console = Console(file=io.StringIO(), width=200)
        bad_steps, stood = BadStepsFile(bad_path, after=done), None
        window = StepWindow.resumed(4, progress)
        with MetricsFile(path, log_every_steps=4, progress=progress) as metrics, ProgressDisplay(console, window) as display:
            for event in events:
                metrics(event)
                bad_steps(event)
                display(event)
                if event.step == at:
                    stood = json.loads(json.dumps(metrics.progress(), allow_nan=False))
        return stood, console.file.getvalue()  # type: ignore[attr-defined]

    _, shown = write(events, None, 0)
    expected = path.read_bytes(), bad_path.read_bytes()
    bad_path.unlink()
    stood, _ = write(events[: at + 2], None, 0)
    path.write_bytes(path.read_bytes() + b'{"step": 99')
    _, again = write(events[at:], stood, at)
    assert (path.read_bytes(), bad_path.read_bytes()) == expected
    steps = [re.findall(r"steps? (?:\d+-)?\d+: .*", text) for text in (shown, again)]
    assert steps[1] == steps[0][-len(steps[1]) :], "the same losses are shown"
    assert len(steps[1]) == sum(line["step"] > at for line in read_metrics(path))


def test_bad_steps_are_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "bad_steps.jsonl"
    BadStepsFile(path)(skipped(7, 10))
    assert path.read_text() == (
        '{"step": 7, "losses": {"gla.global": "nan", "report.mlm": 1.0}, "grad_norm": "inf", "records": ["a", "b"]}\n'
    )


def test_skipped_steps_are_shown() -> None:
    console = Console(file=io.StringIO(), width=200)
    with ProgressDisplay(console, StepWindow(4)) as display:
        for event in (skipped(1, 10), step(2), skipped(3, 10), attrs.evolve(step(4), bad_steps=2)):
            display(event)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "step 1 skipped: gla.global not finite; its records are in bad_steps.jsonl"
    assert re.fullmatch(r"step 4/10  epoch 1  16 pairs/s  ETA 0:00:03  2 skipped  losses, mean of steps 2-4: .*", lines[2])


def test_a_line_that_was_cut_off_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert read_metrics(tmp_path / "none.jsonl") == []
