"""What a user sees while a run trains: a bar and the losses on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import textwrap
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from medvlp_core.training.events import CheckpointSaved, Evaluated, Event, StepDone, StepSkipped, Stopped
from medvlp_core.training.metrics_file import StepWindow, mean_losses

WINDOW = 30  # steps that throughput and the time left are averaged over


class TwoPartBar(Progress):
    """A bar over the whole width, and below it as many lines of text as are needed."""

    losses = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the losses."""
        yield self.make_tasks_table(self.tasks)
        if self.losses:
            yield Text(wrap_losses(self.losses, self.console.width))


class ProgressDisplay:
    """An observer that shows the step, pairs per second, the time left and the losses. Use it as a context manager.

    The losses are those of the newest line of ``metrics.jsonl``: means over the steps since the line before. On a terminal the bar
    gives way to its last state in plain text as soon as the last step is done, or training stops.

    Example:
        >>> with ProgressDisplay(Console(), StepWindow(every=10)) as display:  # doctest: +SKIP
        ...     train(state, pipeline, spec, ..., notify=display)
    """

    def __init__(self, console: Console, window: StepWindow) -> None:
        self.console = console
        self._window = window
        self._recent: deque[StepDone] = deque(maxlen=WINDOW)
        self._bar = TwoPartBar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
            expand=True,
            transient=True,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finish()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, StepSkipped):
            bad = " and ".join(name for name, value in event.losses.items() if not math.isfinite(value)) or "the gradient"
            text = f"step {event.step} skipped: {bad} not finite; its records are in bad_steps.jsonl"
            self.console.print(text, style="yellow", markup=False, soft_wrap=True)
            self._step(event)
        elif isinstance(event, Stopped):
            text = f"stopped by {event.signal} after step {event.step}"
            self.console.print(text, style="yellow", markup=False, soft_wrap=True)
        elif isinstance(event, CheckpointSaved):
            loss = "" if event.validation is None else f", loss on val {event.validation:.4f}"
            self.console.print(f"checkpoint: {event.folder}{loss}", style="dim", markup=False, soft_wrap=True)
        elif isinstance(event, Evaluated):
            self.console.print(f"evaluated {event.card.evaluator} in {event.seconds:.1f} s", style="dim", markup=False)

    def _step(self, event: StepDone | StepSkipped) -> None:
        if isinstance(event, StepDone):
            self._recent.append(event)
        steps = self._window.add(event)
        if steps:
            self._bar.losses = losses_text(steps)
        if self.console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task("", total=event.steps)
            self._bar.update(self._task, completed=event.step, description=pace_text(self._recent) if self._recent else "")
            if event.step == event.steps:
                self._finish()
        elif steps:
            pace = pace_text(self._recent or steps)  # a resumed run may begin with a skipped step
            text = f"step {steps[-1].step}/{event.steps}  {pace}  {self._bar.losses}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _finish(self) -> None:
        """Take the bar away and leave its last state as text, once."""
        self._bar.stop()
        if self._task is None or not self._recent:
            return
        self._task = None
        last = self._recent[-1]
        self.console.print(f"step {last.step}/{last.steps}  {pace_text(self._recent)}", markup=False, highlight=False)
        text = wrap_losses(self._bar.losses, self.console.width)
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def pace_text(recent: Sequence[StepDone]) -> str:
    """Epoch, throughput over ``recent`` steps, the time left at that pace, and how many steps were skipped, if any."""
    last = recent[-1]
    # The first step pays for memory and compilation; it would spoil every estimate that contains it.
    timed = [event for event in recent if event.step > 1] or list(recent)
    seconds = sum(event.seconds for event in timed)
    left = timedelta(seconds=round((last.steps - last.step) * seconds / len(timed)))
    pace = sum(event.pairs for event in timed) / max(seconds, 1e-9)
    bad = f"  {last.bad_steps} skipped" if last.bad_steps else ""
    return f"epoch {last.epoch}  {pace:.0f} pairs/s  ETA {left}{bad}"


def losses_text(steps: Sequence[StepDone]) -> str:
    """``losses, mean of steps 11-20: gla.global 1.234  report.mlm 5.678``."""
    first, last = steps[0].step, steps[-1].step
    head = f"losses, mean of steps {first}-{last}: " if len(steps) > 1 else f"losses of step {last}: "
    return head + "  ".join(f"{name} {value:.3f}" for name, value in mean_losses(steps).items())


def wrap_losses(text: str, width: int) -> str:
    """:func:`losses_text` in lines that fit; a loss stays together with its number."""
    head, _, losses = text.partition(": ")
    glued = "  ".join(one.replace(" ", "\xa0") for one in losses.split("  "))
    wrapper = textwrap.TextWrapper(max(width - 1, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(f"{head}: {glued}").replace("\xa0", " ")
