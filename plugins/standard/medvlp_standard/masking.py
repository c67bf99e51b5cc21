"""The standard maskings: random patches, blocks of patches, random tokens, whole words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medvlp_core import Dims
from medvlp_core.nn import Masking, MaskPlan, random_patch_mask, random_word_mask, visible_count
from medvlp_standard.specs.masking import BlockwiseMaskingSpec, RandomMaskingSpec

#: Blocks tried for one image before the rest of its patches is drawn one by one.
_MAX_BLOCKS = 64


def replace_tokens(token_ids: Tensor, text_is_masked: Tensor, *, mask_id: int, vocabulary: int, rule: str) -> Tensor:
    """Put something else at the masked tokens.

    ``mask``: always [MASK]. ``bert``: [MASK] with probability 0.8, any id of the vocabulary with 0.1, the true id with 0.1.

    Shape:
        token_ids (B, L) int, text_is_masked (B, L) bool, result (B, L) int.

    Reference:
        Devlin et al., BERT, NAACL 2019.
    """
    masked = token_ids.masked_fill(text_is_masked, mask_id)
    if rule == "mask":
        return masked
    draw = torch.rand(token_ids.shape, device=token_ids.device)
    random_ids = torch.randint(vocabulary, token_ids.shape, device=token_ids.device, dtype=token_ids.dtype)
    replaced = torch.where(draw < 0.8, masked, torch.where(draw < 0.9, random_ids, token_ids))
    return torch.where(text_is_masked, replaced, token_ids)


class RandomMasking(Masking):
    """Masks ``N - int(N (1 - image_ratio))`` random patches of every image, and each text unit with probability ``text_ratio``.

    Shape:
        token_ids, text_is_valid, word_ids (B, L); result: image_is_masked (B, N), text_is_masked and token_ids (B, L).

    Reference:
        Patches: He et al., Masked Autoencoders, CVPR 2022. Tokens: Devlin et al., BERT, NAACL 2019; each unit is drawn on its
        own, so the number of masked tokens varies from text to text.
    """

    def __init__(self, spec: RandomMaskingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec
        self.mask_id, self.vocabulary = dims["Mask"], dims["V"]
        self.patches = dims["GH"] * dims["GW"]
        self.visible = visible_count(self.patches, spec.image_ratio)

    def forward(self, token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> MaskPlan:
        """Draw a plan for one batch."""
        text_is_masked = random_word_mask(
            word_ids, text_is_valid, self.spec.text_ratio, whole_words=self.spec.text_unit == "whole_word"
        )
        return MaskPlan(
            image_is_masked=random_patch_mask(len(token_ids), self.patches, self.visible, token_ids.device),
            text_is_masked=text_is_masked,
            token_ids=replace_tokens(
                token_ids, text_is_masked, mask_id=self.mask_id, vocabulary=self.vocabulary, rule=self.spec.replace
            ),
        )


class BlockwiseMasking(Masking):
    """Masks rectangles of patches, exactly ``round(N * image_ratio)`` patches in every image (at most N - 1).

    A block has an area between ``min_block_patches`` and the number still missing, and an aspect (height / width) drawn evenly
    on a log scale. The last block is cut, in raster order, to the exact number.

    Shape:
        token_ids, text_is_valid, word_ids (B, L); result: image_is_masked (B, N), text_is_masked and token_ids (B, L).

    Reference:
        Bao et al., BEiT, ICLR 2022. Deviation: the number of masked patches is exact, so that rows can be stacked; all images
        of the batch are drawn at once.
    """

    def __init__(self, spec: BlockwiseMaskingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec
        self.mask_id, self.vocabulary = dims["Mask"], dims["V"]
        self.grid_h, self.grid_w = dims["GH"], dims["GW"]
        patches = self.grid_h * self.grid_w
        self.masked_count = min(round(patches * spec.image_ratio), patches - 1)

    def forward(self, token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> MaskPlan:
        """Draw a plan for one batch."""
        text_is_masked = random_word_mask(
            word_ids, text_is_valid, self.spec.text_ratio, whole_words=self.spec.text_unit == "whole_word"
        )
        return MaskPlan(
            image_is_masked=self._mask_blocks(len(token_ids), token_ids.device),
            text_is_masked=text_is_masked,
            token_ids=replace_tokens(
                token_ids, text_is_masked, mask_id=self.mask_id, vocabulary=self.vocabulary, rule=self.spec.replace
            ),
        )

    def _mask_blocks(self, batch: int, device: torch.device) -> Tensor:
        is_masked = torch.zeros(batch, self.grid_h * self.grid_w, dtype=torch.bool, device=device)
        for _ in range(_MAX_BLOCKS):
            missing = self.masked_count - is_masked.sum(dim=1)
            if not bool(missing.any()):
                return is_masked
            new = self._block(missing) & ~is_masked
            is_masked |= new & (new.cumsum(dim=1) <= missing[:, None])
        # Rows where the blocks kept falling on masked patches: fill up with single patches.
        order = (is_masked + torch.rand(is_masked.shape, device=device)).argsort(dim=1, descending=True)
        return order.argsort(dim=1) < self.masked_count

    def _block(self, missing: Tensor) -> Tensor:
        """One random rectangle for every row, (B, N) bool; ``missing`` (B,) bounds its area."""
        draw = torch.rand(4, len(missing), device=missing.device)
        largest = missing.clamp(min=self.spec.min_block_patches).float()
        area = self.spec.min_block_patches + draw[0] * (largest - self.spec.min_block_patches)
        log_aspect = math.log(self.spec.min_aspect) * (2 * draw[1] - 1)
        height = (area * log_aspect.exp()).sqrt().round().clamp(1, self.grid_h)
        width = (area / log_aspect.exp()).sqrt().round().clamp(1, self.grid_w)
        top = (draw[2] * (self.grid_h - height + 1)).floor()
        left = (draw[3] * (self.grid_w - width + 1)).floor()
        rows = torch.arange(self.grid_h, device=missing.device)
        columns = torch.arange(self.grid_w, device=missing.device)
        in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
        return (in_rows[:, :, None] & in_columns[:, None, :]).flatten(1)
