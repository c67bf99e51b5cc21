"""What a user sees while a run trains: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from medvlp_core.train.events import CheckpointSaved, Evaluated, Event, StepDone

WINDOW = 30  # steps that throughput and shown losses are averaged over


class ProgressDisplay:
    """An observer that shows losses, pairs per second and the time left. Use it as a context manager.

    Example:
        >>> with ProgressDisplay(Console(), log_every_steps=10) as display:  # doctest: +SKIP
        ...     train(model, pipeline, spec, device=device, notify=display, save=save)
    """

    def __init__(self, console: Console, *, log_every_steps: int) -> None:
        self.console = console
        self.log_every_steps = log_every_steps
        self._recent: deque[StepDone] = deque(maxlen=WINDOW)
        self._bar = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, CheckpointSaved):
            self.console.print(f"checkpoint: {event.folder}", style="dim", markup=False, soft_wrap=True)
        elif isinstance(event, Evaluated):
            self.console.print(f"evaluated {event.card.evaluator} in {event.seconds:.1f} s", style="dim", markup=False)

    def _step(self, event: StepDone) -> None:
        self._recent.append(event)
        text = summary(tuple(self._recent))
        if self.console.is_terminal:
            if self._task is None:
                self._task = self._bar.add_task("", total=event.steps)
            self._bar.update(self._task, completed=event.step, description=text)
        elif event.step == 1 or event.step % self.log_every_steps == 0 or event.step == event.steps:
            self.console.print(f"step {event.step}/{event.steps}  {text}", markup=False, soft_wrap=True)


def summary(recent: tuple[StepDone, ...]) -> str:
    """Losses and throughput averaged over ``recent`` steps, and the time left at that pace."""
    last = recent[-1]
    # The first step pays for memory and compilation; it would spoil every estimate that contains it.
    timed = [event for event in recent if event.step > 1] or list(recent)
    seconds = sum(event.seconds for event in timed)
    left = timedelta(seconds=round((last.steps - last.step) * seconds / len(timed)))
    losses = "  ".join(f"{name} {sum(event.losses[name] for event in recent) / len(recent):.3f}" for name in last.losses)
    pace = sum(event.pairs for event in timed) / max(seconds, 1e-9)
    return f"epoch {last.epoch}  {losses}  {pace:.0f} pairs/s  ETA {left}"
