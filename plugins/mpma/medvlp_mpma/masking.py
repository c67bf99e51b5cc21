"""Paired masking: both items of every pair are masked in part, in one plan."""

from __future__ import annotations

import torch
from torch import Tensor

from medvlp_core import Dims
from medvlp_core.nn import Masking, MaskPlan, random_patch_mask, random_word_mask, unit_index, visible_count
from medvlp_mpma.specs import PairedMaskingSpec


class PairedMasking(Masking):
    """Masks a fixed count of random patches and each whole word with a probability, always as [MASK].

    "Paired" is taken to mean that no pair enters with a complete item: a report that has words but drew none gets one masked, each
    word equally likely. Special tokens and padding are never masked.

    Shape:
        token_ids (B, L) int, text_is_valid (B, L) bool, word_ids (B, L) int; image_is_masked (B, N) bool with the same count in
        every row, text_is_masked (B, L) bool.

    Reference:
        Zhang et al., Multi-task Paired Masking with Alignment Modeling, arXiv 2305.07920 (abstract). The ratios and the rule that
        pieces follow their word are those of Zhou et al., MRM, ICLR 2023. Deviations from MRM: at least one word is masked, and
        its rule that the last position is never masked is not kept.
    """

    def __init__(self, spec: PairedMaskingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.patches = dims["GH"] * dims["GW"]
        self.visible = visible_count(self.patches, spec.image_ratio)
        self.text_ratio = spec.text_ratio
        self.mask_id = dims["Mask"]

    def forward(self, token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> MaskPlan:
        """Draw a plan for one batch."""
        is_masked = random_word_mask(word_ids, text_is_valid, self.text_ratio, whole_words=True)
        if self.text_ratio > 0:
            is_complete = ~is_masked.any(dim=1, keepdim=True)
            is_masked = is_masked | (is_complete & _one_random_word(word_ids, text_is_valid))
        return MaskPlan(
            image_is_masked=random_patch_mask(len(token_ids), self.patches, self.visible, token_ids.device),
            text_is_masked=is_masked,
            token_ids=token_ids.masked_fill(is_masked, self.mask_id),
        )


def _one_random_word(word_ids: Tensor, text_is_valid: Tensor) -> Tensor:
    """All pieces of one random word of each report: (B, L) bool, a row of False where there are no words."""
    # Pieces of a word share their draw, so the lowest draw of a report marks exactly one word.
    draws = torch.rand(word_ids.shape, device=word_ids.device).gather(1, unit_index(word_ids))
    is_word = (word_ids >= 0) & text_is_valid
    draws = draws.masked_fill(~is_word, 2.0)
    return is_word & (draws == draws.amin(dim=1, keepdim=True))
