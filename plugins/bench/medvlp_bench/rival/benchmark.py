"""Times the training loop against a loop written by hand over the same modules, after a check that both compute the same.

Both take turns in short rounds, so that a drift of the machine hits both; the overhead is the median over rounds of the ratio
within a round. The first step of a round, which starts the data loader, is not counted.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medvlp_bench.estimate.cards import card_of
from medvlp_bench.estimate.trace import CPU_ATTENTION
from medvlp_bench.rival.laps import Lap, Laps, MaskedPass, Result, Timing, take_turns
from medvlp_bench.rival.loop import PlainLoop, plain_forward
from medvlp_core import MedvlpError, Problem, Role
from medvlp_core.describe import forward_source
from medvlp_core.kernels.machine import clock_for, device_label, measure_rates
from medvlp_core.model import BuiltRun, ComposedModel
from medvlp_core.nn import Batch
from medvlp_core.planning import TrainSpec
from medvlp_core.runtime import AUTOCAST_DTYPES, autocast, to_device
from medvlp_core.training import (
    Event,
    MetricsFile,
    ProgressDisplay,
    StepDone,
    StepWindow,
    StopRequest,
    TrainState,
    buffers_kept,
    data_order,
    prepare,
    train,
)

#: Steps in which both loops must give the same losses, and by how much these may differ (products in half precision: by rounding).
CHECKED_STEPS = 3
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
#: Passes over each view from which :class:`MaskedPass` takes its medians.
MASKED_PASSES = 7


@attrs.define(kw_only=True)
class TrainBenchmark:
    """Both loops over one built model; each has its own optimiser, and both train the same weights further."""

    built: BuiltRun
    spec: TrainSpec
    device: torch.device
    state: TrainState
    rival: PlainLoop
    folder: Path
    flops_per_pair: float

    @classmethod
    def over(cls, built: BuiltRun, device: torch.device, *, steps: int, folder: Path) -> TrainBenchmark:
        """Rounds of ``steps`` steps. Without checkpoints, EMA weights and trackers, which the rival has not."""
        spec = attrs.evolve(built.plan.train, steps=steps, epochs=None, checkpoint_every_steps=None, ema_decay=None, compile=False)
        model = built.model.to(device)
        forward, order = plain_forward(built.plan, model), data_order(spec, built.pipeline)
        rival = PlainLoop(model=model, forward=forward, pipeline=built.pipeline, spec=spec, order=order, device=device)
        flops = flops_per_pair(model, first_batch(rival), spec.precision)
        prepare(model, spec)
        state = TrainState.fresh(model, spec, device)
        return cls(built=built, spec=spec, device=device, state=state, rival=rival, folder=folder, flops_per_pair=flops)

    def ours(self, observers: Sequence[Callable[[Event], None]], steps: int) -> None:
        """Some steps of the real loop, with a metrics file and a display that nobody sees."""
        spec = attrs.evolve(self.spec, steps=steps)
        self.state.step = 0
        self.state.model.train()
        with (
            MetricsFile(self.folder / "metrics.jsonl", log_every_steps=spec.log_every_steps) as metrics,
            ProgressDisplay(Console(file=io.StringIO()), StepWindow(spec.log_every_steps)) as display,
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
                save=lambda _: None,
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
        rival = self.rival.run(CHECKED_STEPS, is_seeded=True, on_step=lambda data_seconds: None)
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

    def measure(self, rounds: int, *, is_compiled: bool) -> Timing:
        """Time both (:func:`take_turns`), and what masking saves."""
        ours, rival = take_turns(rounds, lambda: self._lap(is_ours=True), lambda: self._lap(is_ours=False))
        masked = masked_pass(self.built.model, first_batch(self.rival), self.spec)
        pairs = self.spec.batch_size
        return Timing(is_compiled=is_compiled, pairs_per_step=pairs, ours=ours, rival=rival, masked_pass=masked)

    def _lap(self, *, is_ours: bool) -> Lap:
        laps = Laps(self.device)
        assert self.spec.steps is not None
        if is_ours:
            self.ours([laps], self.spec.steps)
        else:
            self.rival.run(self.spec.steps, is_seeded=False, on_step=laps.end_step)
        return laps.lap()


def first_batch(rival: PlainLoop) -> Batch:
    """Of the first step."""
    return to_device(next(iter(rival.loader(1, is_seeded=True))), rival.device)


def flops_per_pair(model: ComposedModel, batch: Batch, precision: str) -> float:
    """Operations of a forward and backward pass a pair, by torch's formulas. Leaves weights, gradients and buffers alone.

    To be counted before :func:`~medvlp_core.training.prepare`: a forward pass that is computed again is of no use to
    the model.
    """
    model.train()
    torch.manual_seed(0)  # masks decide how many words are scored
    with buffers_kept(model), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        with autocast(batch["image"].device, precision):
            loss = model(batch).loss
        loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(batch["image"])


def masked_pass(model: ComposedModel, batch: Batch, spec: TrainSpec) -> MaskedPass | None:
    """Time the image encoder with and without a mask of the recipe, in turn; None if the recipe encodes no masked image.

    Leaves weights, gradients and buffers alone.
    """
    encoder: Any = model.image_encoder
    clock = clock_for(batch["image"].device)
    encodings = [call for call in model.plan.calls if call.path == Role.IMAGE_ENCODER.info.slot]
    masks = [key for call in encodings for argument, key in call.takes if argument == "image_is_masked"]
    if not masks:
        return None

    def encode(mask: Tensor | None) -> Tensor:
        with autocast(batch["image"].device, spec.precision):
            return encoder(image=batch["image"], image_is_masked=mask).image_tokens

    def time_pass(mask: Tensor | None, gradient: Tensor) -> Callable[[], float]:
        encoder.zero_grad(set_to_none=True)
        return clock.time(lambda: encode(mask).backward(gradient))[1]

    with buffers_kept(model):
        with torch.no_grad(), autocast(batch["image"].device, spec.precision):
            is_masked = model.train()(batch).ports[str(masks[0])]
        views = [(mask, torch.randn_like(encode(mask))) for mask in (is_masked, None)]
        readers = [[time_pass(*view) for view in views] for _ in range(MASKED_PASSES)]
    clock.finish()
    encoder.zero_grad(set_to_none=True)
    masked, whole = (
        spec.gradient_accumulation_steps * statistics.median(read() for read in column) for column in zip(*readers, strict=True)
    )
    masked_share, drops = is_masked.float().mean().item(), views[0][1].shape != views[1][1].shape
    return MaskedPass(masked_share=masked_share, drops_masked=drops, seconds=masked, seconds_unmasked=whole)


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
        timings = []
        for is_compiled in [False, True] if device.type == "cuda" else [built.plan.train.compile]:
            if is_compiled:
                prepare(built.model, attrs.evolve(benchmark.spec, activation_checkpointing=False, compile=True))  # no way back
            timings.append(benchmark.measure(rounds, is_compiled=is_compiled))
    return Result(
        timings=tuple(timings),
        flops_per_pair=benchmark.flops_per_pair,
        matmul_flops=measure_rates(device, dtype).flops,
        data_sheet_flops=data_sheet_flops(device_label(device), precision),
        difference=difference,
        rival_source=forward_source(built.plan),
    )
