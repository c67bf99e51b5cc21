"""The events of a run, for plug-ins and trackers that watch it."""

from __future__ import annotations

from medvlp_core.training.events import CheckpointSaved, Evaluated, Event, Observer, RunFinished, StepDone, StepSkipped, Stopped

__all__ = [
    "CheckpointSaved",
    "Evaluated",
    "Event",
    "Observer",
    "RunFinished",
    "StepDone",
    "StepSkipped",
    "Stopped",
]
