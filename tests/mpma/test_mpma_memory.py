"""The memory in both readings, and the two definitions that kernels must agree with."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_mpma.kernels.memory_attention.reference import memory_attention
from medvlp_mpma.kernels.memory_topk.reference import memory_topk
from medvlp_mpma.memory import SharedMemory, SlotCrossAttention
from torch import Tensor

from medvlp_core.layers import MultiHeadAttention


def random(*shape: int, seed: int = 0, requires_grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)


# ------------------------------------------------------------------------------------------------------------------- top-k


def gather_topk(q: Tensor, mem_k: Tensor, mem_v: Tensor, topk: int) -> Tensor:
    """R2GenCMN's own form: pick the K best slots, then softmax over them."""
    out = torch.empty_like(q)
    for b, position, head in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        scores = mem_k[:, head] @ q[b, position, head] / math.sqrt(q.shape[-1])
        best, index = scores.topk(topk)
        out[b, position, head] = best.softmax(dim=0) @ mem_v[index, head]
    return out


@settings(deadline=None, max_examples=15)
@given(slots=st.integers(1, 9), topk=st.integers(1, 9), heads=st.integers(1, 3), seed=st.integers(0, 99))
def test_masked_dense_equals_gathering(slots: int, topk: int, heads: int, seed: int) -> None:
    q, k, v = random(2, 3, heads, 4, seed=seed), random(slots, heads, 4, seed=seed), random(slots, heads, 4, seed=seed + 1)
    torch.testing.assert_close(memory_topk(q, k, v, topk), gather_topk(q, k, v, min(topk, slots)), rtol=1e-12, atol=1e-12)


def test_all_slots_are_plain_softmax_attention() -> None:
    q, k, v = random(2, 3, 2, 4), random(5, 2, 4), random(5, 2, 4, seed=1)
    nothing = q.new_zeros(2, 0, 2, 4)
    wanted = memory_attention(q, nothing, nothing, k, v)
    for topk in (5, 6, 1000):
        torch.testing.assert_close(memory_topk(q, k, v, topk), wanted)


def test_ties_are_all_kept() -> None:
    q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    k, v = torch.tensor([2.0, 1.0, 1.0, 0.0]).double(), torch.tensor([1.0, 10.0, 100.0, 1000.0]).double()
    out = memory_topk(q, k.reshape(4, 1, 1), v.reshape(4, 1, 1), 2)
    weights = torch.tensor([2.0, 1.0, 1.0]).double().softmax(dim=0)
    torch.testing.assert_close(out.flatten(), (weights @ v[:3]).reshape(1))


def test_only_the_winners_get_a_gradient() -> None:
    q, k, v = random(1, 1, 1, 4), random(6, 1, 4, requires_grad=True), random(6, 1, 4, seed=1, requires_grad=True)
    memory_topk(q, k, v, 2).sum().backward()
    assert k.grad is not None
    assert v.grad is not None
    assert (k.grad.flatten(1).abs().sum(dim=1) > 0).sum() == 2
    assert (v.grad.flatten(1).abs().sum(dim=1) > 0).sum() == 2


def test_topk_gradients() -> None:
    q, k, v = (
        random(1, 2, 2, 3, requires_grad=True),
        random(5, 2, 3, requires_grad=True),
        random(5, 2, 3, seed=1, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda *x: memory_topk(*x, 2), (q, k, v))


def test_dropout_acts_on_the_chosen_weights() -> None:
    torch.manual_seed(0)
    ones = torch.ones(64, 1, 1)
    out = memory_topk(torch.randn(1, 200, 1, 1), torch.randn(64, 1, 1), ones, 1, dropout_p=0.5)
    assert set(out.flatten().tolist()) == {0.0, 2.0}


def test_scores_keep_full_precision_under_autocast() -> None:
    q, k, v = (x.float() for x in (random(1, 4, 2, 8), random(40, 2, 8), random(40, 2, 8, seed=1)))
    with torch.autocast("cpu", torch.bfloat16):
        inside = memory_topk(q, k, v, 3)
    torch.testing.assert_close(inside, memory_topk(q, k, v, 3), rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------------- memory attention


def test_memory_attention_is_attention_over_keys_and_slots() -> None:
    q, k, v = random(2, 3, 2, 4), random(2, 5, 2, 4), random(2, 5, 2, 4, seed=1)
    slot_k, slot_v, bias = random(6, 2, 4), random(6, 2, 4, seed=1), random(2)
    is_valid = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
    out = memory_attention(q, k, v, slot_k, slot_v, key_is_valid=is_valid, mem_bias=bias, scale=0.3)
    for b, position, head in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        keys = torch.cat([k[b, is_valid[b], head], slot_k[:, head]])
        values = torch.cat([v[b, is_valid[b], head], slot_v[:, head]])
        scores = 0.3 * keys @ q[b, position, head]
        scores[int(is_valid[b].sum()) :] += bias[head]
        torch.testing.assert_close(out[b, position, head], scores.softmax(dim=0) @ values)


def test_a_closed_memory_is_plain_attention() -> None:
    q, k, v = random(2, 3, 2, 4), random(2, 5, 2, 4), random(2, 5, 2, 4, seed=1)
    slots = random(6, 2, 4)
    plain = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    closed = memory_attention(q, k, v, slots, slots, mem_bias=torch.full((2,), float("-inf"), dtype=torch.float64))
    torch.testing.assert_close(closed, plain)
    torch.testing.assert_close(memory_attention(q, k, v, slots[:0], slots[:0]), plain)


def test_padding_never_gets_through() -> None:
    q, slots = random(2, 3, 1, 4, requires_grad=True), random(3, 1, 4)
    keys = random(2, 4, 1, 4)
    is_valid = torch.tensor([[True, True, False, False], [False] * 4])
    clean = memory_attention(q, keys, keys, slots, slots, key_is_valid=is_valid)
    poisoned = keys.masked_fill(~is_valid[:, :, None, None], float("nan")).requires_grad_()
    out = memory_attention(q, poisoned, poisoned, slots, slots, key_is_valid=is_valid)
    torch.testing.assert_close(out, clean)
    out.sum().backward()
    assert q.grad is not None
    assert poisoned.grad is not None
    assert q.grad.isfinite().all()
    assert (poisoned.grad[~is_valid] == 0).all()


def test_a_query_that_reaches_nothing_gives_zero() -> None:
    q, keys = random(2, 3, 1, 4, requires_grad=True), random(2, 4, 1, 4, requires_grad=True)
    is_valid = torch.tensor([[True, False, False, False], [False] * 4])
    nothing = keys.new_zeros(0, 1, 4)
    out = memory_attention(q, keys, keys, nothing, nothing, key_is_valid=is_valid)
    assert (out[1] == 0).all()
    torch.testing.assert_close(out[0], keys[0, :1].expand(3, 1, 4))
    out.sum().backward()
    assert q.grad is not None
    assert (q.grad[1] == 0).all()
    empty = memory_attention(q, keys[:, :0], keys[:, :0], nothing, nothing)
    assert empty.shape == q.shape
    assert (empty == 0).all()


# ----------------------------------------------------------------------------------------------------------------- modules


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
    from medvlp_core.train.optim import parameter_groups

    parts = torch.nn.ModuleList([SharedMemory(width, 5, 2, 2, 0.0), SlotCrossAttention(width, 5, 2, 0.0)])
    kept = {id(p) for p in parameter_groups(parts, 0.05)[1]["params"]}
    memories = [p for name, p in parts.named_parameters() if "slot" in name]
    assert len(memories) == 3
    assert all(id(p) in kept for p in memories)
