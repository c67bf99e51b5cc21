"""Transformer parts that several bundles share: attention with key validity, feed-forward, pre-LN blocks, learned scale."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def xavier_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Xavier weights and zero biases."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def projection_head(width: int, dim: int) -> nn.Sequential:
    """A map to a shared space, ``Linear-GELU-LN-Linear``: (..., width) to (..., dim)."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, dim))


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with K heads: ``concat_k(softmax(q_k k_k^T / sqrt(D/K)) v_k) Wo``.

    Normalisation and the residual are outside (pre-LN). A row without any valid key gives 0.

    Shape:
        queries (B, L, D), keys_values (B, S, Dk), key_is_valid (B, S) bool or None (all valid), result (B, L, D).
    """

    def __init__(self, width: int, heads: int, key_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = xavier_linear(width, width)
        self.key = xavier_linear(key_width or width, width)
        self.value = xavier_linear(key_width or width, width)
        self.output = xavier_linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        result: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, L, D) to (B, K, L, D/K)
        return result

    def forward(self, queries: Tensor, keys_values: Tensor, key_is_valid: Tensor | None = None) -> Tensor:
        """Attend from ``queries`` to the valid ``keys_values``."""
        mixed = F.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(keys_values)),
            self._split(self.value(keys_values)),
            attn_mask=None if key_is_valid is None else _usable_keys(key_is_valid),
            dropout_p=self.dropout if self.training else 0.0,
        )
        result: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        if key_is_valid is not None:
            result = result.masked_fill(~key_is_valid.any(dim=1)[:, None, None], 0.0)
        return result

    def weights(self, queries: Tensor, keys_values: Tensor, key_is_valid: Tensor | None = None) -> Tensor:
        """The attention weights without dropout, (B, K, L, S); each row sums to 1, or to 0 where no key is valid."""
        query, key = self._split(self.query(queries)), self._split(self.key(keys_values))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if key_is_valid is None:
            return scores.softmax(dim=-1)
        weights = scores.masked_fill(~_usable_keys(key_is_valid), float("-inf")).softmax(dim=-1)
        return weights.masked_fill(~key_is_valid[:, None, None, :], 0.0)


def _usable_keys(key_is_valid: Tensor) -> Tensor:
    # A row without a valid key attends everywhere, so that softmax stays finite; the caller sets its result to 0.
    has_none = ~key_is_valid.any(dim=1, keepdim=True)
    return (key_is_valid | has_none)[:, None, None, :]


class FeedForward(nn.Module):
    """Two linear layers: ``W2 gelu(W1 x)``, dropout after each. Normalisation and the residual are outside.

    Shape:
        x (B, L, D), result (B, L, D).
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            xavier_linear(width, hidden), nn.GELU(), nn.Dropout(dropout), xavier_linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position on its own."""
        result: Tensor = self.layers(x)
        return result


class SelfAttentionBlock(nn.Module):
    """Pre-LN transformer block: ``x = x + SelfAttn(LN x); x = x + FFN(LN x)``.

    Shape:
        x (B, L, D), is_valid (B, L) bool or None, result (B, L, D).
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, is_valid: Tensor | None = None) -> Tensor:
        """Mix the valid positions."""
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, normed, is_valid))
        result: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return result

    def weights(self, x: Tensor, is_valid: Tensor | None = None) -> Tensor:
        """The attention weights of this block for its input, (B, K, L, L)."""
        normed = self.attention_norm(x)
        return self.attention.weights(normed, normed, is_valid)


class CrossAttentionBlock(nn.Module):
    """Pre-LN block of a decoder: ``x += SelfAttn(LN x); x += CrossAttn(LN x, LN y); x += FFN(LN x)``.

    Shape:
        x (B, L, D), is_valid (B, L) bool or None, memory (B, S, Dk), memory_is_valid (B, S) bool or None, result (B, L, D).
    """

    def __init__(self, width: int, heads: int, hidden: int, memory_width: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.cross_norm = nn.LayerNorm(width, eps=1e-6)
        self.memory_norm = nn.LayerNorm(memory_width or width, eps=1e-6)
        self.cross_attention = MultiHeadAttention(width, heads, key_width=memory_width, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def _attend_self(self, x: Tensor, is_valid: Tensor | None) -> Tensor:
        normed = self.self_norm(x)
        result: Tensor = x + self.dropout(self.self_attention(normed, normed, is_valid))
        return result

    def forward(self, x: Tensor, memory: Tensor, is_valid: Tensor | None = None, memory_is_valid: Tensor | None = None) -> Tensor:
        """Mix the valid positions of ``x``, then bring in ``memory``."""
        x = self._attend_self(x, is_valid)
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), self.memory_norm(memory), memory_is_valid))
        result: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return result

    def cross_weights(
        self, x: Tensor, memory: Tensor, is_valid: Tensor | None = None, memory_is_valid: Tensor | None = None
    ) -> Tensor:
        """The cross-attention weights of this block for its input, (B, K, L, S)."""
        x = self._attend_self(x, is_valid)
        return self.cross_attention.weights(self.cross_norm(x), self.memory_norm(memory), memory_is_valid)


class LearnedScale(nn.Module):
    """A learned positive factor on similarities, ``exp(s)``, started at ``1 / temperature`` and at most ``largest``.

    At the ceiling the gradient still passes, so that the factor can come down again.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
        Deviation: there the parameter itself is clipped after each step.
    """

    def __init__(self, temperature: float, largest: float = 100.0) -> None:
        super().__init__()
        self.log_largest = math.log(largest)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))  # FSDP shards no scalars

    def forward(self) -> Tensor:
        """The factor, a scalar."""
        excess = (self.log_scale - self.log_largest).clamp(min=0).detach()
        return (self.log_scale - excess).exp().squeeze(0)
