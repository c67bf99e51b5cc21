"""Attention with key validity, blocks and the learned scale."""

from __future__ import annotations

import pytest
import torch

from medvlp_core.nn.layers import CrossAttentionBlock, LearnedScale, MultiHeadAttention, SelfAttentionBlock


def test_attention_equals_its_own_weights_times_values() -> None:
    torch.manual_seed(0)
    attention = MultiHeadAttention(8, 2, key_width=6).double()
    queries, keys = torch.randn(3, 4, 8).double(), torch.randn(3, 5, 6).double()
    is_valid = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    weights = attention.weights(queries, keys, is_valid)
    assert weights.shape == (3, 2, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 4).double())
    assert torch.equal(weights[1, :, :, [1, 3, 4]], torch.zeros(2, 4, 3).double())
    values = attention.value(keys).unflatten(-1, (2, 4)).transpose(1, 2)
    wanted = attention.output((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(queries, keys, is_valid), wanted)


def test_attention_equals_torchs_module() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(8, 2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.output.weight)
    x, y = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    is_valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    wanted, _ = theirs(x, y, y, key_padding_mask=~is_valid)
    torch.testing.assert_close(ours(x, y, is_valid), wanted)


def test_a_row_without_valid_keys_gives_zero_and_finite_gradients() -> None:
    attention = MultiHeadAttention(8, 2)
    torch.nn.init.ones_(attention.output.bias)  # zero must not come from a zero bias
    queries = torch.randn(2, 3, 8, requires_grad=True)
    is_valid = torch.tensor([[False, False], [True, False]])
    keys = torch.randn(2, 2, 8, requires_grad=True)
    out = attention(queries, keys, is_valid)
    assert torch.equal(out[0], torch.zeros(3, 8))
    assert torch.equal(attention.weights(queries, keys, is_valid)[0], torch.zeros(2, 3, 2))
    out.square().sum().backward()
    assert queries.grad is not None
    assert keys.grad is not None
    assert torch.isfinite(queries.grad).all()
    assert torch.isfinite(keys.grad).all()


def test_padding_content_does_not_reach_valid_positions() -> None:
    torch.manual_seed(0)
    self_block, cross_block = SelfAttentionBlock(8, 2, 16), CrossAttentionBlock(8, 2, 16, memory_width=6)
    x, memory = torch.randn(1, 4, 8), torch.randn(1, 3, 6)
    is_valid, memory_is_valid = torch.tensor([[True, True, True, False]]), torch.tensor([[True, True, False]])
    other_x, other_memory = x.clone(), memory.clone()
    other_x[0, 3], other_memory[0, 2] = 9.0, -9.0
    torch.testing.assert_close(self_block(other_x, is_valid)[:, :3], self_block(x, is_valid)[:, :3])
    torch.testing.assert_close(
        cross_block(other_x, other_memory, is_valid, memory_is_valid)[:, :3],
        cross_block(x, memory, is_valid, memory_is_valid)[:, :3],
    )
    assert not torch.allclose(cross_block(x, other_memory, is_valid), cross_block(x, memory, is_valid))


def test_block_weights_are_those_of_its_own_forward() -> None:
    torch.manual_seed(0)
    block = CrossAttentionBlock(8, 2, 16, memory_width=6)
    x, memory = torch.randn(1, 4, 8), torch.randn(1, 3, 6)
    seen: list[torch.Tensor] = []
    handle = block.cross_attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block(x, memory)
    handle.remove()
    wanted = block.cross_attention.weights(seen[0], block.memory_norm(memory))
    torch.testing.assert_close(block.cross_weights(x, memory), wanted)


def test_learned_scale_starts_at_one_over_temperature_and_can_leave_its_ceiling() -> None:
    scale = LearnedScale(0.07)
    assert scale().item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        scale.log_scale.fill_(10.0)
    assert scale().item() == pytest.approx(100.0, rel=1e-5)
    scale().backward()
    assert scale.log_scale.grad is not None
    assert float(scale.log_scale.grad) > 0
