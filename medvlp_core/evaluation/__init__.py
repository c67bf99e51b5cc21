"""What an evaluator is and returns, and the metrics with their intervals."""

from __future__ import annotations

from medvlp_core.evaluation.metrics import (
    BoolArray,
    FloatArray,
    IndexArray,
    auroc,
    bootstrap_interval,
    chance_precision,
    precision_at_k,
)
from medvlp_core.evaluation.prompts import class_vectors
from medvlp_core.evaluation.protocol import (
    Card,
    EvaluationRun,
    Evaluator,
    Interval,
    Row,
    Verdict,
    held_out_split,
    reason_of,
    split_obstacle,
)

__all__ = [
    "BoolArray",
    "Card",
    "EvaluationRun",
    "Evaluator",
    "FloatArray",
    "IndexArray",
    "Interval",
    "Row",
    "Verdict",
    "auroc",
    "bootstrap_interval",
    "chance_precision",
    "class_vectors",
    "held_out_split",
    "precision_at_k",
    "reason_of",
    "split_obstacle",
]
