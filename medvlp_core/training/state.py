"""All that a training run is between two steps: weights, optimiser, loss scale, EMA, and how far it got.

Random states are not part of it: every step seeds anew (medvlp_core.data.order), so a step is a function of this state alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from medvlp_core.model.composed import ComposedModel
from medvlp_core.runtime.distributed import is_main
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.optim import WeightEMA, make_optimizer


@attrs.define(kw_only=True)
class TrainState:
    """``step`` optimiser steps are done, ``bad_steps`` of them were skipped. ``model`` is not wrapped."""

    model: ComposedModel
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    ema: WeightEMA | None = None
    step: int = 0
    bad_steps: int = 0
    _buffers: list[Tensor] = attrs.field(factory=list, init=False)

    @classmethod
    def fresh(cls, model: ComposedModel, spec: TrainSpec, device: torch.device) -> TrainState:
        """The state before the first step, of a model that is on its device (and sharded, if it will be)."""
        return cls(
            model=model,
            optimizer=make_optimizer(model, spec),
            # fp16 gradients underflow without a loss scale; otherwise the scaler does nothing.
            scaler=torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16"),
            ema=WeightEMA(model, spec.ema_decay) if spec.ema_decay is not None else None,
        )

    def scalars(self) -> dict[str, Any]:
        """What is not a tensor, as plain JSON."""
        return {"step": self.step, "bad_steps": self.bad_steps, "scaler": self.scaler.state_dict()}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimiser's tensors, each as ``PARAMETER/KEY`` (``fusion.norm.weight/exp_avg``); shards if the model is sharded."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return {
            f"{names[id(parameter)]}/{key}": value
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the model has the EMA weights, if the run keeps some."""
        if self.ema is not None:
            self.ema.swap(self.model)
        try:
            yield
        finally:
            if isinstance(self.model, FSDPModule):
                self.model.reshard()  # which a pass without a backward pass does not do
            if self.ema is not None:
                self.ema.swap(self.model)

    def save_buffers(self) -> None:
        """Remember the model's buffers: a forward pass changes the statistics of batch norms."""
        self._buffers = [buffer.clone() for buffer in self.model.buffers()]

    def restore_buffers(self) -> None:
        """Put back what :meth:`save_buffers` remembered."""
        for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Take what :meth:`scalars` gave."""
        self.step, self.bad_steps = int(scalars["step"]), int(scalars["bad_steps"])
        if scalars["scaler"]:
            self.scaler.load_state_dict(scalars["scaler"])

    def load_optimizer_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take what :meth:`optimizer_tensors` gave. A parameter that got no gradient yet has no state."""
        parameters = dict(self.model.named_parameters())
        found: dict[str, dict[str, Tensor]] = {}
        for path, value in tensors.items():
            name, _, key = path.rpartition("/")
            found.setdefault(name, {})[key] = value
        for name, state in found.items():
            parameter = parameters[name]
            self.optimizer.state[parameter] = {
                # AdamW counts its steps in a tensor of its own, of one number; the fused kernel wants it where the weights are.
                key: value.to(parameter.device, copy=True) if key == "step" else like(parameter, value)
                for key, value in state.items()
            }


def gather_to_main(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the memory of the main process, with all their shards; empty in the others. Every process must ask.

    One after the other: a GPU never holds more than one of them whole.
    """
    found = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if is_main():
            found[name] = tensor.cpu().contiguous()
    return found


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` on the device of a parameter, and in shards if the parameter is."""
    moved = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(moved, parameter.device_mesh, parameter.placements)
    return moved.clone()
