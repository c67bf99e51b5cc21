"""What happens in a training run, as small objects without tensors: for the progress bar, the metrics file and plugins.

Plugins receive them through the hook ``medvlp_train_event(event)``. Observers must not change the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs

from medvlp_core.evaluation.protocol import Card


@attrs.frozen(kw_only=True)
class StepDone:
    """One optimiser step is done; steps and epochs count from 1.

    ``losses``: every term, unweighted; ``total``: the weighted sum that was minimised; both are means over the pairs of the step,
    of all processes. ``data_seconds``: seconds of ``seconds`` in which the loop waited for data. ``bad_steps``: steps so far that
    were skipped because something was not finite. ``statistics``: what modules report (``fusion.memory.slots_in_use``),
    mean over the processes.
    """

    step: int
    steps: int
    epoch: int
    total: float
    losses: dict[str, float]
    learning_rate: float
    grad_norm: float
    pairs: int
    seconds: float
    data_seconds: float = 0.0
    bad_steps: int = 0
    statistics: dict[str, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class StepSkipped:
    """The loss or gradient of a step was not finite: weights and optimiser are as before. ``records``: ids of its pairs."""

    step: int
    steps: int
    losses: dict[str, float]
    grad_norm: float
    records: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Stopped:
    """Training was asked to stop by a signal, and the checkpoint of its last step is written."""

    step: int
    signal: str


@attrs.frozen(kw_only=True)
class CheckpointSaved:
    """A checkpoint folder was written completely. ``validation``: the loss on the split ``val``, if the data has one."""

    step: int
    folder: Path
    validation: float | None = None


@attrs.frozen(kw_only=True)
class Evaluated:
    """One evaluator is done."""

    card: Card
    seconds: float


@attrs.frozen(kw_only=True)
class RunFinished:
    """The run folder is complete."""

    folder: Path
    seconds: float


Event = StepDone | StepSkipped | CheckpointSaved | Stopped | Evaluated | RunFinished
Observer = Callable[[Event], None]
