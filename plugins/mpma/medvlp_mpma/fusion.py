"""MA-CMF, the memory-augmented cross-modal fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import FeedForward, FusedFeatures, Fusion, MultiHeadAttention
from medvlp_mpma.memory import SharedMemory, SlotCrossAttention
from medvlp_mpma.specs import MemoryFusionSpec


class MemoryFusion(Fusion):
    """Image information for the reconstruction of the report, through a learned memory.

    With report tokens T, image tokens V and the memory's answers CMN::

        V1 = V + CMN(V)      T1 = T + CMN(T)                        memory cmn_topk, cmn_softmax
        for each layer:                                             fuse cross_attention, pooled_and_cross
            T1 = T1 + SelfAttn(LN T1)
            T1 = T1 + CrossAttn(LN T1, LN V1)                       with slots of its own: memory kv_slots
            T1 = T1 + FFN(LN T1)
        F = LN(T1)
        F = T1 + Linear(mean V1)                                    fuse pooled_add

    ``pooled_and_cross`` puts ``Linear(mean V1)`` beside the image tokens that are attended to. Positions of padding attend and are
    never attended to.

    Shape:
        text_tokens (late) or text_embeddings (early) (B, L, Dt), text_is_valid (B, L) bool, image_tokens (B, S, Di); result
        (B, L, Dt). Image tokens of another width are first mapped to Dt, the width of the memory.

    Reference:
        Zhang et al., Multi-task Paired Masking with Alignment Modeling, arXiv 2305.07920: the abstracts say what the module is
        for, all equations here are a reconstruction. Memory as in R2GenCMN or the meshed-memory transformer, pooled_add as in
        MRM (equal to it without memory, early), pooled_and_cross after ECAMP.
    """

    def __init__(self, spec: MemoryFusionSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        text_width, image_width = dims["Dt"], dims["Di"]
        self.is_early = spec.position == "early"
        needs_text_width = spec.has_layers or spec.has_shared_memory
        is_mapped = needs_text_width and image_width != text_width
        self.image_map = nn.Linear(image_width, text_width) if is_mapped else nn.Identity()
        topk = spec.topk if spec.memory == "cmn_topk" else spec.slots
        has_memory = spec.has_shared_memory
        memory = (text_width, spec.slots, spec.heads, topk, spec.dropout, spec.kernel)
        self.memory = SharedMemory(*memory) if has_memory else None
        is_pooled = spec.fuse != "cross_attention"
        self.pooled = nn.Linear(text_width if needs_text_width else image_width, text_width) if is_pooled else None
        self.layers = nn.ModuleList(_layer(spec, dims) for _ in range(spec.layers if spec.has_layers else 0))
        self.norm = nn.LayerNorm(text_width, eps=1e-6) if spec.has_layers else nn.Identity()

    def forward(
        self,
        text_is_valid: Tensor,
        image_tokens: Tensor,
        text_tokens: Tensor | None = None,
        text_embeddings: Tensor | None = None,
    ) -> FusedFeatures:
        """Fuse one view."""
        text, image = self._enrich(_given(text_tokens, text_embeddings), image_tokens)
        if self.layers:
            keys = self._keys(image)
            for layer in self.layers:
                text = layer(text, text_is_valid, keys)
        else:
            assert self.pooled is not None
            text = text + self.pooled(image.mean(dim=1, keepdim=True))
        text = self.norm(text)
        return FusedFeatures(fused_text_embeddings=text) if self.is_early else FusedFeatures(fused_text_tokens=text)

    def attention_maps(
        self,
        text_is_valid: Tensor,
        image_tokens: Tensor,
        text_tokens: Tensor | None = None,
        text_embeddings: Tensor | None = None,
    ) -> Tensor | None:
        """Weights from report tokens to patches in the last layer, mean over heads: (B, L, S), rows sum to 1.

        Weights of memory slots and of the pooled token are left out and the rest is scaled up to 1. None with ``pooled_add``: it
        attends to nothing.
        """
        if not self.layers:
            return None
        text, image = self._enrich(_given(text_tokens, text_embeddings), image_tokens)
        keys = self._keys(image)
        for layer in self.layers[:-1]:
            text = layer(text, text_is_valid, keys)
        last = self.layers[-1]
        assert isinstance(last, FusionLayer)
        return last.cross_weights(text, text_is_valid, image).mean(dim=1)

    def _enrich(self, text: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        image = self.image_map(image_tokens)
        if self.memory is None:
            return text, image
        answers = self.memory(torch.cat([text, image], dim=1))  # together: the memory is projected once
        of_text, of_image = answers.split([text.shape[1], image.shape[1]], dim=1)
        return text + of_text, image + of_image

    def _keys(self, image: Tensor) -> Tensor:
        """Image tokens, and their pooled token if there is one: (B, S, Dt) or (B, S + 1, Dt)."""
        if self.pooled is None:
            return image
        return torch.cat([image, self.pooled(image.mean(dim=1, keepdim=True))], dim=1)


class FusionLayer(nn.Module):
    """Pre-LN layer: self-attention of the report, cross-attention to the image, feed-forward, each added to its input.

    Shape:
        text (B, L, D), text_is_valid (B, L) bool, image (B, S, D), result (B, L, D).
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, cross_attention: nn.Module) -> None:
        super().__init__()
        self.self_norm, self.text_norm, self.image_norm, self.feed_forward_norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(4))
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.cross_attention = cross_attention
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor, text_is_valid: Tensor, image: Tensor) -> Tensor:
        """Mix the report, then bring in the image."""
        text = self._attend_self(text, text_is_valid)
        text = text + self.dropout(self.cross_attention(self.text_norm(text), self.image_norm(image)))
        return text + self.feed_forward(self.feed_forward_norm(text))

    def cross_weights(self, text: Tensor, text_is_valid: Tensor, image: Tensor) -> Tensor:
        """Cross-attention weights of this layer for its input, (B, K, L, S)."""
        text = self._attend_self(text, text_is_valid)
        cross = self.cross_attention
        assert isinstance(cross, (MultiHeadAttention, SlotCrossAttention))
        return cross.weights(self.text_norm(text), self.image_norm(image))

    def _attend_self(self, text: Tensor, text_is_valid: Tensor) -> Tensor:
        normed = self.self_norm(text)
        return text + self.dropout(self.self_attention(normed, normed, text_is_valid))


def _layer(spec: MemoryFusionSpec, dims: Dims) -> FusionLayer:
    width = dims["Dt"]
    cross: nn.Module = MultiHeadAttention(width, spec.heads, dropout=spec.dropout)
    if spec.memory == "kv_slots":
        cross = SlotCrossAttention(width, spec.slots, spec.heads, spec.dropout, spec.kernel, usual_keys=dims.get("S", 0))
    return FusionLayer(width, spec.heads, round(spec.ffn_ratio * width), spec.dropout, cross)


def _given(late: Tensor | None, early: Tensor | None) -> Tensor:
    text = late if late is not None else early
    assert text is not None, "the contract names text_tokens or text_embeddings"
    return text
