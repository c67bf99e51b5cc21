"""From a tree with positions to a checked plan. Light."""

from __future__ import annotations

from medvlp_core.planning.plan import ModelPlan, SkippedEvaluator
from medvlp_core.planning.wiring import Call, PlannedComponent, PortKey
from medvlp_core.spec.blocks import TrainSpec

__all__ = [
    "Call",
    "ModelPlan",
    "PlannedComponent",
    "PortKey",
    "SkippedEvaluator",
    "TrainSpec",
]
