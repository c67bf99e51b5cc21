"""What an evaluator is, receives and returns: the run to look at, and a card of rows, each beside its baselines."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch

from medvlp_core.display import Displayed, DisplayRow
from medvlp_core.errors import DataError, Problem, SpecError
from medvlp_core.planning.wiring import PortKey
from medvlp_core.spec.contract import CLEAN, Dims

if TYPE_CHECKING:
    from medvlp_core.data.pipeline import InputPipeline
    from medvlp_core.model.composed import ComposedModel
    from medvlp_core.planning.plan import ModelPlan
    from medvlp_core.planning.wiring import PlannedComponent

#: The held-out split is the first of these that the data has.
HELD_OUT = ("test", "val")
#: With fewer items an interval says little, and a verdict nothing.
LEAST_ITEMS = 10

Interval = tuple[float, float]
Verdict = Literal["beats", "within noise", "does not beat", "too few"]


@attrs.frozen(kw_only=True)
class Row:
    """One measured number beside its trivial baselines.

    ``count``: items behind the number. ``interval``: its 95 % interval. ``gain_intervals``: 95 % intervals of the *improvement*
    over a baseline that was measured on the same items; far narrower than comparing two separate intervals. ``resampled``: how
    many independent items the intervals draw from, where they are fewer than ``count`` (the reports of masked words).
    """

    metric: str
    value: float
    is_higher_better: bool = True
    count: int
    resampled: int | None = None
    interval: Interval | None = None
    baselines: dict[str, float] = attrs.field(factory=dict)
    gain_intervals: dict[str, Interval | None] = attrs.field(factory=dict)
    note: str | None = None

    def gain(self, baseline: str) -> float:
        """By how much the value is better than a baseline; negative = worse."""
        difference = self.value - self.baselines[baseline]
        return difference if self.is_higher_better else -difference

    def verdict(self, baseline: str) -> Verdict:
        """``beats`` only if the interval clears the baseline too; ``within noise`` if it is better but not clearly.

        ``too few``: fewer than ten items stand behind the number.
        """
        if (self.count if self.resampled is None else self.resampled) < LEAST_ITEMS:
            return "too few"
        gain = self.gain(baseline)
        if not gain > 0:  # also for NaN
            return "does not beat"
        if (gains := self.gain_intervals.get(baseline)) is not None:
            return "beats" if gains[0] > 0 else "within noise"
        if self.interval is not None:
            low, high = self.interval
            is_clear = low > self.baselines[baseline] if self.is_higher_better else high < self.baselines[baseline]
            return "beats" if is_clear else "within noise"
        return "beats"

    def as_text(self) -> str:
        """In one line: ``0.461 [0.400, 0.520], n = 120; chance 0.250: beats``."""
        interval = f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]" if self.interval is not None else ""
        baselines = (f"{name} {value:.3f}: {self.verdict(name)}" for name, value in self.baselines.items())
        return "; ".join([f"{self.value:.3f}{interval}, n = {self.count:,}", *baselines])


@attrs.frozen(kw_only=True, repr=False)
class Card(Displayed):
    """The result of one evaluator. ``pictures``: file names in the pictures folder; ``problem``: why there is no result."""

    evaluator: str
    rows: tuple[Row, ...] = ()
    pictures: tuple[str, ...] = ()
    note: str | None = None
    problem: str | None = None

    def display(self) -> tuple[str, list[DisplayRow]]:
        """Every number with its 95 % interval and its verdict on each baseline; then the pictures, the note, the problem."""
        rows = [(row.metric, row.as_text()) for row in self.rows]
        if self.pictures:
            rows.append(("pictures", ", ".join(self.pictures)))
        rows += [(name, text) for name, text in (("note", self.note), ("problem", self.problem)) if text]
        return f"Card {self.evaluator}", rows

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, with the verdict of every comparison; numbers that are not finite become null."""
        card = attrs.asdict(self)
        for row, plain in zip(self.rows, card["rows"], strict=True):
            plain["verdicts"] = {name: row.verdict(name) for name in row.baselines}
        content: dict[str, Any] = _finite(card)
        return content


