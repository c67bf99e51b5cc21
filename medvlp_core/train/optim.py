"""The optimiser: which parameters decay, and the learning rate of every step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from medvlp_core.blocks import TrainSpec


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two AdamW groups: matrices that map features decay, everything else does not.

    Decided by structure, so that a new component needs no list of names: a parameter decays if it has two or more dimensions, is
    called ``...weight`` and belongs to no embedding. Biases, norms and scales (one dimension), embeddings, positions, CLS and
    mask tokens and memory slots (bare parameters with names of their own) do not. Frozen parameters are in neither group.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim > 1 and name.endswith("weight") and id(parameter) not in embeddings
        (decayed if is_matrix else kept).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`; the loop sets the learning rate of each step."""
    groups = parameter_groups(model, spec.weight_decay)
    device = next(parameter.device for parameter in model.parameters())
    betas = (spec.betas[0], spec.betas[1])
    # The fused kernel updates all parameters in one call: several times faster for small models, on CPUs too.
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=betas, fused=device.type in ("cpu", "cuda"))


def learning_rate_at(step: int, steps: int, *, peak: float, warmup_fraction: float) -> float:
    """Learning rate of step 0 .. ``steps`` - 1: linear up to ``peak``, then half a cosine towards 0.

    ``peak * (t + 1) / W`` for t < W warm-up steps, then ``peak * (1 + cos(pi * (t - W) / (T - W))) / 2``.

    Example:
        >>> [round(learning_rate_at(t, 4, peak=1.0, warmup_fraction=0.5), 3) for t in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = round(warmup_fraction * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
