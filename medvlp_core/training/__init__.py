"""Training, and what a loop of one's own needs: order of the data, optimiser groups, learning rates, observers, run folders."""

from __future__ import annotations

from medvlp_core.training.events import CheckpointSaved, Evaluated, Event, Observer, RunFinished, StepDone, StepSkipped, Stopped
from medvlp_core.training.local_step import with_progress
from medvlp_core.training.loop import count_steps, data_order, train
from medvlp_core.training.metrics_file import MetricsFile, StepWindow
from medvlp_core.training.optim import TimedFreeze, learning_rate_at, parameter_groups
from medvlp_core.training.parallel import buffers_kept, layers_of, prepare
from medvlp_core.training.progress import ProgressDisplay
from medvlp_core.training.run_folder import check_run_folder, make_run_folder
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest

__all__ = [
    "CheckpointSaved",
    "Evaluated",
    "Event",
    "MetricsFile",
    "Observer",
    "ProgressDisplay",
    "RunFinished",
    "StepDone",
    "StepSkipped",
    "StepWindow",
    "StopRequest",
    "Stopped",
    "TimedFreeze",
    "TrainState",
    "buffers_kept",
    "check_run_folder",
    "count_steps",
    "data_order",
    "layers_of",
    "learning_rate_at",
    "make_run_folder",
    "parameter_groups",
    "prepare",
    "train",
    "with_progress",
]
