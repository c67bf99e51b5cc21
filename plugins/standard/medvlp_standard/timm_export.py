"""Encoders as checkpoints of timm: ``timm.create_model(name, checkpoint_path=..., **arguments)`` gives the same features."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medvlp_core import Problem, SpecError

WEIGHTS, ARGUMENTS = "model.safetensors", "timm.json"


def export_timm(
    folder: Path,
    *,
    model: str,
    arguments: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    image_shape: tuple[int, int, int],
    features: Callable[[Tensor], Tensor],
    theirs: Callable[[nn.Module, Tensor], Tensor],
    usage: str,
) -> str:
    """Write weights and arguments, then load them with timm and compare the features of a random image.

    ``features`` are ours of an image, ``theirs`` the same of timm's model; ``usage`` is the line that computes them.

    Raises:
        SpecError: timm refuses the file, or its features differ (MV510).
    """
    save_file({name: value.detach().contiguous().cpu() for name, value in weights.items()}, folder / WEIGHTS)
    (folder / ARGUMENTS).write_text(json.dumps({"model_name": model, **arguments}, indent=2) + "\n", encoding="utf-8")
    image = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            loaded = timm.create_model(model, checkpoint_path=str(folder / WEIGHTS), **arguments).eval()
            found = theirs(loaded, image)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            text = f"timm {timm.__version__} does not take {model} back: {type(error).__name__}: {str(error).splitlines()[0]}"
            raise SpecError(Problem(code="MV510", text=text, hint="export to safetensors instead")) from error
        wanted = features(image)
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-5, atol=1e-5):
        text = f"timm's {model} gives other features from the exported weights"
        raise SpecError(Problem(code="MV510", text=text, hint="export to safetensors instead"))
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return (
        f'import timm\n\nmodel = timm.create_model(\n    "{model}", checkpoint_path="{WEIGHTS}",\n    {given}\n).eval()\n'
        f"features = {usage}"
    )
