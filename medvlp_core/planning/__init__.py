"""From a tree with positions to a checked plan. Light."""

from __future__ import annotations

from medvlp_core.planning.plan import ModelPlan, SkippedEvaluator
from medvlp_core.planning.wiring import PlannedComponent, PortKey

__all__ = [
    "ModelPlan",
    "PlannedComponent",
    "PortKey",
    "SkippedEvaluator",
]
