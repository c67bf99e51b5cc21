"""The shared maths against loops, float64 and invariants."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_core.errors import DataError, SpecError
from medvlp_core.nn import functional as ops

sizes = st.integers(1, 4)


def test_masked_mean_averages_only_valid_positions() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, math.nan]]])
    is_valid = torch.tensor([[True, True, False]])
    assert torch.equal(ops.masked_mean(x, is_valid), torch.tensor([[2.0, 4.0]]))


def test_masked_mean_of_an_empty_row_is_zero_with_zero_gradient() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    is_valid = torch.tensor([[False, False, False], [True, False, True]])
    mean = ops.masked_mean(x, is_valid)
    mean.sum().backward()
    assert torch.equal(mean[0], torch.zeros(4))
    assert x.grad is not None
    assert torch.equal(x.grad[0], torch.zeros(3, 4))
    assert torch.equal(x.grad[1], torch.tensor([0.5, 0.0, 0.5])[:, None].expand(3, 4))


@settings(deadline=None, max_examples=25)
@given(batch=sizes, channels=sizes, grid_h=sizes, grid_w=sizes, patch_h=sizes, patch_w=sizes)
def test_unpatchify_undoes_patchify(batch: int, channels: int, grid_h: int, grid_w: int, patch_h: int, patch_w: int) -> None:
    image = torch.randn(batch, channels, grid_h * patch_h, grid_w * patch_w)
    patches = ops.patchify(image, grid_h, grid_w)
    assert patches.shape == (batch, grid_h * grid_w, patch_h * patch_w * channels)
    assert torch.equal(ops.unpatchify(patches, grid_h, grid_w, channels, patch_h, patch_w), image)


def test_patchify_is_raster_order_with_the_channel_last() -> None:
    image = torch.randn(1, 3, 4, 6)
    patches = ops.patchify(image, 2, 2)
    second_row_first_patch = image[0, :, 2:4, 0:3]
    assert torch.equal(patches[0, 2], second_row_first_patch.permute(1, 2, 0).reshape(-1))


def test_patchify_refuses_a_grid_that_does_not_divide_the_image() -> None:
    with pytest.raises(DataError, match=r"MV505.*10 x 8 pixels.*3 x 4 patches"):
        ops.patchify(torch.zeros(1, 1, 10, 8), 3, 4)
    with pytest.raises(DataError, match=r"MV505.*expected \(B, 4, 12\)"):
        ops.unpatchify(torch.zeros(1, 4, 11), 2, 2, 3, 2, 2)


def test_normalised_patches_follow_the_formula_with_the_unbiased_variance() -> None:
    patches = torch.randn(2, 3, 8, dtype=torch.float64) * 5 + 2
    patches[0, 0] = 4.0  # a constant patch must not divide by zero
    got = ops.normalise_patches(patches)
    for b in range(2):
        for n in range(3):
            row = patches[b, n].tolist()
            mean = sum(row) / 8
            variance = sum((x - mean) ** 2 for x in row) / 7
            wanted = torch.tensor([(x - mean) / math.sqrt(variance + 1e-6) for x in row], dtype=torch.float64)
            torch.testing.assert_close(got[b, n], wanted)
    assert torch.equal(ops.normalise_patches(torch.full((1, 1, 1), 3.0)), torch.zeros(1, 1, 1))


@settings(deadline=None, max_examples=25)
@given(batch=sizes, patches=st.integers(1, 9), data=st.data())
def test_reconstruct_masked_equals_a_loop(batch: int, patches: int, data: st.DataObject) -> None:
    visible = data.draw(st.integers(1, patches))
    image_is_masked = ops.random_patch_mask(batch, patches, visible, torch.device("cpu"))
    tokens, mask_token = torch.randn(batch, visible, 3), torch.randn(3)
    reconstructed = ops.insert_mask_tokens(tokens, image_is_masked, mask_token)
    for b in range(batch):
        remaining = iter(tokens[b])
        for n in range(patches):
            wanted = mask_token if image_is_masked[b, n] else next(remaining)
            assert torch.equal(reconstructed[b, n], wanted)


def test_reconstruct_masked_keeps_the_dtype_of_the_tokens() -> None:
    is_masked = torch.tensor([[True, False]])
    assert ops.insert_mask_tokens(torch.ones(1, 1, 2).bfloat16(), is_masked, torch.zeros(2)).dtype is torch.bfloat16


def test_sincos_positions_against_a_loop() -> None:
    got = ops.sincos_positions_2d(8, 2, 3)
    assert got.shape == (6, 8)
    for row in range(2):
        for column in range(3):
            wanted: list[float] = []
            for place in (column, row):
                angles = [place / 10000 ** (i / 2) for i in range(2)]
                wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(got[row * 3 + column], torch.tensor(wanted))


def test_sincos_positions_name_widths_that_work() -> None:
    with pytest.raises(SpecError, match=r"found 30\n    hint: use a width of 28 or 32"):
        ops.sincos_positions_2d(30, 2, 2)


def test_visible_count_is_maes_rule_and_never_zero() -> None:
    assert ops.visible_count(196, 0.75) == 49
    assert ops.visible_count(196, 0.0) == 196
    assert ops.visible_count(100, 0.9) == 10
    assert ops.visible_count(4, 0.99) == 1


def test_units_number_words_and_single_tokens() -> None:
    word_ids = torch.tensor([[-1, 0, 0, 1, -1, -1], [-1, -1, -1, -1, -1, -1]])
    assert ops.unit_index(word_ids).tolist() == [[0, 1, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]


def test_word_pieces_are_summed_and_dropped_pieces_skipped() -> None:
    tokens = torch.arange(1.0, 7.0).reshape(1, 6, 1)
    word_ids = torch.tensor([[-1, 0, 0, 1, 2, -1]])
    is_scored = torch.tensor([[False, True, True, False, True, False]])
    words, is_word = ops.sum_word_pieces(tokens, word_ids, is_scored)
    assert words[0, :, 0].tolist() == [0.0, 5.0, 0.0, 5.0, 0.0, 0.0]
    assert is_word[0].tolist() == [False, True, False, True, False, False]


def test_a_full_sequence_keeps_its_tokens_and_masked_ones_are_marked() -> None:
    tokens, mask_token = torch.randn(1, 3, 2), torch.randn(2)
    reconstructed = ops.insert_mask_tokens(tokens, torch.tensor([[True, False, True]]), mask_token)
    assert torch.equal(reconstructed, torch.stack([tokens[0, 0] + mask_token, tokens[0, 1], tokens[0, 2] + mask_token])[None])
