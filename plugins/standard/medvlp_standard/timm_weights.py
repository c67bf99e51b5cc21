"""Fills a timm model from a checkpoint of the same model: every tensor, or an error."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from medvlp_core import Problem, SpecError
from medvlp_core.model import Adapt, LoadedWeights, fit_weights, read_weights


def load_weights(module: nn.Module, path: str | Path, *, who: str, adapt: Adapt | None = None) -> LoadedWeights:
    """Fill every parameter and buffer of ``module`` from a checkpoint.

    Raises:
        SpecError: the file cannot be read, or a tensor is missing or has another shape, with the names (MV507).
    """
    own = module.state_dict()
    values, loaded = fit_weights(own, read_weights(path), adapt=adapt)
    missing, misfits = loaded.missing, loaded.misfits
    if missing or misfits:
        details = tuple(f"missing: {key}" for key in missing[:5]) + tuple(f"shape of {text}" for text in misfits[:5])
        text = f"{who}: {path!s} does not fit: {len(missing)} of {len(own)} tensors are missing, {len(misfits)} have another shape"
        hint = "the checkpoint must come from the same timm model, with the same width, depth and patch_size"
        raise SpecError(Problem(code="MV507", text=text, details=details, hint=hint))
    module.load_state_dict(values, strict=False)
    return loaded
