"""Times the training loop against a loop written by hand over the same modules, after a check that both compute the same.

Both take turns in short rounds, so that a drift of the machine hits both; the overhead is the median over rounds of the ratio
within a round. The first step of a round, which starts the data loader, is not counted.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from medvlp_core.blocks import TrainSpec
from medvlp_core.build import BuiltRun
from medvlp_core.data.order import DataOrder
from medvlp_core.device import AUTOCAST_DTYPES, autocast, to_device
from medvlp_core.errors import MedvlpError, Problem
from medvlp_core.estimate.cards import card_of
from medvlp_core.kernels.machine import device_label, measure_rates
from medvlp_core.train.events import Event, StepDone
from medvlp_core.train.layers import prepare
from medvlp_core.train.loop import data_order, train
from medvlp_core.train.metrics_file import MetricsFile, StepWindow
from medvlp_core.train.plain import PlainLoop, forward_source, plain_forward
from medvlp_core.train.progress import ProgressDisplay
from medvlp_core.train.state import TrainState
from medvlp_core.train.stop import StopRequest

#: Steps in which both loops must give the same losses, and by how much these may differ (products in half precision: by rounding).
CHECKED_STEPS = 3
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


@attrs.frozen(kw_only=True)
class Lap:
    """A round of one loop: counted steps, seconds on the wall and of this process's CPU time, seconds of waiting for data."""

    steps: int
    seconds: float
    cpu_seconds: float
    waiting: float


