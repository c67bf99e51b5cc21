"""The standard decoders: pixels of hidden patches, words at hidden tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medvlp_core.batch import DecoderOutput
from medvlp_core.interfaces import Decoder, Dims
from medvlp_core.layers import SelfAttentionBlock
from medvlp_core.ops import (
    at_least_float32,
    hidden_patch_loss,
    normalise_patches,
    patchify,
    restore_masked,
    scored_tokens,
    sincos_positions_2d,
    word_loss,
)
from medvlp_standard.specs.decoders import MlmHeadSpec, PatchDecoderSpec


class PatchDecoder(Decoder):
    """Linear to the decoder's width, mask tokens at hidden places, fixed positions, transformer blocks, LN, linear to pixels.

    Prefix tokens take part without a position and are dropped at the end. Where the encoder replaced hidden patches instead of
    dropping them, its tokens are kept and the mask token is added to the hidden ones: the decoder knows which they are.

    Shape:
        image_tokens (B, S, Di), S = N or the number of visible patches; image_prefix (B, P, Di); image_is_masked (B, N);
        image (B, C, H, W); prediction (B, N, ph * pw * C), in normalised pixels if ``normalise_patches``.

    Reference:
        He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
    """

    positions: Tensor

    def __init__(self, spec: PatchDecoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.normalises = spec.normalise_patches
        self.grid_h, self.grid_w = dims["GH"], dims["GW"]
        pixels = (dims["H"] // self.grid_h) * (dims["W"] // self.grid_w) * dims["C"]
        self.embed = nn.Linear(dims["Di"], spec.width)
        self.mask_token = nn.Parameter(torch.randn(spec.width) * 0.02)
        self.register_buffer("positions", sincos_positions_2d(spec.width, self.grid_h, self.grid_w), persistent=False)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(spec.width, spec.heads, round(spec.width * spec.ffn_ratio)) for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.width, eps=1e-6)
        self.to_pixels = nn.Linear(spec.width, pixels)

    def forward(  # type: ignore[override]
        self, image_tokens: Tensor, image_prefix: Tensor, image_is_masked: Tensor, image: Tensor
    ) -> DecoderOutput:
        """Restore every patch; score the hidden ones."""
        tokens = restore_masked(self.embed(image_tokens), image_is_masked, self.mask_token)
        prefix = self.embed(image_prefix)
        joint = torch.cat([prefix, tokens + self.positions], dim=1)
        for block in self.blocks:
            joint = block(joint)
        prediction = self.to_pixels(self.norm(joint[:, prefix.shape[1] :]))

        target = patchify(at_least_float32(image), self.grid_h, self.grid_w)
        if self.normalises:
            target = normalise_patches(target)
        return DecoderOutput({"reconstruction": hidden_patch_loss(prediction, target, image_is_masked)}, prediction)


class MlmHead(Decoder):
    """``logits = W LN(gelu(W' F)) + b``, cross-entropy with the true ids, averaged over the scored positions.

    Logits are computed only where they are scored. With ``positions: all`` padding is scored too, so the loss then depends on
    how far the batch is padded (MRM pads every text to 100 tokens).

    Shape:
        fused_text_tokens (B, L, Df), token_ids, text_is_masked, text_is_valid (B, L);
        prediction (R, V), the R hidden positions in row-major order of ``text_is_masked``.

    Reference:
        Devlin et al., BERT, NAACL 2019. Deviation: the output matrix is not tied to the token embeddings (as in MRM).
    """

    def __init__(self, spec: MlmHeadSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.positions = spec.positions
        width = dims["Df"]
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.to_vocabulary = nn.Linear(width, dims["V"])

    def forward(  # type: ignore[override]
        self, fused_text_tokens: Tensor, token_ids: Tensor, text_is_masked: Tensor, text_is_valid: Tensor
    ) -> DecoderOutput:
        """Predict the words at the scored positions; 0 if none is scored."""
        is_scored = scored_tokens(self.positions, text_is_masked, text_is_valid)
        logits = self.to_vocabulary(self.transform(fused_text_tokens[is_scored]))
        return DecoderOutput({"mlm": word_loss(logits, token_ids[is_scored])}, logits[text_is_masked[is_scored]])
