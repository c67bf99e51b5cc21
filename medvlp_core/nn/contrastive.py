"""Contrastive losses that several bundles share: whole pairs, words and patches inside a pair, attended words across pairs.

Every loss is the mean of its two directions; a component that documents their sum doubles it.

With several processes, pairs are contrasted with the pairs of all of them, with gradient, and every mean is weighted so that the
training loop's average is the mean over all pairs: two processes with batch B give the loss and gradients of one with batch 2 B.
Each process scores its own images with the texts of all (docs/design/0012).

Letters: B batch, T texts of all processes (B for a single one), N patches, L words (or tokens), E shared width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from medvlp_core.nn.functional import in_full_precision
from medvlp_core.runtime.distributed import (
    add_over_ranks,
    first_row,
    gather_rows,
    largest_over_ranks,
    local_batch_sizes,
    sum_over_ranks,
    world_size,
)

# --------------------------------------------------------------------------------------------------------------- whole pairs


@in_full_precision
def symmetric_info_nce(image: Tensor, text: Tensor, scale: Tensor | float, is_ignored: Tensor | None = None) -> Tensor:
    """Contrast matching pairs with the rest: ``1/2 [CE(s) + CE(s^T)]``, ``s = scale * image text^T``, targets on the diagonal.

    One pair alone gives 0. ``is_ignored`` marks combinations that are no negatives (equal texts); the pairs are never ignored.

    Shape:
        image, text (B, E), normally L2-normalised; scale a number or scalar tensor; is_ignored (B, T) bool, image by text;
        result a scalar.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
    """
    counts = local_batch_sizes(image)
    return contrast_of_pairs(scale * (image @ gather_rows(text, counts).t()), is_ignored, counts=counts)


def contrast_of_pairs(
    logits: Tensor, is_ignored: Tensor | None = None, is_counted: Tensor | None = None, counts: list[int] | None = None
) -> Tensor:
    """``1/2 [CE(s) + CE(s^T)]`` with the targets on the diagonal, mean over the counted pairs; 0 if none counts.

    Pairs that do not count are neither anchors nor negatives, whatever their logits. Ignored combinations are no negatives.
    ``counts``, from :func:`~medvlp_core.runtime.distributed.local_batch_sizes`, says that the logits are those of own images and
    all texts.

    Shape:
        logits (B, T), is_ignored (B, T) bool, is_counted (B,) bool; T is B without ``counts``; result a scalar.
    """
    if counts is not None and len(counts) > 1:
        return _contrast_over_ranks(logits, is_ignored, is_counted, counts)
    is_pair = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if is_ignored is not None:
        logits = logits.masked_fill(is_ignored & ~is_pair, float("-inf"))
    if is_counted is None:
        is_counted = is_pair.new_ones(len(logits))
    both = is_counted.unsqueeze(0) & is_counted.unsqueeze(1)
    # A pair that does not count sees only itself: its cross-entropy and its gradient are 0.
    logits = torch.where(both, logits, torch.zeros_like(logits).masked_fill(~is_pair, float("-inf")))
    target = torch.arange(len(logits), device=logits.device)
    total = F.cross_entropy(logits, target, reduction="sum") + F.cross_entropy(logits.t(), target, reduction="sum")
    return 0.5 * total / is_counted.sum().clamp(min=1)


def _contrast_over_ranks(logits: Tensor, is_ignored: Tensor | None, is_counted: Tensor | None, counts: list[int]) -> Tensor:
    """:func:`contrast_of_pairs` of own images and all texts. A text's normaliser is the sum of what all processes have for it.

    So (B, T) logits are computed once and serve both directions; between processes go only T numbers for each way.
    """
    own = torch.arange(len(logits), device=logits.device)
    place = own + first_row(counts)
    if is_counted is None:
        is_counted = torch.ones_like(own, dtype=torch.bool)
    is_excluded = ~(is_counted.unsqueeze(1) & gather_rows(is_counted, counts))
    if is_ignored is not None:
        is_ignored = is_ignored.clone()
        is_ignored[own, place] = False
        is_excluded = is_excluded | is_ignored
    # The lowest number and not -inf: a row of nothing else has a finite normaliser and no gradient.
    logits = logits.masked_fill(is_excluded, torch.finfo(logits.dtype).min)
    by_image = logits.logsumexp(dim=1)
    highest = largest_over_ranks(logits.amax(dim=0))
    by_text = highest + add_over_ranks((logits - highest).exp().sum(dim=0)).log()
    found = (by_image + by_text[place] - 2.0 * logits[own, place]).masked_fill(~is_counted, 0.0)
    return 0.5 * _mean_over_pairs(found.sum(), is_counted)


def _mean_over_pairs(total: Tensor, is_counted: Tensor) -> Tensor:
    """``total / counted``; 0 if no pair counts.

    With several processes: ``total / B`` times all pairs over all counted pairs. Weighted with B over all pairs, as the training
    loop does, these add up to the mean over all counted pairs.
    """
    counted = is_counted.sum()
    if world_size() > 1:
        pairs, counted = sum_over_ranks(torch.stack([torch.full_like(counted, len(is_counted)), counted]))
        total = total * pairs / len(is_counted)
    return total / counted.clamp(min=1)


def equal_texts(token_ids: Tensor, text_is_valid: Tensor) -> Tensor:
    """Which of all texts are the same as the own ones, token by token; padding does not count.

    Shape:
        token_ids (B, L) int, text_is_valid (B, L) bool, result (B, T) bool, an own text equals itself.
    """
    ids = token_ids.masked_fill(~text_is_valid, -1)
    counts = local_batch_sizes(ids)
    ids = _as_long_as_any(ids, counts, -1)
    parts = gather_rows(ids, counts).split(counts)
    return torch.cat([(ids.unsqueeze(1) == part.unsqueeze(0)).all(dim=-1) for part in parts], dim=1)


def _as_long_as_any(words: Tensor, counts: list[int], filling: float) -> Tensor:
    """(B, L, ...) with L as in the process with the longest text."""
    if len(counts) == 1:
        return words
    longest = int(largest_over_ranks(torch.tensor([words.shape[1]], device=words.device)))
    missing = words.new_full((len(words), longest - words.shape[1], *words.shape[2:]), filling)
    return torch.cat([words, missing], dim=1)


# ------------------------------------------------------------------------------------------------- words and patches of a pair


def scored_words(text_is_valid: Tensor, word_ids: Tensor, text_is_masked: Tensor | None) -> Tensor:
    """Positions that a local loss looks at: real tokens of words that are not masked, all (B, L); result (B, L) bool."""
    is_scored = text_is_valid & (word_ids >= 0)
    return is_scored if text_is_masked is None else is_scored & ~text_is_masked


def tokenwise_attention(patches: Tensor, words: Tensor, temperature: float) -> Tensor:
    """What each word of :func:`tokenwise_loss` attends to, ``softmax_n(cos(t_j, v_n) / tau)``.

    Shape:
        patches (B, N, E), words (B, L, E), result (B, L, N), rows sum to 1.
    """
    return _attention(F.normalize(words, dim=-1), F.normalize(patches, dim=-1), None, temperature)


@in_full_precision
def tokenwise_loss(patches: Tensor, words: Tensor, is_word: Tensor, temperature: float, is_same: Tensor | None = None) -> Tensor:
    """Contrast inside each pair, both directions: ``L = 1/2 (L_word + L_patch)``, mean over the pairs that have words.

    With words t and patches v of one pair, L2-normalised here, tau the temperature and J words::

        c_j    = normalise(sum_n softmax_n(t_j . v_n / tau) v_n)
        P_jk   = t_j . c_k / tau
        L_word = 1/2 mean_j [CE(P_j., j) + CE(P_.j, j)]

    and L_patch the same with the roles exchanged. Positions that are no words are neither attended to nor negatives.

    Shape:
        patches (B, N, E), words (B, L, E), is_word (B, L) bool, is_same (B, L, L) bool = word k is no negative for word j;
        result a scalar, 0 if no pair has words.

    Reference:
        Wang et al., Multi-Granularity Cross-modal Alignment (MGCA), NeurIPS 2022. Deviations: uniform weights, the attended
        vector is normalised on both sides, padding is no negative, and the factor 1/2 between the sides.
    """
    patches, words = F.normalize(patches, dim=-1), F.normalize(words, dim=-1)
    is_patch = is_word.new_ones(patches.shape[:2])
    by_word = _find_own(words, patches, is_word, is_patch, temperature, is_same)
    by_patch = _find_own(patches, words, is_patch, is_word, temperature, None)
    has_words = is_word.any(dim=1)
    return 0.5 * _mean_over_pairs((by_word + by_patch).masked_fill(~has_words, 0.0).sum(), has_words)


def _find_own(
    units: Tensor, others: Tensor, is_unit: Tensor, is_other: Tensor, temperature: float, is_same: Tensor | None
) -> Tensor:
    """Each unit finds its own attended counterpart among those of its pair, and the reverse: (B,), 0 without a unit."""
    counterparts = F.normalize(_attention(units, others, is_other, temperature) @ others, dim=-1)
    scores = units @ counterparts.transpose(1, 2) / temperature
    is_excluded = ~(is_unit.unsqueeze(2) & is_unit.unsqueeze(1))
    if is_same is not None:
        is_own = torch.eye(units.shape[1], dtype=torch.bool, device=units.device)
        is_excluded = is_excluded | (is_same & ~is_own)
    scores = scores.masked_fill(is_excluded, torch.finfo(scores.dtype).min)
    found = scores.log_softmax(dim=2).diagonal(dim1=1, dim2=2) + scores.log_softmax(dim=1).diagonal(dim1=1, dim2=2)
    return -0.5 * found.masked_fill(~is_unit, 0.0).sum(dim=1) / is_unit.sum(dim=1).clamp(min=1)


def _attention(units: Tensor, others: Tensor, is_other: Tensor | None, temperature: float) -> Tensor:
    products = units @ others.transpose(1, 2) / temperature
    if is_other is not None:
        # The lowest number of the product, which autocast may have made less precise than its factors; not -inf, so that a
        # row without any other stays finite.
        products = products.masked_fill(~is_other.unsqueeze(1), torch.finfo(products.dtype).min)
    return products.softmax(dim=-1)


# ------------------------------------------------------------------------------------------------ attended words across pairs


def gloria_attention(patches: Tensor, words: Tensor, is_word: Tensor, attention_scale: float) -> Tensor:
    """GLoRIA's double softmax inside each pair: ``a_jn = softmax_j(t_j . v_n)``, ``alpha_jn = softmax_n(attention_scale a_jn)``.

    Shape:
        patches (B, N, E), words (B, L, E), is_word (B, L) bool, result (B, L, N), rows sum to 1.
    """
    return _double_softmax(words @ patches.transpose(1, 2), is_word, attention_scale)


def gloria_similarity(patches: Tensor, words: Tensor, is_word: Tensor, *, attention_scale: float, word_scale: float) -> Tensor:
    """How well every report fits every image: ``S_bc = log sum_j exp(word_scale * cos(t_j, c_j))``.

    ``c_j = sum_n alpha_jn v_n`` (:func:`gloria_attention`) is what word j of report c finds in image b. Features are not
    normalised in the attention. Memory grows with B C L (N + E): 321 million attention entries at 256 images and reports, 100
    tokens and 49 patches.

    Shape:
        patches (B, N, E), words (C, L, E), is_word (C, L) bool, result (B, C), image by report; a column without any word
        holds no meaning.
    """
    products = torch.einsum("bne,cje->bcjn", patches, words)
    context = torch.einsum("bcjn,bne->bcje", _double_softmax(products, is_word, attention_scale), patches)
    fit = word_scale * F.cosine_similarity(context, words.unsqueeze(0), dim=-1)
    return fit.masked_fill(~is_word, torch.finfo(fit.dtype).min).logsumexp(dim=-1)


@in_full_precision
def gloria_loss(
    patches: Tensor,
    words: Tensor,
    is_word: Tensor,
    *,
    attention_scale: float,
    word_scale: float,
    logit_scale: float,
    is_same_text: Tensor | None = None,
) -> Tensor:
    """Contrast across pairs on attended words: ``L = 1/2 [CE(s) + CE(s^T)]``, ``s = logit_scale * S`` (:func:`gloria_similarity`).

    Pairs whose report has no word are skipped. With several processes the reports of one process at a time are compared, and
    compared again in backward: memory is that of one process with its own pairs, and of all words.

    Shape:
        patches (B, N, E), words (B, L, E), is_word (B, L) bool, is_same_text (B, T) bool = no negatives; result a scalar,
        0 for a single pair.

    Reference:
        Huang et al., GLoRIA, ICCV 2021. Deviation: the factor 1/2.
    """
    counts = local_batch_sizes(patches)
    scales = {"attention_scale": attention_scale, "word_scale": word_scale}
    if len(counts) == 1:
        similarity = gloria_similarity(patches, words, is_word, **scales)
    else:
        all_words = gather_rows(_as_long_as_any(words, counts, 0.0), counts).split(counts)
        all_are_words = gather_rows(_as_long_as_any(is_word, counts, False), counts).split(counts)
        parts = zip(all_words, all_are_words, strict=True)
        similarity = torch.cat([in_passing(gloria_similarity, patches, *part, **scales) for part in parts], dim=1)
    return contrast_of_pairs(logit_scale * similarity, is_same_text, is_word.any(dim=1), counts)


def in_passing(function: Callable[..., Tensor], *given: Any, **options: Any) -> Tensor:
    """What a function without random numbers gives; nothing inside is kept, backward computes it again."""
    found: Tensor = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False, **options)
    return found


def _double_softmax(products: Tensor, is_word: Tensor, attention_scale: float) -> Tensor:
    """(..., L, N) products, (..., L) words: softmax over the words of each patch, then over patches."""
    lowest = torch.finfo(products.dtype).min
    over_words = products.masked_fill(~is_word.unsqueeze(-1), lowest).softmax(dim=-2)
    return (attention_scale * over_words).softmax(dim=-1)
