"""The loss on the split ``val``, by which checkpoints compete for the best one."""

from __future__ import annotations

import math

import torch
from torch.distributed.fsdp import FSDPModule

from medvlp_core.data.order import seed_of
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.evaluation.protocol import split_obstacle
from medvlp_core.runtime.device import autocast, to_device
from medvlp_core.runtime.distributed import all_gather_object, local_only, rank, world_size
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.parallel import broadcast_buffers
from medvlp_core.training.state import TrainState


@torch.no_grad()
def validation_loss(state: TrainState, pipeline: InputPipeline, spec: TrainSpec, device: torch.device) -> float | None:
    """The weighted loss, mean over the pairs, always with the same masks, of the EMA weights if there are some. None if
    there is no such split, if the loss is not finite, or without ``checkpoint_every_steps``: then nobody competes.

    Several processes share the batches; with shards, whose passes need all of them, each computes every batch.
    """
    if spec.checkpoint_every_steps is None or split_obstacle(pipeline, "val") is not None:
        return None
    model = state.model
    world = 1 if isinstance(model, FSDPModule) else world_size()
    first = rank() if world > 1 else 0
    broadcast_buffers(model)
    model.eval()
    total = count = 0.0
    pairs = max(1, spec.batch_size // (spec.gradient_accumulation_steps * world_size()))  # as many as fit in training
    with local_only(), state.ema_weights():
        for number, batch in enumerate(pipeline.loader("val", batch_size=pairs, share=(first, world))):
            torch.manual_seed(seed_of("validation", spec.seed, first + number * world))
            with autocast(device, spec.precision):
                loss = model(to_device(batch, device)).loss
            total += loss.item() * len(batch["record_index"])
            count += len(batch["record_index"])
    model.train()
    if world > 1:
        sums = all_gather_object((total, count))
        total, count = (sum(values) for values in zip(*sums, strict=True))
    return total / count if math.isfinite(total) else None
