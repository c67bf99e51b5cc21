"""The standard fusions: none, pooled image added, cross-attention, joint self-attention.

``image_tokens`` are used as the image encoder gives them: in the masked view the visible patches where hidden ones are dropped,
all positions where they are replaced by a mask token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import CrossAttentionBlock, FusedFeatures, Fusion, SelfAttentionBlock
from medvlp_standard.specs.fusion import ConcatAttentionSpec, CrossAttentionSpec, NoFusionSpec, PooledAddSpec


def heads_for(width: int) -> int:
    """One head for each 64 of the width: the largest divisor of ``width`` that is not above ``width / 64``, at least 1.

    Example:
        >>> [heads_for(width) for width in (768, 128, 48, 320)]
        [12, 2, 1, 5]
    """
    return next((heads for heads in range(width // 64, 1, -1) if width % heads == 0), 1)


class NoFusion(Fusion):
    """``F = T``: the text never sees the image.

    Shape:
        text_tokens (B, L, Dt), result fused_text_tokens (B, L, Dt).
    """

    def __init__(self, spec: NoFusionSpec, dims: Dims) -> None:
        super().__init__(spec, dims)

    def forward(self, text_tokens: Tensor) -> FusedFeatures:
        """Hand the tokens on."""
        return FusedFeatures(fused_text_tokens=text_tokens)


class PooledAdd(Fusion):
    """``F_l = T_l + W mean_s(V_s) + b`` at every position l, in front of the text layers or behind them.

    Shape:
        text_embeddings (early) or text_tokens (late) (B, L, Dt), image_tokens (B, S, Di),
        result fused_text_embeddings or fused_text_tokens (B, L, Dt).

    Reference:
        Zhou et al., Advancing Radiograph Representation Learning with Masked Record Modeling (MRM), ICLR 2023.
    """

    def __init__(self, spec: PooledAddSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.project = nn.Linear(dims["Di"], dims["Dt"])

    def forward(
        self, image_tokens: Tensor, text_embeddings: Tensor | None = None, text_tokens: Tensor | None = None
    ) -> FusedFeatures:
        """Add the pooled image to the one kind of text tokens that the contract asks for."""
        pooled = self.project(image_tokens.mean(dim=1)).unsqueeze(1)
        if text_embeddings is not None:
            return FusedFeatures(fused_text_embeddings=text_embeddings + pooled)
        return FusedFeatures(fused_text_tokens=text_tokens + pooled)


class CrossAttention(Fusion):
    """Per layer ``T += SelfAttn(LN T); T += CrossAttn(LN T, LN V); T += FFN(LN T)``, at the end ``F = LN T``.

    Shape:
        text_tokens (B, L, Dt), text_is_valid (B, L), image_tokens (B, S, Di), result fused_text_tokens (B, L, Dt).
    """

    def __init__(self, spec: CrossAttentionSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        width = dims["Dt"]
        heads = spec.heads or heads_for(width)
        self.layers = nn.ModuleList(
            CrossAttentionBlock(width, heads, round(width * spec.ffn_ratio), dims["Di"], spec.dropout) for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Let the text attend to the image."""
        for layer in self.layers:
            text_tokens = layer(text_tokens, image_tokens, text_is_valid)
        return FusedFeatures(fused_text_tokens=self.norm(text_tokens))

    def attention_maps(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> Tensor:
        """Text-to-image weights of the last layer, mean over heads, (B, L, S); every row sums to 1."""
        last = self.layers[-1]
        assert isinstance(last, CrossAttentionBlock)  # for the type checker
        for layer in self.layers[:-1]:
            text_tokens = layer(text_tokens, image_tokens, text_is_valid)
        return last.cross_weights(text_tokens, image_tokens, text_is_valid).mean(dim=1)


class ConcatAttention(Fusion):
    """Joint self-attention over ``[T + m_text ; W V + m_image]``, m a learned vector for each modality; LN at the end.

    Shape:
        text_tokens (B, L, Dt), text_is_valid (B, L), image_tokens (B, S, Di),
        result fused_text_tokens (B, L, Dt), fused_image_tokens (B, S, Dt).

    Reference:
        Geng et al., Multimodal Masked Autoencoders Learn Transferable Representations (M3AE), 2022. Deviation: there one
        encoder sees both modalities from the start; here the joint layers follow two encoders.
    """

    def __init__(self, spec: ConcatAttentionSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        width = dims["Dt"]
        heads = spec.heads or heads_for(width)
        self.project = nn.Linear(dims["Di"], width)
        self.modality = nn.Parameter(torch.randn(2, width) * 0.02)
        self.layers = nn.ModuleList(
            SelfAttentionBlock(width, heads, round(width * spec.ffn_ratio), spec.dropout) for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def _join(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> tuple[Tensor, Tensor]:
        text = text_tokens + self.modality[0]
        image = self.project(image_tokens) + self.modality[1]
        is_patch = text_is_valid.new_ones(image.shape[:2])
        return torch.cat([text, image], dim=1), torch.cat([text_is_valid, is_patch], dim=1)

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Let both modalities attend to each other."""
        joint, is_valid = self._join(text_tokens, text_is_valid, image_tokens)
        for layer in self.layers:
            joint = layer(joint, is_valid)
        text, image = self.norm(joint).split([text_tokens.shape[1], image_tokens.shape[1]], dim=1)
        return FusedFeatures(fused_text_tokens=text, fused_image_tokens=image)

    def attention_maps(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> Tensor:
        """Text-to-image weights of the last layer, mean over heads, scaled so that every row sums to 1, (B, L, S)."""
        joint, is_valid = self._join(text_tokens, text_is_valid, image_tokens)
        last = self.layers[-1]
        assert isinstance(last, SelfAttentionBlock)  # for the type checker
        for layer in self.layers[:-1]:
            joint = layer(joint, is_valid)
        length = text_tokens.shape[1]
        to_image = last.weights(joint, is_valid).mean(dim=1)[:, :length, length:]
        return to_image / to_image.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(to_image.dtype).tiny)
