"""The fusion itself. Letters: B batch, L text tokens, S image tokens, Dt and Di their widths."""

from __future__ import annotations

import torch
from medvlp_core import Dims
from medvlp_core.nn import FusedFeatures, Fusion, MultiHeadAttention, masked_mean
from torch import Tensor, nn

from acme_fusion.specs import GatedAttentionSpec


class GatedAttention(Fusion):
    """Gated cross-attention: each word looks at the image, and lets in as much of it as it, and its report, can use.

    With words T, image tokens V and ``r`` the mean of the report's words::

        C_l = CrossAttention(LN(T_l), LN(V))           what word l finds in the image
        g_l = sigmoid(G [T_l ; r ; C_l] + b)           how much of it gets in, channel by channel
        F_l = T_l + g_l * C_l

    Shape:
        text_tokens (B, L, Dt), text_is_valid (B, L), image_tokens (B, S, Di), fused_text_tokens (B, L, Dt).
    """

    def __init__(self, spec: GatedAttentionSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        width = dims["Dt"]
        self.text_norm = nn.LayerNorm(width)
        self.image_norm = nn.LayerNorm(dims["Di"])
        self.attention = MultiHeadAttention(width, spec.heads, key_width=dims["Di"], dropout=spec.dropout)
        self.gate = nn.Linear(3 * width, width)
        nn.init.constant_(self.gate.bias, spec.gate_bias)

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        """Fuse one view."""
        found = self.attention(self.text_norm(text_tokens), self.image_norm(image_tokens))  # (B, L, Dt)
        report = masked_mean(text_tokens, text_is_valid)  # (B, Dt)
        report = report.unsqueeze(1).expand_as(text_tokens)  # (B, L, Dt)
        gate = self.gate(torch.cat([text_tokens, report, found], dim=-1)).sigmoid()  # (B, L, Dt)
        return FusedFeatures(fused_text_tokens=text_tokens + gate * found)

    def attention_maps(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> Tensor:
        """Which patches each word looks at, mean over heads: (B, L, S). medvlp draws them over the radiograph."""
        return self.attention.weights(self.text_norm(text_tokens), self.image_norm(image_tokens)).mean(dim=1)