@attrs.frozen(kw_only=True)
class Overhead:
    """By how much the loop is slower than the rival, as a share; ``low`` to ``high``: at least a 95 % interval of the median.

    Example:
        >>> Overhead.of([2.0, 2.0, 2.0], [1.0, 2.0, 4.0])
        Overhead(median=0.0, low=-0.5, high=1.0)
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Overhead:
        """From rounds side by side. The interval lies between two order statistics; with few rounds it is the whole range."""
        shares = sorted(one / other - 1.0 for one, other in zip(ours, theirs, strict=True))
        count = len(shares)
        outside, tail = 0, 0.5**count
        while outside < (count - 1) // 2 and tail + math.comb(count, outside + 1) * 0.5**count <= 0.025:
            outside += 1
            tail += math.comb(count, outside) * 0.5**count
        middle = (shares[(count - 1) // 2] + shares[count // 2]) / 2
        return cls(median=middle, low=shares[outside], high=shares[count - 1 - outside])


@attrs.frozen(kw_only=True)
class Timing:
    """Both loops in one setting (compiled or not), round by round."""

    is_compiled: bool
    pairs_per_step: int
    ours: tuple[Lap, ...]
    rival: tuple[Lap, ...]

    @property
    def overhead(self) -> Overhead:
        """Of the time on the wall."""
        return Overhead.of([lap.seconds for lap in self.ours], [lap.seconds for lap in self.rival])

    @property
    def cpu_overhead(self) -> Overhead:
        """Of the CPU time: other programs on the machine disturb it less."""
        return Overhead.of([lap.cpu_seconds for lap in self.ours], [lap.cpu_seconds for lap in self.rival])

    def speeds(self, laps: Sequence[Lap]) -> list[float]:
        """Pairs a second of each round, slowest first."""
        return sorted(self.pairs_per_step * lap.steps / lap.seconds for lap in laps)


@attrs.frozen(kw_only=True)
class Result:
    """The timings, operations of the model a pair, those of the device a second, and by how much the losses differed."""

    timings: tuple[Timing, ...]
    flops_per_pair: float
    matmul_flops: float
    data_sheet_flops: float | None
    difference: float
    rival_source: str


class _Laps:
    """Marks the ends of steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[float, float]] = []
        self._waiting: list[float] = []

    def end_step(self, waiting: float) -> None:
        """A step is done."""
        if self._device.type == "cuda" and not self._marks:
            torch.cuda.synchronize(self._device)
        self._marks.append((time.perf_counter(), time.process_time()))
        self._waiting.append(waiting)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            self.end_step(event.waiting)

    def lap(self) -> Lap:
        """All steps but the first."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        (start, cpu_start), (end, cpu_end) = self._marks[0], (time.perf_counter(), time.process_time())
        waiting = sum(self._waiting[1:])
        return Lap(steps=len(self._marks) - 1, seconds=end - start, cpu_seconds=cpu_end - cpu_start, waiting=waiting)


@attrs.define(kw_only=True)
class TrainBenchmark:
    """Both loops over one built model; each has its own optimiser, and both go on with the same weights."""

    built: BuiltRun
    spec: TrainSpec
    device: torch.device
    state: TrainState
    rival: PlainLoop
    folder: Path

    @classmethod
    def over(cls, built: BuiltRun, device: torch.device, *, steps: int, folder: Path) -> TrainBenchmark:
        """Rounds of ``steps`` steps. Without checkpoints, averaged weights and trackers, which the rival has not."""
        spec = attrs.evolve(built.plan.train, steps=steps, epochs=None, checkpoint_every_steps=None, ema_decay=None, compile=False)
        model = built.model.to(device)
        prepare(model, spec)
        order: DataOrder = data_order(spec, built.pipeline)
        forward = plain_forward(built.plan, model)
        rival = PlainLoop(model=model, forward=forward, pipeline=built.pipeline, spec=spec, order=order, device=device)
        return cls(built=built, spec=spec, device=device, state=TrainState.fresh(model, spec, device), rival=rival, folder=folder)

    def ours(self, observers: Sequence[Callable[[Event], None]], steps: int) -> None:
        """Some steps of the real loop, with a metrics file and a display that nobody sees."""
        spec = attrs.evolve(self.spec, steps=steps)
        self.state.step = 0
        self.state.model.train()
        every = spec.log_every_steps
        with (
            MetricsFile(self.folder / "metrics.jsonl", log_every_steps=every) as metrics,
            ProgressDisplay(Console(file=io.StringIO()), StepWindow(every)) as display,
        ):
            everybody: tuple[Callable[[Event], None], ...] = (metrics, display, *observers)

            def notify(event: Event) -> None:
                for observer in everybody:
                    observer(event)

            train(
                self.state,
                self.built.pipeline,
                spec,
                forward=self.state.model,
                device=self.device,
                notify=notify,
                save=lambda: None,
                stop=StopRequest(),
            )

    def check(self) -> float:
        """The largest relative difference between the losses of both, over some steps from equal weights.

        Raises:
            MedvlpError: it is too large: the rival does not compute the same (MV601).
        """
        before = {name: value.clone() for name, value in self.state.model.state_dict().items()}
        events: list[Any] = []
        self.ours([events.append], CHECKED_STEPS)
        self.state.model.load_state_dict(before)
        rival = self.rival.run(CHECKED_STEPS, is_seeded=True, on_step=lambda waiting: None)
        self.state.model.load_state_dict(before)
        ours = [[event.total, *event.losses.values()] for event in events if isinstance(event, StepDone)]
        details, worst = [], 0.0
        for step, (one, other) in enumerate(zip(ours, rival, strict=True), start=1):
            for name, left, right in zip(("total", *events[0].losses), one, other, strict=True):
                difference = abs(left - right) / max(abs(left), 1e-6)
                worst = max(worst, difference)
                if not difference <= TOLERANCE[self.spec.precision]:
                    details.append(f"step {step}: {name} is {left:.6g} in the loop and {right:.6g} in the rival")
        if details:
            text = "nothing is timed: the loop and its rival give different losses"
            raise MedvlpError(Problem(code="MV601", text=text, details=tuple(details[:6]), hint="rival.py shows what it computes"))
        return worst

    def compile(self) -> None:
        """Compile the layers, for both loops; there is no way back."""
        prepare(self.state.model, attrs.evolve(self.spec, recompute=False, compile=True))

    def measure(self, rounds: int, *, is_compiled: bool) -> Timing:
        """Time both in turn, after a round of each that does not count; who begins changes from round to round."""
        pairs = list(self._rounds(rounds))
        size = self.spec.batch_size
        ours, rival = zip(*pairs, strict=True)
        return Timing(is_compiled=is_compiled, pairs_per_step=size, ours=ours, rival=rival)

    def _rounds(self, rounds: int) -> Iterator[tuple[Lap, Lap]]:
        for number in range(rounds + 1):
            found = {is_ours: self._lap(is_ours) for is_ours in ((True, False) if number % 2 == 0 else (False, True))}
            if number > 0:
                yield found[True], found[False]

    def _lap(self, is_ours: bool) -> Lap:
        laps = _Laps(self.device)
        assert self.spec.steps is not None
        if is_ours:
            self.ours([laps], self.spec.steps)
        else:
            self.rival.run(self.spec.steps, is_seeded=False, on_step=laps.end_step)
        return laps.lap()

    def flops_per_pair(self) -> float:
        """Operations of a forward and backward pass a pair, counted by torch. Leaves weights and gradients as they were."""
        model = self.state.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        batch = to_device(next(iter(self.rival.loader(1, is_seeded=True))), self.device)
        with FlopCounterMode(display=False) as counter, autocast(self.device, self.spec.precision):
            model(batch).loss.backward()
        model.zero_grad(set_to_none=True)
        model.load_state_dict(before)
        return counter.get_total_flops() / len(batch.image)


def data_sheet_flops(device_name: str, precision: str) -> float | None:
    """Operations a second that the maker promises, in half precision; None for other devices and for fp32."""
    card = card_of(device_name)
    return card.half if card is not None and precision != "fp32" else None


def run_benchmark(built: BuiltRun, device: torch.device, *, steps: int, rounds: int, say: Callable[[str], None]) -> Result:
    """Check, then measure: on a GPU without and with compile, on a CPU as the recipe says.

    Raises:
        MedvlpError: the rival does not compute the same (MV601).
    """
    precision = built.plan.train.precision
    dtype = AUTOCAST_DTYPES.get(precision, torch.float32)
    with TemporaryDirectory() as folder:
        benchmark = TrainBenchmark.over(built, device, steps=steps, folder=Path(folder))
        difference = benchmark.check()
        say(f"losses of {CHECKED_STEPS} steps differ by {difference:.1e} at most")
        flops = benchmark.flops_per_pair()
        timings = []
        for is_compiled in [False, True] if device.type == "cuda" else [built.plan.train.compile]:
            if is_compiled:
                benchmark.compile()
            timings.append(benchmark.measure(rounds, is_compiled=is_compiled))
    return Result(
        timings=tuple(timings),
        flops_per_pair=flops,
        matmul_flops=measure_rates(device, dtype).flops,
        data_sheet_flops=data_sheet_flops(device_label(device), precision),
        difference=difference,
        rival_source=forward_source(built.plan),
    )
