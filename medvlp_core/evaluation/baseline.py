"""Fair baselines: an untrained model whose batch norms know the data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn.batch import Batch


@torch.no_grad()
def calibrate(model: ComposedModel, batches: Iterable[Batch], device: torch.device) -> ComposedModel:
    """Set the running statistics of all batch norms from one pass over whole images; returns the model in evaluation mode.

    Fresh batch norms assume mean 0 and variance 1, which makes random features worse than they are and a comparison with
    trained ones too kind. Weights are not touched. A model without batch norms, or without an image encoder, is left as it is.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    if norms and model.image_encoder is not None:
        model.train()
        for batch in batches:
            model.encode_image(batch["image"].to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
