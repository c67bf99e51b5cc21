"""The local losses of GLA as functions: words and patches inside each pair, or attended words across pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def tokenwise_loss(patches: Tensor, words: Tensor, is_word: Tensor, temperature: float, is_same: Tensor | None = None) -> Tensor:
    """Contrast inside each pair, both directions: ``L = 1/2 (L_word + L_patch)``, mean over the pairs that have words.

    With words t and patches v of one pair, all L2-normalised, tau the temperature and J words::

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
    is_patch = is_word.new_ones(patches.shape[:2])
    by_word = _find_own(words, patches, is_word, is_patch, temperature, is_same)
    by_patch = _find_own(patches, words, is_patch, is_word, temperature, None)
    return _mean_over(0.5 * (by_word + by_patch), is_word.any(dim=1))


def _find_own(
    units: Tensor, others: Tensor, is_unit: Tensor, is_other: Tensor, temperature: float, is_same: Tensor | None
) -> Tensor:
    """Each unit finds its own attended counterpart among those of its pair, and the reverse: (B,)."""
    lowest = torch.finfo(units.dtype).min  # not -inf: rows without any entry must stay finite
    attention = (units @ others.transpose(1, 2) / temperature).masked_fill(~is_other.unsqueeze(1), lowest).softmax(dim=-1)
    counterparts = F.normalize(attention @ others, dim=-1)
    scores = units @ counterparts.transpose(1, 2) / temperature
    is_left_out = ~(is_unit.unsqueeze(2) & is_unit.unsqueeze(1))
    if is_same is not None:
        is_own = torch.eye(units.shape[1], dtype=torch.bool, device=units.device)
        is_left_out = is_left_out | (is_same & ~is_own)
    scores = scores.masked_fill(is_left_out, lowest)
    found = scores.log_softmax(dim=2).diagonal(dim1=1, dim2=2) + scores.log_softmax(dim=1).diagonal(dim1=1, dim2=2)
    return -0.5 * found.masked_fill(~is_unit, 0.0).sum(dim=1) / is_unit.sum(dim=1).clamp(min=1)


def word_to_patch(patches: Tensor, words: Tensor, temperature: float) -> Tensor:
    """The attention of the token-wise loss, ``softmax_n(t_j . v_n / tau)``: (B, N, E), (B, L, E) to (B, L, N)."""
    return (words @ patches.transpose(1, 2) / temperature).softmax(dim=-1)


def gloria_attention(patches: Tensor, words: Tensor, is_word: Tensor, attention_scale: float) -> Tensor:
    """GLoRIA's double softmax: over words for each patch, then over patches, ``alpha_jn = softmax_n(4 softmax_j(v_n . t_j))``.

    Shape:
        patches (..., N, E), words (..., L, E), is_word (..., L) bool, result (..., L, N), rows sum to 1.
    """
    products = words @ patches.transpose(-1, -2)
    over_words = products.masked_fill(~is_word.unsqueeze(-1), torch.finfo(products.dtype).min).softmax(dim=-2)
    return (attention_scale * over_words).softmax(dim=-1)


def gloria_loss(
    patches: Tensor,
    words: Tensor,
    is_word: Tensor,
    scales: tuple[float, float, float],
    is_same_text: Tensor | None = None,
) -> Tensor:
    """Contrast across pairs on attended words: ``L = 1/2 [CE(s3 S) + CE(s3 S^T)]``, ``S_bc = log sum_j exp(s2 cos(t_j, c_j))``.

    ``c_j = sum_n alpha_jn v_n`` is what word j of report c finds in image b (:func:`gloria_attention` with s1); ``scales`` is
    (s1, s2, s3). Features are not normalised in the attention. Pairs whose report has no word are left out. The cost is O(B^2 L N):
    321 million attention entries at batch 256, 100 tokens and 49 patches.

    Shape:
        patches (B, N, E), words (B, L, E), is_word (B, L) bool, is_same_text (B, B) bool = no negatives; result a scalar,
        0 for a single pair.

    Reference:
        Huang et al., GLoRIA, ICCV 2021. Deviations: tokens instead of whole words, and the factor 1/2.
    """
    attention_scale, word_scale, logit_scale = scales
    attention = gloria_attention(patches.unsqueeze(1), words.unsqueeze(0), is_word.unsqueeze(0), attention_scale)
    context = attention @ patches.unsqueeze(1)  # (B images, B reports, L, E)
    fit = word_scale * F.cosine_similarity(context, words.unsqueeze(0), dim=-1)
    lowest = torch.finfo(fit.dtype).min
    has_words = is_word.any(dim=1)
    # A report without words sums over all its positions instead: finite, and left out below.
    is_summed = is_word | ~has_words.unsqueeze(1)
    logits = logit_scale * fit.masked_fill(~is_summed.unsqueeze(0), lowest).logsumexp(dim=-1)
    is_pair = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    is_left_out = ~(has_words.unsqueeze(0) & has_words.unsqueeze(1))
    if is_same_text is not None:
        is_left_out = is_left_out | is_same_text
    logits = logits.masked_fill(is_left_out & ~is_pair, lowest)
    found = logits.log_softmax(dim=1).diagonal() + logits.log_softmax(dim=0).diagonal()
    return _mean_over(-0.5 * found, has_words)


def equal_texts(token_ids: Tensor, text_is_valid: Tensor) -> Tensor:
    """Which texts of a batch hold the same tokens: (B, L), (B, L) to (B, B) bool."""
    ids = token_ids.masked_fill(~text_is_valid, -1)
    return (ids.unsqueeze(0) == ids.unsqueeze(1)).all(dim=-1)


def _mean_over(values: Tensor, is_counted: Tensor) -> Tensor:
    return values.masked_fill(~is_counted, 0.0).sum() / is_counted.sum().clamp(min=1)
