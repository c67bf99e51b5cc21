"""Paired masking: exact counts, whole words, no complete item."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_mpma.masking import PairedMasking
from medvlp_mpma.specs import PairedMaskingSpec
from torch import Tensor

from medvlp_core.nn.batch import MaskPlan

MASK_ID = 3


def draw(spec: PairedMaskingSpec, word_ids: Tensor, side: int = 14) -> MaskPlan:
    masking = PairedMasking(spec, {"GH": side, "GW": side, "Mask": MASK_ID})
    token_ids = torch.arange(word_ids.numel()).reshape(word_ids.shape) + 10
    return masking(token_ids=token_ids, text_is_valid=is_valid(word_ids), word_ids=word_ids)


def is_valid(word_ids: Tensor) -> Tensor:
    """Everything up to the last word, and position 0."""
    real = word_ids.flip(1).ge(0).cummax(dim=1).values.flip(1)
    real[:, 0] = True
    return real


def report(*pieces_of_words: int, length: int) -> list[int]:
    """Word ids of [CLS], words of so many pieces, padding."""
    ids = [-1] + [word for word, pieces in enumerate(pieces_of_words) for _ in range(pieces)]
    return ids + [-1] * (length - len(ids))


def test_49_of_196_patches_stay_visible_in_every_image() -> None:
    torch.manual_seed(0)
    plan = draw(PairedMaskingSpec(), torch.tensor([report(1, 2, length=5)] * 6))
    assert plan.image_is_masked.shape == (6, 196)
    assert plan.image_is_masked.sum(dim=1).tolist() == [147] * 6
    assert len({tuple(row.tolist()) for row in plan.image_is_masked}) == 6, "every image has its own mask"


@settings(deadline=None, max_examples=40)
@given(
    words=st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=4),
    ratio=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_whole_words_only_and_at_least_one(words: list[list[int]], ratio: float, seed: int) -> None:
    torch.manual_seed(seed)
    word_ids = torch.tensor([report(*pieces, length=14) for pieces in words])
    plan = draw(PairedMaskingSpec(text_ratio=ratio, image_ratio=0.5), word_ids, side=2)
    for row, pieces in enumerate(words):
        masked = plan.text_is_masked[row]
        assert not masked[word_ids[row] < 0].any(), "special tokens and padding are never masked"
        split = [word for word in range(len(pieces)) if len(set(masked[word_ids[row] == word].tolist())) > 1]
        assert split == []
        assert bool(masked.any()) is (bool(pieces) and ratio > 0)
        if ratio == 1.0:
            assert int(masked.sum()) == sum(pieces)
    assert torch.equal(plan.token_ids == MASK_ID, plan.text_is_masked), "always [MASK], and nothing else changes"


def test_the_share_of_masked_words_is_the_ratio() -> None:
    torch.manual_seed(0)
    plan = draw(PairedMaskingSpec(text_ratio=0.3), torch.tensor([report(*[1] * 100, length=101)] * 50), side=2)
    assert abs(plan.text_is_masked[:, 1:].float().mean().item() - 0.3) < 0.03


def test_the_word_that_saves_a_complete_report_is_any_word() -> None:
    torch.manual_seed(0)
    word_ids = torch.tensor([report(1, 1, 1, length=4)] * 300)
    plan = draw(PairedMaskingSpec(text_ratio=1e-6), word_ids, side=2)
    assert plan.text_is_masked.sum(dim=1).tolist() == [1] * 300
    counts = plan.text_is_masked.sum(dim=0)[1:]
    assert counts.min() > 60, "each of the three words is chosen about 100 times"


def test_the_last_position_may_be_masked() -> None:
    # MRM never hides it; this masking does (docs/mpma.md).
    torch.manual_seed(0)
    assert draw(PairedMaskingSpec(), torch.tensor([report(1, length=2)]), side=2).text_is_masked[0, 1]
