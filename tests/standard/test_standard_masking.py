"""Maskings: exact counts, whole words, nothing special masked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_standard.masking import BlockwiseMasking, RandomMasking, replace_tokens
from medvlp_standard.specs.masking import SPECS, BlockwiseMaskingSpec, RandomMaskingSpec

MASK = 4
DIMS = {"GH": 14, "GW": 14, "V": 50, "Mask": MASK}
# [CLS] words of 1, 3, 1, 2 pieces, padding
WORD_IDS = torch.tensor([[-1, 0, 1, 1, 1, 2, 3, 3, -1, -1], [-1, 0, 1, -1, -1, -1, -1, -1, -1, -1]])
IS_VALID = torch.tensor([[True] * 8 + [False] * 2, [True] * 3 + [False] * 7])
TOKEN_IDS = torch.arange(5, 15).expand(2, 10).masked_fill(~IS_VALID, 0).clone()
MODULES = {RandomMaskingSpec: RandomMasking, BlockwiseMaskingSpec: BlockwiseMasking}


def draw(spec: RandomMaskingSpec | BlockwiseMaskingSpec, batch: int = 2, dims: dict[str, int] = DIMS):
    ids, is_valid, word_ids = (x[torch.arange(batch) % 2] for x in (TOKEN_IDS, IS_VALID, WORD_IDS))
    return MODULES[type(spec)](spec, dims)(token_ids=ids, text_is_valid=is_valid, word_ids=word_ids)


def test_three_quarters_of_a_14_grid_leave_49_visible_and_rows_differ() -> None:
    plan = draw(RandomMaskingSpec(image_ratio=0.75), batch=8)
    assert plan.image_is_masked.shape == (8, 196)
    assert ((~plan.image_is_masked).sum(dim=1) == 49).all()
    assert len({tuple(row.tolist()) for row in plan.image_is_masked}) == 8


def test_every_patch_is_masked_equally_often() -> None:
    torch.manual_seed(0)
    plan = draw(RandomMaskingSpec(image_ratio=0.5), batch=4000, dims=DIMS | {"GH": 2, "GW": 4})
    share = plan.image_is_masked.float().mean(dim=0)
    assert ((share - 0.5).abs() < 0.04).all()  # five standard deviations


@settings(deadline=None, max_examples=40)
@given(
    grid_h=st.integers(1, 9),
    grid_w=st.integers(1, 9),
    ratio=st.floats(0, 0.999),
    min_block=st.integers(1, 30),
    aspect=st.floats(0.05, 1.0),
    batch=st.integers(1, 5),
)
def test_blockwise_masks_exactly_the_rounded_share_in_every_row(
    grid_h: int, grid_w: int, ratio: float, min_block: int, aspect: float, batch: int
) -> None:
    spec = BlockwiseMaskingSpec(image_ratio=ratio, min_block_patches=min_block, min_aspect=aspect)
    plan = draw(spec, batch, DIMS | {"GH": grid_h, "GW": grid_w})
    patches = grid_h * grid_w
    assert plan.image_is_masked.sum(dim=1).tolist() == [min(round(patches * ratio), patches - 1)] * batch


def neighbours_alike(image_is_masked: torch.Tensor) -> float:
    grid = image_is_masked.reshape(-1, 14, 14)
    return float((grid[:, :, 1:] == grid[:, :, :-1]).float().mean())


def test_blocks_hang_together_and_random_patches_do_not() -> None:
    torch.manual_seed(0)
    blocks = draw(BlockwiseMaskingSpec(image_ratio=0.4), batch=64).image_is_masked
    single = draw(RandomMaskingSpec(image_ratio=0.4), batch=64).image_is_masked
    assert neighbours_alike(single) == pytest.approx(0.6**2 + 0.4**2, abs=0.03)
    assert neighbours_alike(blocks) > 0.75


def test_one_wanted_block_is_a_rectangle() -> None:
    torch.manual_seed(0)
    module = BlockwiseMasking(BlockwiseMaskingSpec(min_block_patches=16), DIMS)
    for row in module._block(torch.full((20,), 16)).reshape(-1, 14, 14):
        rows, columns = row.any(dim=1), row.any(dim=0)
        assert torch.equal(row, rows[:, None] & columns[None, :])
        assert 8 <= int(row.sum()) <= 24
        for side in (rows, columns):  # one run without a hole
            places = side.nonzero().flatten()
            assert int(places[-1] - places[0]) + 1 == len(places)


@pytest.mark.parametrize("spec_class", SPECS)
@pytest.mark.parametrize("unit", ["token", "whole_word"])
def test_special_tokens_and_padding_stay_and_only_masked_ids_change(spec_class: type, unit: str) -> None:
    plan = draw(spec_class(text_unit=unit, text_ratio=1.0))
    assert torch.equal(plan.text_is_masked, WORD_IDS >= 0)
    assert torch.equal(plan.token_ids, TOKEN_IDS.masked_fill(WORD_IDS >= 0, MASK))
    plan = draw(spec_class(text_unit=unit, text_ratio=0.0))
    assert not plan.text_is_masked.any()
    assert torch.equal(plan.token_ids, TOKEN_IDS)


def test_padding_is_never_masked_even_if_its_word_ids_are_wrong() -> None:
    plan = RandomMasking(RandomMaskingSpec(text_ratio=1.0), DIMS)(
        token_ids=TOKEN_IDS, text_is_valid=IS_VALID, word_ids=WORD_IDS.clamp(min=0)
    )
    assert not (plan.text_is_masked & ~IS_VALID).any()


@settings(deadline=None, max_examples=30)
@given(pieces=st.lists(st.integers(1, 4), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_whole_words_are_never_split(pieces: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    word_ids = torch.tensor([[-1] + [word for word, count in enumerate(pieces) for _ in range(count)] + [-1]])
    is_valid = torch.ones_like(word_ids, dtype=torch.bool)
    module = RandomMasking(RandomMaskingSpec(text_unit="whole_word", text_ratio=0.5), DIMS)
    is_masked = module(token_ids=word_ids + 9, text_is_valid=is_valid, word_ids=word_ids).text_is_masked
    for word in range(len(pieces)):
        assert len(set(is_masked[word_ids == word].tolist())) == 1


def test_single_tokens_do_split_words() -> None:
    torch.manual_seed(0)
    plan = draw(RandomMaskingSpec(text_ratio=0.5), batch=64)
    of_three = plan.text_is_masked[::2, 2:5].sum(dim=1)
    assert {1, 2} & set(of_three.tolist())


def test_units_are_masked_with_the_given_probability() -> None:
    torch.manual_seed(0)
    for unit in ("token", "whole_word"):
        plan = draw(RandomMaskingSpec(text_unit=unit, text_ratio=0.3), batch=4000)
        share = plan.text_is_masked[::2, 1:8].float().mean(dim=0)
        assert ((share - 0.3).abs() < 0.06).all()


def test_bert_replacement_is_80_10_10_on_masked_tokens_only() -> None:
    torch.manual_seed(0)
    token_ids = torch.full((200, 200), 7)
    is_masked = torch.zeros_like(token_ids, dtype=torch.bool)
    is_masked[:, ::2] = True
    replaced = replace_tokens(token_ids, is_masked, mask_id=MASK, vocabulary=50, rule="bert")
    assert (replaced[~is_masked] == 7).all()
    masked = replaced[is_masked]
    assert float((masked == MASK).float().mean()) == pytest.approx(0.8 + 0.1 / 50, abs=0.02)
    assert float((masked == 7).float().mean()) == pytest.approx(0.1 + 0.1 / 50, abs=0.02)
    others = masked[(masked != MASK) & (masked != 7)]
    assert set(others.tolist()) == set(range(50)) - {MASK, 7}


def test_the_same_seed_draws_the_same_plan() -> None:
    plans = []
    for _ in range(2):
        torch.manual_seed(3)
        plans.append(draw(BlockwiseMaskingSpec(text_ratio=0.5, replace="bert")))
    assert all(torch.equal(a, b) for a, b in zip(*plans, strict=True))


def test_an_image_cannot_be_masked_completely() -> None:
    for spec_class in SPECS:
        with pytest.raises(ValueError, match=r"image_ratio=1.* must be below 1"):
            spec_class(image_ratio=1.0)
    assert int((~draw(RandomMaskingSpec(image_ratio=0.999)).image_is_masked).sum()) == 2  # one in each of two rows
