"""The layers of a model: what is compiled, recomputed or sharded one by one. And the model as several processes train it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn.batch import Batch
from medvlp_core.runtime.device import autocast, to_device
from medvlp_core.runtime.distributed import world_size
from medvlp_core.spec.blocks import TrainSpec


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The outermost repeated layers below a module, in order: items of one class in a ModuleList or Sequential.

    Example:
        >>> encoder = nn.Sequential(nn.Linear(2, 2), nn.ModuleList(nn.TransformerEncoderLayer(4, 1) for _ in range(3)))
        >>> [type(layer).__name__ for layer in layers_of(encoder)]
        ['TransformerEncoderLayer', 'TransformerEncoderLayer', 'TransformerEncoderLayer']
    """
    return list(_layers(module))


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    if isinstance(module, (nn.ModuleList, nn.Sequential)) and children and _are_layers(children):
        yield from children
        return
    for child in children:
        yield from _layers(child)


def _are_layers(children: list[nn.Module]) -> bool:
    """Of one class, each with parts of its own: no plain Linear, norm or container."""
    first = children[0]
    plain = (nn.ModuleList, nn.Sequential, nn.ModuleDict, nn.ParameterList)
    return all(
        type(child) is type(first) and not isinstance(child, plain) and any(True for _ in child.children()) for child in children
    ) and any(True for _ in first.parameters())


def prepare(model: nn.Module, spec: TrainSpec) -> None:
    """Let the layers of a model recompute their activations and be compiled, as the recipe says. Names of weights stay."""
    for layer in layers_of(model):
        if spec.activation_checkpointing:
            # Batch norms must not count a pass twice. Others need no context, with which the compiler could do less.
            context = (
                {"context_fn": lambda layer=layer: (nullcontext(), buffers_kept(layer))}
                if any(True for _ in layer.buffers())
                else {}
            )
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False, **context)
        if spec.compile:
            layer.compile()


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards all buffers, such as the statistics of batch norms, are as before."""
    before = [buffer.clone() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), before, strict=True):
                buffer.copy_(value)


def for_processes(model: nn.Module, spec: TrainSpec, device: torch.device, world: int) -> nn.Module:
    """The model as its forward is called in training: itself, or wrapped for several processes.

    With ``parallel: fsdp`` its parameters become shards in place, layer by layer.
    """
    if world == 1:
        return model
    if spec.parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in layers_of(model):
            fully_shard(layer)
        # DistributedDataParallel does this by itself.
        model.register_forward_pre_hook(lambda module, arguments: broadcast_buffers(module))
        # Losses are sums of views; nobody changes them in place.
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
        fully_shard(model)  # in place
        return model
    if names := alike_buffers(model):
        # a private name of torch, and the only way to tell it
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(names))
    # Gradients of CLS tokens are slices of others; that costs nothing worth a warning from each process.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


def sync_gradients(forward: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """The backward pass of a micro-batch: gradients are summed up first and exchanged between processes once, with the last one."""
    no_sync: Any = getattr(forward, "no_sync", None)
    return nullcontext() if is_last or no_sync is None else no_sync()


def warm_up_ddp_buckets(forward: nn.Module, batches: Iterable[Batch], device: torch.device, precision: str) -> None:
    """Let DistributedDataParallel order its buckets before the first step, from a pass over the first of ``batches``.

    Nobody uses the gradients of that pass. The buckets are ordered once, after the first backward pass, and the order decides how
    sums over three or more processes are rounded: a resumed run would have the first order where the run that was never stopped
    has the second.
    """
    if not isinstance(forward, DistributedDataParallel):
        return
    torch.manual_seed(0)
    batch = next(iter(batches))
    with buffers_kept(forward):
        with autocast(device, precision):
            loss = forward(to_device(batch, device)).loss
        loss.backward()


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the main one, which a checkpoint would hold; but for those that are alike anyway."""
    if world_size() > 1:
        alike = alike_buffers(model)
        for name, buffer in model.named_buffers():
            if name not in alike:
                dist.broadcast(buffer, src=0)


def alike_buffers(model: nn.Module) -> tuple[str, ...]:
    """Names of buffers that all processes compute alike after a step: nobody sends them in every pass, for queues are large."""
    return model.buffers_after_step() if isinstance(model, ComposedModel) else ()
