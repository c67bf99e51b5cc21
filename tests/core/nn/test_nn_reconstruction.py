"""Losses of masked patches and words against written-out formulas. The stack itself is tested through the bundles' decoders."""

from __future__ import annotations

import math

import pytest
import torch

from medvlp_core.nn.functional import at_least_float32
from medvlp_core.nn.reconstruction import masked_patch_loss, scored_tokens, word_loss


def test_masked_patch_loss_equals_a_loop_and_is_zero_for_a_perfect_prediction() -> None:
    prediction, target = torch.randn(2, 6, 5).double(), torch.randn(2, 6, 5).double()
    is_masked = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0]]).bool()
    total, count = 0.0, 0
    for b in range(2):
        for n in range(6):
            if is_masked[b, n]:
                total += sum((float(p) - float(t)) ** 2 for p, t in zip(prediction[b, n], target[b, n], strict=True)) / 5
                count += 1
    assert float(masked_patch_loss(prediction, target, is_masked)) == pytest.approx(total / count, rel=1e-12)
    perfect = torch.where(is_masked.unsqueeze(-1), target, prediction)
    assert float(masked_patch_loss(perfect, target, is_masked)) == 0.0
    assert float(masked_patch_loss(prediction, target, torch.zeros_like(is_masked))) == 0.0


@pytest.mark.parametrize(
    ("given_dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_losses_keep_float64_and_widen_half_precision(given_dtype: torch.dtype, wanted: torch.dtype) -> None:
    x = torch.randn(2, 3, 4).to(given_dtype)
    assert at_least_float32(x).dtype is wanted
    assert masked_patch_loss(x, x, torch.ones(2, 3, dtype=torch.bool)).dtype is wanted
    assert word_loss(x[0], torch.tensor([0, 3, 1])).dtype is wanted


def test_word_loss_is_the_mean_cross_entropy_and_zero_without_words() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    rows = [[math.exp(x) for x in row] for row in logits.tolist()]
    wanted = -(math.log(rows[0][2] / sum(rows[0])) + math.log(rows[1][1] / sum(rows[1]))) / 2
    assert float(word_loss(logits, torch.tensor([2, 1])).detach()) == pytest.approx(wanted, rel=1e-12)
    nothing = word_loss(logits[:0], torch.tensor([], dtype=torch.int64))
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_scored_tokens_by_name() -> None:
    is_masked, is_valid = torch.tensor([[False, True, False]]), torch.tensor([[True, True, False]])
    assert torch.equal(scored_tokens("masked", is_masked, is_valid), is_masked)
    assert torch.equal(scored_tokens("nonpad", is_masked, is_valid), is_valid)
    assert scored_tokens("all", is_masked, is_valid).all()