def held_out_split(pipeline: InputPipeline) -> str:
    """``test``, else ``val``; ``test`` too if the data has neither, which :func:`split_obstacle` then says."""
    return next((split for split in HELD_OUT if split in pipeline.source.splits()), HELD_OUT[0])


def split_obstacle(pipeline: InputPipeline, split: str) -> str | None:
    """Why there is no image-text pair in ``split``; None if there is one. For :meth:`Evaluator.obstacle`."""
    try:
        pipeline.records(split)
    except DataError as error:
        existing = pipeline.source.splits()
        if split in HELD_OUT and not set(HELD_OUT) & set(existing):
            return f"the data has no held-out split ({' or '.join(HELD_OUT)}), only {', '.join(existing)}"
        return reason_of(error)
    return None


def reason_of(error: DataError) -> str:
    """The first problem of an error, with its hint, in one line."""
    problem = error.problems[0]
    return f"{problem.text}; {problem.hint}" if problem.hint else problem.text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@attrs.frozen(kw_only=True)
class EvaluationRun:
    """A trained model with all that an evaluator needs to look at it.

    ``model`` is on ``device`` and in evaluation mode. ``folder`` takes pictures; ``history`` holds the lines of metrics.jsonl, if
    there are any; ``fresh_model`` gives the same model with new random weights (a baseline), on ``device``; all evaluators get
    the same one, so they must leave it as it was, too. ``evaluator`` is the path of the one that this run is for.
    """

    model: ComposedModel
    plan: ModelPlan
    pipeline: InputPipeline
    device: torch.device
    seed: int
    folder: Path
    split: str
    fresh_model: Callable[[], ComposedModel]
    evaluator: str | None = None
    history: tuple[dict[str, Any], ...] = ()

    def key(self, port: str) -> PortKey:
        """The port of this model that the evaluator's need ``port`` means, maybe re-pointed by its block's ``needs:``.

        Raises:
            SpecError: no component gives it (MV201), or several do (MV209).
        """
        wiring = self.plan.wiring
        component = self.plan.components.get(self.evaluator or "")
        need = component.calls["forward"].needs.get(port) if component is not None else None
        found = wiring.source(component, port, need, CLEAN) if component is not None and need is not None else wiring.resolve(port)
        if isinstance(found, PortKey):
            return found
        text = f"no component of this model gives the port {port}"
        if found.candidates:
            raise SpecError(Problem(code="MV209", text=f"several components give {port}: {', '.join(found.candidates)}"))
        raise SpecError(Problem(code="MV201", text=text))

    def provider(self, port: str) -> PlannedComponent:
        """The component that gives ``port``, e.g. the report decoder for ``word_logits``.

        Raises:
            SpecError: no component gives it (MV201).
        """
        return self.plan.components[self.plan.wiring.provider(self.key(port)).path]

    def port_dims(self, port: str) -> tuple[int, ...]:
        """The solved dimensions of a port, e.g. rows and columns of ``image_grid``.

        Raises:
            SpecError: no component gives it (MV201), or a dimension is not known (MV206).
        """
        dims = self.plan.wiring.sizes(self.key(port))
        if None in dims:
            provider = self.plan.wiring.provider(self.key(port))
            text = f"{provider.path}: the dimensions of {port} ({provider.spec}) are not all known"
            raise SpecError(Problem(code="MV206", text=text))
        return tuple(dim for dim in dims if dim is not None)


class Evaluator(ABC):
    """A held-out check with its trivial baselines, or a set of pictures."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None: ...

    @abstractmethod
    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """Why this evaluator cannot work on this data (no such split, a label that nobody has); None if it can.

        Asked before the first training step, with the split that it will look at. Must not read images.
        """

    @abstractmethod
    def evaluate(self, run: EvaluationRun) -> Card:
        """Evaluate the model of ``run``. Must leave the model, its mode and torch's random state as they were."""
