"""What happens in a training run, as small objects without tensors: for the progress bar, the metrics file and plugins.

Plugins receive them through the hook ``medvlp_train_event(event)``. Observers must not change the model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs

from medvlp_core.evaluate.protocol import Card


@attrs.frozen(kw_only=True)
class StepDone:
    """One optimiser step is done; steps and epochs count from 1.

    ``losses``: every term, unweighted; ``total``: the weighted sum that was minimised.
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


@attrs.frozen(kw_only=True)
class CheckpointSaved:
    """A checkpoint folder was written completely."""

    step: int
    folder: Path


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


Event = StepDone | CheckpointSaved | Evaluated | RunFinished
Observer = Callable[[Event], None]
