"""What decoders of several bundles share.

The stack that reconstructs masked patches, and the losses of masked patches and words.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core.nn.batch import Output
from medvlp_core.nn.functional import at_least_float32, insert_mask_tokens, normalise_patches, patchify, sincos_positions_2d
from medvlp_core.nn.interfaces import Decoder
from medvlp_core.nn.layers import SelfAttentionBlock
from medvlp_core.spec.contract import Dims


class PatchReconstructor(Decoder):
    """Linear to the decoder's width, mask tokens at masked places, fixed positions, transformer blocks, LN, linear to pixels.

    The target is cut into the encoder's grid, and :func:`masked_patch_loss` compares. Prefix tokens go through the blocks without
    a position and are dropped at the end. Where the encoder replaced masked patches instead of dropping them, its tokens are kept
    and the mask token is added to the masked ones: the decoder knows which they are. Abstract: ``forward`` names the target's
    port and calls :meth:`reconstruct`.

    Args:
        hidden: width of the feed-forward layers.
        target_size: height and width of the target, pixels.
        normalises: reconstruct each patch normalised by its own pixels.

    Reference:
        He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
    """

    positions: Tensor

    def __init__(
        self,
        spec: Any,
        dims: Dims,
        *,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        target_size: tuple[int, int],
        normalises: bool,
    ) -> None:
        super().__init__(spec, dims)
        self.normalises = normalises
        self.grid = grid_h, grid_w = dims["GH"], dims["GW"]
        pixels = (target_size[0] // grid_h) * (target_size[1] // grid_w) * dims["C"]
        self.embed = nn.Linear(dims["Di"], width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("positions", sincos_positions_2d(width, grid_h, grid_w), persistent=False)
        self.blocks = nn.ModuleList(SelfAttentionBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.to_pixels = nn.Linear(width, pixels)

    def reconstruct(self, image_tokens: Tensor, image_prefix: Tensor, image_is_masked: Tensor, target: Tensor) -> Output:
        """Reconstruct every patch; score the masked ones, 0 if none is.

        Shape:
            image_tokens (B, S, Di), S = N or the number of visible patches; image_prefix (B, P, Di); image_is_masked (B, N)
            bool; target (B, C, H, W); prediction (B, N, (H / GH) * (W / GW) * C).
        """
        tokens = insert_mask_tokens(self.embed(image_tokens), image_is_masked, self.mask_token)
        prefix = self.embed(image_prefix)
        joint = torch.cat([prefix, tokens + self.positions], dim=1)
        for block in self.blocks:
            joint = block(joint)
        prediction = self.to_pixels(self.norm(joint[:, prefix.shape[1] :]))
        patches = patchify(at_least_float32(target), *self.grid)
        if self.normalises:
            patches = normalise_patches(patches)
        loss = masked_patch_loss(prediction, patches, image_is_masked)
        return Output(ports={"patch_prediction": prediction}, losses={"reconstruction": loss})


def masked_patch_loss(prediction: Tensor, target: Tensor, image_is_masked: Tensor) -> Tensor:
    """``sum over masked n of mean_q (prediction_nq - target_nq)^2, divided by the number of masked patches``; 0 if none is.

    Shape:
        prediction, target (B, N, Q), image_is_masked (B, N) bool, result a scalar.
    """
    error = (at_least_float32(prediction) - at_least_float32(target)).square().mean(dim=-1)
    return error.masked_fill(~image_is_masked, 0.0).sum() / image_is_masked.sum().clamp(min=1)


def scored_tokens(positions: str, text_is_masked: Tensor, text_is_valid: Tensor) -> Tensor:
    """Where a word loss is taken: ``masked`` = masked tokens, ``nonpad`` = all real ones, ``all`` = padding too; (B, L) bool."""
    choices = {"masked": text_is_masked, "nonpad": text_is_valid, "all": torch.ones_like(text_is_valid)}
    return choices[positions]


def word_loss(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Mean cross-entropy with the true ids, 0 (with gradient 0) if there are none.

    Shape:
        logits (R, V), token_ids (R,) int, result a scalar.
    """
    return F.cross_entropy(at_least_float32(logits), token_ids, reduction="sum") / max(1, len(token_ids))
