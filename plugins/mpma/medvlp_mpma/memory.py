"""The memory of MA-CMF in its two readings: a shared matrix that tokens query, or slots beside the keys of an attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medvlp_core.kernels import Call, Kernel, requested_backend
from medvlp_core.nn import MultiHeadAttention, xavier_linear
from medvlp_mpma.kernels.memory_attention.op import KERNEL as ATTENTION
from medvlp_mpma.kernels.memory_attention.op import memory_attention
from medvlp_mpma.kernels.memory_topk.op import KERNEL as TOPK
from medvlp_mpma.kernels.memory_topk.op import memory_topk


class SharedMemory(nn.Module):
    """Answers of one learned matrix to the tokens of any modality, to be added to them (querying and responding).

    ``q = X Wq, k = M Wk, v = M Wv``; each head attends to its ``topk`` best slots; ``R = concat_i(r_i) Wo``. The memory is
    projected once per call, so a caller with tokens of several modalities gives them together. ``kernel`` is the path of the op.

    One matrix and one set of four projections serve both modalities: that is what makes it a common space. At the initial values
    the answers are close to 0, so that ``X + R`` starts close to X. The order of the slots carries no meaning.

    Shape:
        tokens (B, L, D), result (B, L, D).

    Reference:
        Chen et al., Cross-modal Memory Networks for Radiology Report Generation, ACL 2021: slots drawn from Normal(0, 1/D)
        (standard deviation), top-k per head and token. Deviation: Xavier weights and zero biases. That MPMA's memory is of this
        kind is a reconstruction.
    """

    def __init__(self, width: int, slots: int, heads: int, topk: int, dropout: float, kernel: str = "auto") -> None:
        super().__init__()
        self.heads, self.topk, self.dropout, self.kernel = heads, topk, dropout, kernel
        self.slots = nn.Parameter(torch.randn(slots, width) / width)
        self.query, self.key, self.value, self.output = (xavier_linear(width, width) for _ in range(4))
        self._in_use: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """The memory's answer to each token."""
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)) for x in (self.query(tokens), self.key(self.slots), self.value(self.slots))
        )
        if self.training and value.requires_grad and self.topk < len(self.slots) and not torch.compiler.is_compiling():
            value.register_hook(self._note_in_use)
        dropout = self.dropout if self.training else 0.0
        return self.output(memory_topk(query, key, value, self.topk, dropout_p=dropout, backend=self.kernel).flatten(2))

    def statistics(self) -> dict[str, Tensor]:
        """``slots_in_use``: the share of slots with a gradient since it was asked last; empty if every slot answers to all.

        A slot has one if it is among the winners of a query, in some head, and the loss depends on the answer. Seen from the
        gradient this costs a look at M rows, and none at the scores of all queries.
        """
        in_use, self._in_use = self._in_use, None
        return {} if in_use is None else {"slots_in_use": in_use.float().mean()}

    def _note_in_use(self, gradient: Tensor) -> None:
        in_use = gradient.abs().amax(dim=(1, 2)) > 0.0  # not where it is NaN
        self._in_use = in_use if self._in_use is None else self._in_use | in_use

    def kernel_choices(self, device: str, dtype: str) -> dict[str, str]:
        """The op that serves and its path, for calls on such a device."""
        slots, width = self.slots.shape
        op = TOPK if self.topk < slots else ATTENTION
        sizes = {"S": 0, "M": slots, "H": self.heads, "D": width // self.heads}
        return _choice(op, self.kernel, Call(device, dtype, tuple(sizes.items())))


class SlotCrossAttention(nn.Module):
    """Cross-attention with learned slots beside the keys: ``softmax(Q [K ; sqrt(d) Mk]^T / sqrt(d)) [V ; sqrt(M) Mv] Wo``.

    The slots enter after the projections and belong to this layer alone; d is the width of a head, M the number of slots.
    ``usual_keys`` is the S that :meth:`kernel_choices` speaks of.

    Shape:
        queries (B, L, D), keys_values (B, S, D), result (B, L, D).

    Reference:
        Cornia et al., Meshed-Memory Transformer for Image Captioning, CVPR 2020. Deviation: there the slots stand in the visual
        self-attention; in the cross-attention they are our reading of "memory-augmented cross-modal fusion".
    """

    def __init__(self, width: int, slots: int, heads: int, dropout: float, kernel: str = "auto", usual_keys: int = 0) -> None:
        super().__init__()
        self.kernel, self.usual_keys = kernel, usual_keys
        head_width = width // heads
        self.attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.slot_keys = nn.Parameter(torch.randn(slots, width) / head_width)
        self.slot_values = nn.Parameter(torch.randn(slots, width) / slots)
        self.key_factor, self.value_factor = math.sqrt(head_width), math.sqrt(slots)

    def forward(self, queries: Tensor, keys_values: Tensor) -> Tensor:
        """Attend to the keys of the sample and to the slots."""
        part = self.attention
        query, key, value, slot_keys, slot_values = (
            x.unflatten(-1, (part.heads, -1))
            for x in (
                part.query(queries),
                part.key(keys_values),
                part.value(keys_values),
                self.key_factor * self.slot_keys,
                self.value_factor * self.slot_values,
            )
        )
        dropout = part.dropout if self.training else 0.0
        mixed = memory_attention(query, key, value, slot_keys, slot_values, dropout_p=dropout, backend=self.kernel)
        return part.output(mixed.flatten(2))

    def kernel_choices(self, device: str, dtype: str) -> dict[str, str]:
        """The op that serves and its path, for calls on such a device with the usual number of keys."""
        slots, width = self.slot_keys.shape
        features = frozenset({"dropout"} if self.training and self.attention.dropout > 0.0 else ())
        sizes = {"S": self.usual_keys, "M": slots, "H": self.attention.heads, "D": width // self.attention.heads}
        return _choice(ATTENTION, self.kernel, Call(device, dtype, tuple(sizes.items()), features))

    def weights(self, queries: Tensor, keys_values: Tensor) -> Tensor:
        """The weights of the sample's keys among themselves, without the slots: (B, K, L, S), rows sum to 1."""
        return self.attention.weights(queries, keys_values)


def _choice(op: Kernel, kernel: str, call: Call) -> dict[str, str]:
    return {op.name: op.select(requested_backend(kernel), call)}
