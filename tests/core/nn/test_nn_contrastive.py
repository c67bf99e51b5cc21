"""The shared contrastive losses against slow float64 loops, and under autocast."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medvlp_core.nn.contrastive import (
    contrast_of_pairs,
    equal_texts,
    gloria_attention,
    gloria_loss,
    gloria_similarity,
    scored_words,
    symmetric_info_nce,
    tokenwise_attention,
    tokenwise_loss,
)

GLORIA = {"attention_scale": 4.0, "word_scale": 5.0, "logit_scale": 10.0}


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


# ------------------------------------------------------------------------------------------------------------- whole pairs


@pytest.mark.parametrize("is_ignoring", [False, True])
def test_info_nce_equals_a_float64_loop(is_ignoring: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    is_ignored = torch.zeros(4, 4, dtype=torch.bool)
    if is_ignoring:
        is_ignored[0, 2] = is_ignored[2, 0] = True
        is_ignored.fill_diagonal_(True)  # the pair itself must survive
    total = 0.0
    for b in range(4):
        for rows, columns in ((image, text), (text, image)):
            scores = [3.0 * float(rows[b] @ columns[c]) for c in range(4)]
            kept = [s for c, s in enumerate(scores) if c == b or not bool(is_ignored[b, c])]
            total += math.log(sum(math.exp(s) for s in kept)) - scores[b]
    got = symmetric_info_nce(image, text, 3.0, is_ignored)
    assert float(got) == pytest.approx(0.5 * total / 4, rel=1e-12)


def test_info_nce_of_one_pair_is_zero_with_finite_gradient() -> None:
    image = torch.randn(1, 5, requires_grad=True)
    loss = symmetric_info_nce(image, torch.randn(1, 5), 14.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_pairs_that_do_not_count_are_neither_anchors_nor_negatives() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64)
    kept = contrast_of_pairs(logits[[0, 2, 3]][:, [0, 2, 3]])
    logits[1] = float("-inf")  # what a report without words may give
    logits.requires_grad_()
    loss = contrast_of_pairs(logits, is_counted=torch.tensor([True, False, True, True]))
    torch.testing.assert_close(loss, kept)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[1].any()
    assert not logits.grad[:, 1].any()
    assert float(contrast_of_pairs(logits, is_counted=torch.zeros(4, dtype=torch.bool)).detach()) == 0.0


def test_equal_texts_are_found_whatever_stands_in_their_padding() -> None:
    ids = torch.tensor([[2, 7, 8, 0], [2, 7, 8, 5], [2, 7, 9, 0], [2, 7, 0, 0]])
    is_valid = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    wanted = torch.eye(4).bool()
    wanted[0, 1] = wanted[1, 0] = True
    assert torch.equal(equal_texts(ids, is_valid), wanted)


def test_scored_words_are_real_visible_and_not_special() -> None:
    word_ids = torch.tensor([[-1, 0, 1, 2]])
    is_valid = torch.tensor([[True, True, True, False]])
    assert scored_words(is_valid, word_ids, None).tolist() == [[False, True, True, False]]
    assert scored_words(is_valid, word_ids, torch.tensor([[False, True, False, False]])).tolist() == [[False, False, True, False]]


# ------------------------------------------------------------------------------------------------------------- token-wise


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def one_side_by_loops(units: Tensor, others: Tensor, tau: float, ids: list[int] | None = None) -> float:
    counterparts = []
    for x in units:
        weights = softmax([float(x @ y) / tau for y in others])
        mixed = sum(weight * y for weight, y in zip(weights, others, strict=True))
        assert isinstance(mixed, Tensor)
        counterparts.append(mixed / mixed.norm())
    total, count = 0.0, len(units)
    for j in range(count):
        allowed = [k for k in range(count) if k == j or ids is None or ids[k] != ids[j]]
        own = float(units[j] @ counterparts[j]) / tau
        row = sum(math.exp(float(units[j] @ counterparts[k]) / tau) for k in allowed)
        column = sum(math.exp(float(units[k] @ counterparts[j]) / tau) for k in allowed)
        total += 0.5 * (math.log(row) - own + math.log(column) - own)
    return total / count


def test_tokenwise_equals_loops() -> None:
    patches, words = unit(3, 4, 6), unit(3, 5, 6)
    is_word = torch.tensor([[0, 1, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    wanted = [
        0.5 * (one_side_by_loops(words[b][is_word[b]], patches[b], 0.1) + one_side_by_loops(patches[b], words[b][is_word[b]], 0.1))
        for b in (0, 1)
    ]
    found = tokenwise_loss(patches, words, is_word, 0.1)
    assert found.item() == pytest.approx(sum(wanted) / 2, rel=1e-10), "the report without words does not count"


def test_tokenwise_without_the_same_word_as_a_negative_equals_loops() -> None:
    patches, words = unit(1, 4, 6), unit(1, 4, 6, seed=3)
    ids = torch.tensor([[7, 9, 7, 7]])
    is_word = torch.ones(1, 4, dtype=torch.bool)
    found = tokenwise_loss(patches, words, is_word, 0.2, ids.unsqueeze(1) == ids.unsqueeze(2))
    wanted = 0.5 * (one_side_by_loops(words[0], patches[0], 0.2, [7, 9, 7, 7]) + one_side_by_loops(patches[0], words[0], 0.2))
    assert found.item() == pytest.approx(wanted, rel=1e-10)
    assert found < tokenwise_loss(patches, words, is_word, 0.2)


# ------------------------------------------------------------------------------------------------------------------ gloria


def gloria_by_loops(patches: Tensor, words: Tensor, is_word: Tensor, same: Tensor | None = None) -> float:
    kept = [b for b in range(len(words)) if is_word[b].any()]
    scores = {}
    for b in kept:
        for c in kept:
            report, image = words[c][is_word[c]], patches[b]
            over_words = [softmax([float(v @ t) for t in report]) for v in image]
            fits = []
            for j, t in enumerate(report):
                weights = softmax([4.0 * over_words[n][j] for n in range(len(image))])
                context = sum(weight * v for weight, v in zip(weights, image, strict=True))
                assert isinstance(context, Tensor)
                fits.append(5.0 * float(t @ context / (t.norm() * context.norm())))
            scores[b, c] = 10.0 * math.log(sum(math.exp(fit) for fit in fits))
    total = 0.0
    for b in kept:
        allowed = [c for c in kept if c == b or same is None or not same[b, c]]
        for row in ([scores[b, c] for c in allowed], [scores[c, b] for c in allowed]):
            highest = max(row)
            total += 0.5 * (highest + math.log(sum(math.exp(value - highest) for value in row)) - scores[b, b])
    return total / len(kept)


@pytest.mark.parametrize("ignores_equal_texts", [False, True])
def test_gloria_equals_loops(ignores_equal_texts: bool) -> None:
    torch.manual_seed(0)
    patches, words = torch.randn(4, 5, 6).double(), torch.randn(4, 3, 6).double()
    is_word = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
    same = torch.eye(4).bool()
    same[0, 3] = same[3, 0] = True
    found = gloria_loss(patches, words, is_word, **GLORIA, is_same_text=same if ignores_equal_texts else None)
    wanted = gloria_by_loops(patches, words, is_word, same if ignores_equal_texts else None)
    assert found.item() == pytest.approx(wanted, rel=1e-10)


# -------------------------------------------------------------------------------------------------------------------- both


def test_aligned_pairs_score_better_than_shuffled_ones() -> None:
    torch.manual_seed(0)
    units = torch.nn.functional.normalize(torch.randn(3, 4, 16).double(), dim=-1) * 4
    is_word = torch.ones(3, 4).bool()
    aligned = 10 * gloria_similarity(units, units, is_word, attention_scale=4.0, word_scale=5.0)
    shuffled = 10 * gloria_similarity(units, units.roll(1, 0), is_word, attention_scale=4.0, word_scale=5.0)
    assert float(contrast_of_pairs(aligned)) < 0.5 * float(contrast_of_pairs(shuffled))
    assert float(tokenwise_loss(units, units, is_word, 0.1)) < 0.5 * float(tokenwise_loss(units, units.roll(1, 0), is_word, 0.1))


def test_attention_of_words_sums_to_one() -> None:
    torch.manual_seed(0)
    patches, words = torch.randn(2, 5, 6).double(), torch.randn(2, 3, 6).double()
    is_word = torch.tensor([[True, True, False], [False] * 3])
    ones = torch.ones(2, 3).double()
    torch.testing.assert_close(gloria_attention(patches, words, is_word, 4.0).sum(dim=-1), ones)
    maps = tokenwise_attention(patches, words, 0.1)
    torch.testing.assert_close(maps.sum(dim=-1), ones)
    torch.testing.assert_close(tokenwise_attention(3.0 * patches, 2.0 * words, 0.1), maps)  # directions alone matter


def test_local_losses_take_float32_features_under_bf16_autocast() -> None:
    # Autocast multiplies in bf16 what it normalised in float32: the fill value must fit the product.
    torch.manual_seed(0)
    patches, words = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    is_word = torch.tensor([[True, True, False], [False] * 3])
    is_same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]]).expand(2, 3, 3)

    def losses() -> Tensor:
        pair = tokenwise_loss(patches, words, is_word, 0.1, is_same)
        return torch.stack([pair, gloria_loss(patches, words.roll(1, 0), is_word.roll(1, 0), **GLORIA)])

    with torch.autocast("cpu", torch.bfloat16):
        found = losses()
        fit = gloria_similarity(patches, words, is_word, attention_scale=4.0, word_scale=5.0)
        gloria_attention(patches, words, is_word, 4.0)
    torch.testing.assert_close(found.float(), losses(), rtol=0.05, atol=0.05)
    wanted = gloria_similarity(patches, words, is_word, attention_scale=4.0, word_scale=5.0)
    torch.testing.assert_close(fit[:, 0].float(), wanted[:, 0], rtol=0.05, atol=0.05)
    found.sum().backward()
    assert patches.grad is not None
    assert words.grad is not None
    assert patches.grad.isfinite().all()
    assert words.grad.isfinite().all()
