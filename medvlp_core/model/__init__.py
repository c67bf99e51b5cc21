"""The composed model, how it is built from a plan, and how weights get in."""

from __future__ import annotations

from medvlp_core.model.between_steps import PartFailed
from medvlp_core.model.build import (
    BuiltRun,
    adopt_dims,
    build_component,
    build_model,
    build_pipeline,
    build_run,
    build_source,
    build_tokenizer,
    image_geometry,
    interface_of,
)
from medvlp_core.model.composed import ComposedModel
from medvlp_core.model.each import run_each
from medvlp_core.model.generation import GeneratedTexts
from medvlp_core.model.weights import Adapt, LoadedWeights, fit_weights, read_weights

__all__ = [
    "Adapt",
    "BuiltRun",
    "ComposedModel",
    "GeneratedTexts",
    "LoadedWeights",
    "PartFailed",
    "adopt_dims",
    "build_component",
    "build_model",
    "build_pipeline",
    "build_run",
    "build_source",
    "build_tokenizer",
    "fit_weights",
    "image_geometry",
    "interface_of",
    "read_weights",
    "run_each",
]
