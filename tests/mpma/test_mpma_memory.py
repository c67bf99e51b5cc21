"""The memory in both readings; the ops that they call have tests of their own in ``kernels``."""

from __future__ import annotations

import math

import pytest
import torch
from medvlp_mpma.memory import SharedMemory, SlotCrossAttention
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medvlp_core.nn.layers import MultiHeadAttention


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_the_shared_memory_starts_near_identity() -> None:
    torch.manual_seed(0)
    memory = SharedMemory(width=64, slots=128, heads=4, topk=8, dropout=0.1)
    tokens = torch.randn(2, 5, 64)
    assert memory(tokens).abs().max() < 0.05
    assert abs(memory.slots.std().item() * 64 - 1) < 0.05, "slots are drawn from Normal(0, 1/d)"


def test_the_order_of_slots_means_nothing() -> None:
    torch.manual_seed(0)
    memory = SharedMemory(width=8, slots=9, heads=2, topk=3, dropout=0.0).double()
    with torch.no_grad():
        memory.slots.copy_(random(9, 8))
    tokens = random(2, 4, 8)
    before = memory(tokens)
    with torch.no_grad():
        memory.slots.copy_(memory.slots[torch.randperm(9)])
    torch.testing.assert_close(memory(tokens), before)


def test_memory_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    memory = SharedMemory(width=8, slots=9, heads=2, topk=3, dropout=0.5)
    tokens = torch.randn(2, 4, 8)
    assert not torch.equal(memory(tokens), memory(tokens))
    memory.eval()
    assert torch.equal(memory(tokens), memory(tokens))


def test_slot_attention_scales_its_slots_as_the_meshed_memory() -> None:
    torch.manual_seed(0)
    slots = SlotCrossAttention(width=8, slots=3, heads=2, dropout=0.0).double().eval()
    text, image = random(2, 4, 8), random(2, 5, 8)
    part = slots.attention
    keys = torch.cat([part.key(image), (math.sqrt(4) * slots.slot_keys).expand(2, -1, -1)], dim=1)
    values = torch.cat([part.value(image), (math.sqrt(3) * slots.slot_values).expand(2, -1, -1)], dim=1)
    query, keys, values = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (part.query(text), keys, values))
    wanted = (query @ keys.mT / math.sqrt(4)).softmax(dim=-1) @ values
    torch.testing.assert_close(slots(text, image), part.output(wanted.transpose(1, 2).flatten(2)))


def test_weights_of_slot_attention_leave_the_slots_out() -> None:
    torch.manual_seed(0)
    slots = SlotCrossAttention(width=8, slots=3, heads=2, dropout=0.0)
    weights = slots.weights(torch.randn(2, 4, 8), torch.randn(2, 5, 8))
    assert weights.shape == (2, 2, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4))
    assert isinstance(slots.attention, MultiHeadAttention)


@pytest.mark.parametrize("width", [8, 12])
def test_memory_parameters_carry_no_weight_decay(width: int) -> None:
    from medvlp_core.training.optim import parameter_groups

    parts = torch.nn.ModuleList([SharedMemory(width, 5, 2, 2, 0.0), SlotCrossAttention(width, 5, 2, 0.0)])
    kept = {id(p) for p in parameter_groups(parts, 0.05)[1]["params"]}
    memories = [p for name, p in parts.named_parameters() if "slot" in name]
    assert len(memories) == 3
    assert all(id(p) in kept for p in memories)


def test_slots_in_use_are_the_winners_of_some_query() -> None:
    torch.manual_seed(0)
    memory = SharedMemory(width=8, slots=40, heads=2, topk=3, dropout=0.0)
    parts = [torch.randn(2, 2, 8), torch.randn(2, 1, 8)]
    assert memory.statistics() == {}
    for tokens in parts:  # two passes of one step
        memory(tokens).square().sum().backward()
    query, key = (
        x.unflatten(-1, (2, 4)) for x in (memory.query(torch.cat([x.flatten(0, 1) for x in parts])), memory.key(memory.slots))
    )
    winners = torch.einsum("lhd,mhd->lhm", query, key).topk(3).indices.unique()
    assert len(winners) < 36
    assert memory.statistics()["slots_in_use"].item() == pytest.approx(len(winners) / 40)
    assert memory.statistics() == {}, "it counts from the last question on"


def test_slots_in_use_with_recomputed_activations_and_where_there_are_none() -> None:
    torch.manual_seed(0)
    memory = SharedMemory(width=8, slots=9, heads=2, topk=3, dropout=0.0)
    tokens = torch.randn(1, 1, 8)
    memory(tokens).sum().backward()
    wanted = memory.statistics()
    checkpoint(memory, tokens, use_reentrant=False).sum().backward()
    assert memory.statistics() == wanted
    with torch.no_grad():
        memory(tokens)
    every = SharedMemory(width=8, slots=9, heads=2, topk=9, dropout=0.0)
    every(tokens).sum().backward()
    assert memory.statistics() == every.statistics() == {}
