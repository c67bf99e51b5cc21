"""The dropout mask is a good one: share, independence of neighbours, and the same in parts as as a whole."""

from __future__ import annotations

import pytest
import torch
from medvlp_mpma.kernels.dropout import draw_seed, keep_mask, mix


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 0.5, 0.9])
def test_share(dropout_p: float) -> None:
    kept = keep_mask(torch.tensor(2**61 + 12345), range(4), 3, 50, range(500), dropout_p)
    assert kept.shape == (3, 4, 50, 500)
    assert abs(kept.double().mean().item() - (1 - dropout_p)) < 4 * (0.25 / kept.numel()) ** 0.5


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_neighbours_are_independent(axis: int) -> None:
    kept = keep_mask(torch.tensor(77), range(8), 4, 64, range(256), 0.5).double() - 0.5
    size = kept.shape[axis]
    product = 4 * (kept.narrow(axis, 0, size - 1) * kept.narrow(axis, 1, size - 1))
    assert abs(product.mean().item()) < 4 / product.numel() ** 0.5


def test_seeds_give_other_masks() -> None:
    first, second = (keep_mask(torch.tensor(seed), range(2), 2, 64, range(256), 0.5).double() - 0.5 for seed in (1, 2))
    assert abs((4 * first * second).mean().item()) < 4 / first.numel() ** 0.5
    high, low = (keep_mask(torch.tensor(seed), range(2), 2, 64, range(256), 0.5) for seed in (5, 5 + 2**40))
    assert not torch.equal(high, low)


def test_a_part_is_the_part_of_the_whole() -> None:
    whole = keep_mask(torch.tensor(9), range(5), 2, 7, range(11), 0.3)
    part = keep_mask(torch.tensor(9), range(2, 4), 2, 7, range(3, 8), 0.3)
    assert torch.equal(whole[:, 2:4, :, 3:8], part)


def test_mix_is_a_bijection_of_words() -> None:
    words = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int32).unique()
    mixed = mix(words.clone())
    assert len(mixed.unique()) == len(words)
    high_bits = (mixed.long() + 2**31) >> 28
    assert (high_bits.bincount(minlength=16).double() / len(words) - 1 / 16).abs().max() < 0.005


def test_the_seed_comes_from_torch() -> None:
    torch.manual_seed(4)
    first = draw_seed(torch.device("cpu"))
    torch.manual_seed(4)
    assert torch.equal(first, draw_seed(torch.device("cpu")))
    assert not torch.equal(first, draw_seed(torch.device("cpu")))
