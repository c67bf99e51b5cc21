"""The optimiser: which parameters decay, how fast each layer learns, the learning rate of every step, the EMA of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medvlp_core.model.freezing import rule_of
from medvlp_core.spec.blocks import ParameterRule, TrainSpec
from medvlp_core.training.parallel import layers_of


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, rules: Mapping[str, ParameterRule] | None = None
) -> list[dict[str, Any]]:
    """AdamW groups: matrices that map features decay, everything else does not; early layers learn more slowly if wished.

    Decided by structure, so that a new component needs no list of names: a parameter decays if it has two or more dimensions, is
    called ``...weight`` and belongs to no embedding. Biases, norms and scales (one dimension), embeddings, positions, CLS and
    mask tokens and memory slots (bare parameters with names of their own) do not. Frozen parameters are in no group.

    ``lr_scale`` of a group is ``layer_decay ** (layers behind it)``: what an encoder has before its layers counts as the layer
    before the first; its last norm and all other parts (fusion, alignments, decoders) as behind the last. What ``rules``
    (``train.parameters``) say of a parameter's name multiplies it.

    Reference:
        Bao et al., BEiT, ICLR 2022 (layer-wise decay of the learning rate).
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    behind = _layers_behind(model) if layer_decay != 1.0 else {}
    groups: dict[tuple[bool, int, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim > 1 and name.endswith("weight") and id(parameter) not in embeddings
            scale = rule_of(name, rules or {}).lr_scale
            groups.setdefault((is_matrix, behind.get(id(parameter), 0), scale), []).append(parameter)
    order = sorted(groups, key=lambda key: (not key[0], key[1], -key[2]))
    return [
        {"params": groups[key], "weight_decay": weight_decay if key[0] else 0.0, "lr_scale": layer_decay ** key[1] * key[2]}
        for key in order
    ]


@attrs.frozen
class TimedFreeze:
    """Parameters that begin to learn later, each with the progress at which it does: ``train.parameters.NAME.freeze_until``."""

    until: tuple[tuple[nn.Parameter, float], ...]

    @classmethod
    def of(cls, model: nn.Module, rules: Mapping[str, ParameterRule]) -> TimedFreeze:
        """Those of a model (sharded, if it will be) that some rule freezes."""
        named = model.named_parameters() if any(rule.freeze_until for rule in rules.values()) else ()
        timed = ((parameter, rule_of(name, rules).freeze_until) for name, parameter in named)
        return cls(tuple((parameter, until) for parameter, until in timed if until))

    def drop_gradients(self, progress: float) -> None:
        """Before the norm is taken and the optimiser steps: it passes by what has no gradient, with its state and weight decay.

        The parameter stays in the optimiser and in DistributedDataParallel, which would not take it in later.
        """
        for parameter, until in self.until:
            if progress < until:
                parameter.grad = None


def _layers_behind(model: nn.Module) -> dict[int, int]:
    """For each parameter of an encoder how many layers stand behind it, those that follow all layers included as one."""
    found: dict[int, int] = {}
    for encoder in (getattr(model, "image_encoder", None), getattr(model, "text_encoder", None)):
        layers = layers_of(encoder) if encoder is not None else []
        if encoder is None or not layers:  # nothing to tell an early part from a late one
            continue
        numbers = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer.parameters()}
        number = -1  # of the layer that was passed last: parts are registered in the order in which they are used
        for parameter in encoder.parameters():
            is_inside = id(parameter) in numbers
            number = numbers.get(id(parameter), number)
            is_last = number == len(layers) - 1 and not is_inside
            found[id(parameter)] = 0 if is_last else len(layers) - number
    return found


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`; the loop sets the learning rate of each step."""
    groups = parameter_groups(model, spec.weight_decay, spec.layer_decay, spec.parameters)
    device = next(parameter.device for parameter in model.parameters())
    betas = (spec.betas[0], spec.betas[1])
    # The fused kernel updates all parameters in one call: several times faster for small models, on CPUs too.
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=betas, fused=device.type in ("cpu", "cuda"))


def learning_rate_at(step: int, steps: int, spec: TrainSpec) -> float:
    """Learning rate of step 0 .. ``steps`` - 1: linear up to the peak, then half a cosine towards 0, or constant.

    ``peak * (t + 1) / W`` for t < W warm-up steps, then ``peak * (1 + cos(pi * (t - W) / (T - W))) / 2``.

    Example:
        >>> spec = TrainSpec(steps=4, learning_rate=1.0, warmup_fraction=0.5)
        >>> [round(learning_rate_at(t, 4, spec), 3) for t in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = round(spec.warmup_fraction * steps)
    if step < warmup_steps:
        return spec.learning_rate * (step + 1) / warmup_steps
    if spec.schedule == "constant":
        return spec.learning_rate
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return spec.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, spec: TrainSpec) -> float:
    """Give every parameter group its learning rate of a step; that of the layers with ``lr_scale`` 1."""
    learning_rate = learning_rate_at(step, steps, spec)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]
    return learning_rate


class WeightEMA:
    """An exponential moving average (EMA) of the trained weights: ``a = decay * a + (1 - decay) * w`` after every step.

    It begins with the first weights. Buffers are not averaged. ``weights`` are by parameter name.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of one step."""
        torch._foreach_lerp_(list(self.weights.values()), list(_trained(model).values()), 1.0 - self.decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Put the EMA weights into the model and keep what it had; done twice, all is as before."""
        for name, value in _trained(model).items():
            own = value.clone()
            value.copy_(self.weights[name])
            self.weights[name].copy_(own)


def _trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
