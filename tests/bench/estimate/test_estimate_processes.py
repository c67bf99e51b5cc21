"""An estimate for several GPUs, against FSDP's own step and against a count by hand."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from medvlp_bench.estimate.cards import CARDS
from medvlp_bench.estimate.compare import allocated
from medvlp_bench.estimate.cost import memory_of, seconds_of
from medvlp_bench.estimate.fake import fake_model
from medvlp_bench.estimate.step import build_for_estimate, count_parts, follow, full_batch
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import medvlp_core
from medvlp_core.errors import Diagnostics
from medvlp_core.recipe.load import parse_override
from medvlp_core.runtime import distributed
from medvlp_core.training.parallel import for_processes


class Sent(TorchDispatchMode):
    """Adds up the largest tensor of each exchange: what is gathered, what is scattered."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.bytes += max(one.numel() * one.element_size() for one in tree_leaves(args) if isinstance(one, Tensor))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_real_fsdp_step_sends_and_holds_what_is_estimated(is_frozen: bool) -> None:
    """Of 4 processes, three of which never answer: numbers are wrong, bytes are not."""
    small = medvlp_core.plan("mpma:small")
    gpus, spec = 4, attrs.evolve(small.train, parallel="fsdp", precision="fp32", batch_size=16)
    model, copy = build_for_estimate(small), build_for_estimate(small)
    if is_frozen:
        for one in (model, copy):
            one.get_submodule("text_encoder").requires_grad_(False)
    parts, trace = count_parts(model), follow(fake_model(copy), spec, 4, is_gpu=False)
    estimated = memory_of(parts, trace, spec, gpus, CARDS["h100"])
    shards = sum(group.parameters for group in (*parts.layers, parts.rest)) / gpus

    batch = full_batch(small, 4)
    batch["image"].zero_()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    try:
        sharded = for_processes(model.train(), spec, torch.device("cpu"), gpus)
        with Sent() as sent, distributed.local_only():
            sharded(batch).loss.backward()
        sharded.zero_grad(set_to_none=True)
        with distributed.local_only():
            _, peak = allocated(sharded, batch, spec)
    finally:
        torch.distributed.destroy_process_group()
    exchanged = seconds_of(parts, trace, spec, gpus, CARDS["h100"]).exchanged_bytes
    # torch fills up what the processes cannot share evenly, and gathers one layer in advance that a frozen encoder does not need
    assert exchanged == pytest.approx(sent.bytes * 3 / 4, rel=0.05 if is_frozen else 1e-3)
    whole = estimated.weights - shards - sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert 0.8 * (estimated.peak + whole) < peak <= estimated.peak + whole


def test_pairs_are_contrasted_with_those_of_other_gpus() -> None:
    diagnostics = Diagnostics()
    settings = (parse_override("set", f"model.alignments.gla.{one}", diagnostics) for one in ("granularity=global", "dim=64"))
    plan = medvlp_core.plan("mpma:small", [one for one in settings if one is not None])
    model, pairs, width = fake_model(build_for_estimate(plan)), 4, 64
    local_only, one_of_three = (follow(model, plan.train, pairs, is_gpu=True, gpus=gpus) for gpus in (1, 3))
    more = {
        path: one_of_three.flops(path, is_backward=False) - local_only.flops(path, is_backward=False) for path in plan.components
    }
    assert {path: flops for path, flops in more.items() if flops} == {"model.alignments.gla": 2 * pairs * 2 * pairs * width}
    assert not distributed.dist.is_initialized()


def test_gradients_of_layers_are_told_from_others() -> None:
    plan = medvlp_core.plan("mpma:small")
    model = build_for_estimate(plan)
    rest = count_parts(model).rest.trained
    trace = follow(fake_model(model), attrs.evolve(plan.train, activation_checkpointing=True), 2, is_gpu=True, gpus=4)
    assert trace.peak_without_gradients < trace.peak_without_layers <= trace.peak_without_gradients + rest
    assert trace.peak_without_layers < trace.peak
