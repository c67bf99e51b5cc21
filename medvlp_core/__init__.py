"""medvlp: modular medical vision-language pre-training. Importing this package does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medvlp_core.loading import TrainedModel

__version__ = "0.1.0"


def load(run: str | Path, *, device: str | None = None, batch_size: int = 64) -> TrainedModel:
    """Load a trained model for use, from a run folder or a checkpoint's folder. Needs no training data.

    ``device``: a torch device; None = the GPU if there is one. Imports torch.

    Raises:
        DataError: a file is missing or damaged (MV507).
        SpecError: the recipe cannot be planned here, for instance because a bundle is not installed.

    Example:
        >>> model = load("runs/mpma_small-20260101-120000")  # doctest: +SKIP
        >>> model.embed_image("film.png") @ model.embed_text(["Pneumonia."]).T  # doctest: +SKIP
    """
    from medvlp_core import loading

    return loading.load(run, device=device, batch_size=batch_size)
