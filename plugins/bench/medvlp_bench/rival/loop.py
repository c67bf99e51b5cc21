"""The rival of the loop: what somebody would write by hand for one recipe, over the very same modules. For ``medvlp bench train``.

The forward pass is written out as Python text, straight down, one call a line; the benchmark keeps it as ``rival.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medvlp_core.data import DataOrder, InputPipeline, Share, seed_of
from medvlp_core.describe import forward_source
from medvlp_core.nn import Batch
from medvlp_core.planning import ModelPlan, TrainSpec
from medvlp_core.runtime import autocast, to_device
from medvlp_core.training import TimedFreeze, learning_rate_at, parameter_groups, with_progress

Forward = Callable[[Batch], tuple[Tensor, list[Tensor]]]


def plain_forward(plan: ModelPlan, model: nn.Module) -> Forward:
    """The forward pass written out (``medvlp explain --code``), as a function.

    The text comes from a checked plan: calls of its own parts, nothing of the recipe.
    """
    space: dict[str, Any] = {}
    exec(compile(forward_source(plan), "rival.py", "exec"), space)

    def forward(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        loss, losses = space["forward"](model, batch)
        return loss, list(losses.values())

    return forward


@attrs.define(kw_only=True)
class PlainLoop:
    """A loop over a DataLoader: fused AdamW with the groups of the framework, its schedule, clipping, a loss now and then."""

    model: nn.Module
    forward: Forward
    pipeline: InputPipeline
    spec: TrainSpec
    order: DataOrder
    device: torch.device
    optimizer: torch.optim.AdamW = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        groups = parameter_groups(self.model, self.spec.weight_decay, self.spec.layer_decay, self.spec.parameters)
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.spec.learning_rate, betas=(self.spec.betas[0], self.spec.betas[1]), fused=fused
        )

    def run(self, steps: int, *, is_seeded: bool, on_step: Callable[[float], None]) -> list[list[float]]:
        """Train some steps from step 0 of the order. ``on_step`` gets the seconds until a step had its data.

        With ``is_seeded`` crops and masks are those of the framework, step by step, and all losses are given back; else both are
        drawn from torch's global state, as somebody would do who does not care to repeat a step.
        """
        self.model.train()
        spec, optimizer = self.spec, self.optimizer
        scaler = torch.amp.GradScaler(self.device.type, enabled=spec.precision == "fp16")
        batches = iter(self.loader(steps, is_seeded=is_seeded))
        timed_freeze = TimedFreeze.of(self.model, spec.parameters)
        sums: Tensor | None = None
        found: list[list[float]] = []
        for step in range(steps):
            if is_seeded:
                torch.manual_seed(seed_of("masks", spec.seed, step, 0))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, steps, spec) * group["lr_scale"]
            optimizer.zero_grad(set_to_none=True)
            data_seconds, numbers = 0.0, torch.zeros(len(found[0]) if found else 1, device=self.device)
            for _ in range(spec.gradient_accumulation_steps):
                before = time.perf_counter()
                batch = next(batches)
                data_seconds += time.perf_counter() - before
                with autocast(self.device, spec.precision):
                    loss, terms = self.forward(with_progress(to_device(batch, self.device), step / steps, self.device))
                share = len(batch["image"]) / spec.batch_size
                scaler.scale(loss * share).backward()
                numbers = numbers + torch.stack([loss, *terms] if is_seeded else [loss]).detach().float() * share
            timed_freeze.drop_gradients(step / steps)
            scaler.unscale_(optimizer)
            if spec.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), spec.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            sums = numbers if sums is None else sums + numbers
            if is_seeded or (step + 1) % spec.log_every_steps == 0:
                found.append(sums.tolist())
                sums = None
            on_step(data_seconds)
        return found

    def loader(self, steps: int, *, is_seeded: bool) -> DataLoader[Any]:
        """The batches of some steps, in the order of the framework."""
        draws = [
            micro_batch
            for step in range(steps)
            for micro_batch in Share(micro_batches=self.spec.gradient_accumulation_steps).of(self.order.pairs(step))
        ]
        return DataLoader(
            self.pipeline.dataset("train", is_training=True),
            batch_sampler=[[draw if is_seeded else draw.row for draw in micro_batch] for micro_batch in draws],
            collate_fn=self.pipeline.collate(),
            num_workers=self.spec.num_workers,
            pin_memory=self.device.type == "cuda",
        )
