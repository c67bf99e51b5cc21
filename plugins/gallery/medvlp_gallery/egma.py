"""``gallery.gaze_alignment``: the losses of EGMA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Alignment, LearnedScale, Output, at_least_float32, contrast_of_pairs, masked_mean
from medvlp_core.runtime import gather_rows, largest_over_ranks, local_batch_sizes
from medvlp_gallery.shared import known_mean
from medvlp_gallery.specs.egma import GazeAlignmentSpec

LOWEST = torch.finfo(torch.float32).min


def multi_label_loss(scores: Tensor, is_positive: Tensor, is_counted: Tensor) -> Tensor:
    """``log(1 + sum_neg e^s) + log(1 + sum_pos e^-s)`` along the last axis; entries that do not count are in neither sum.

    Shape:
        scores (..., K), is_positive and is_counted (..., K) bool, result (...).
    """
    zero = scores.new_zeros(*scores.shape[:-1], 1)
    negatives = scores.masked_fill(is_positive | ~is_counted, LOWEST)
    positives = (-scores).masked_fill(~is_positive | ~is_counted, LOWEST)
    return sum(torch.cat([zero, one], dim=-1).logsumexp(dim=-1) for one in (negatives, positives))  # type: ignore[return-value]


def _mean_valid(values: Tensor, is_valid: Tensor) -> Tensor:
    """Mean over the valid entries of the last axis, 0 without any."""
    return values.masked_fill(~is_valid, 0.0).sum(dim=-1) / is_valid.sum(dim=-1).clamp(min=1)


class GazeAlignment(Alignment):
    """Three losses on the similarities ``X_sn = cos(t_s, v_n)`` of sentences t and patches v; a is the learned scale, h the gaze.

    * ``fine`` (rows with known gaze): ``1/2 [mean_s mlce(a X_s., h_s. > 0) + mean_n mlce(a X_.n, h_.n > 0)]``,
      ``mlce(x, y) = log(1 + sum_{y=0} e^x) + log(1 + sum_{y=1} e^-x)``.
    * ``instance``: with ``I_bc = 1/2 [mean_n max_s X + mean_s max_n X]`` of image b and the sentences of c,
      ``1/2 [CE(a I) + CE(a I^T)]``.
    * ``mapping``: weights ``W_sn = 1[X_sn - min_n X_s. >= (1/N) (max_n X_s. - min_n X_s.)] + h_sn`` (without h where it is
      unknown); patch n as a mean of sentences ``v'_n = sum_s W_sn t_s / sum_s W_sn``, sentence s as a mean of patches
      ``t'_s = sum_n W_sn v_n / sum_n W_sn``; contrast inside each record, of v' with v and of t' with t, means of both directions.

    EGMA's EGF is the mean of the first two, EGM the third: the recipe weights them 0.5, 0.5 and 1.

    Shape:
        image_tokens (B, N, Di), text_tokens (B, S, L, Dt), sentences_is_valid (B, S, L), gaze (B, S, GH, GW), gaze_is_known (B,);
        vectors (B, E): the means of patches and of sentences.

    Reference:
        Ma et al., Eye-gaze Guided Multi-modal Alignment for Medical Representation Learning (EGMA), NeurIPS 2024.
        Reconstruction: the scale a inside the multi-label loss; the threshold of the mapping (a share of 1/N of the row's range);
        that its contrast is inside one record. A sentence's vector is the mean of its tokens.
    """

    def __init__(self, spec: GazeAlignmentSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.image_projection = nn.Linear(dims["Di"], spec.dim, bias=False)
        self.text_projection = nn.Linear(dims["Dt"], spec.dim, bias=False)
        self.scale = LearnedScale(spec.temperature)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        sentences_is_valid: Tensor,
        gaze: Tensor,
        gaze_is_known: Tensor | None = None,
    ) -> Output:
        """The three losses of a batch."""
        patches = at_least_float32(F.normalize(self.image_projection(image_tokens), dim=-1))
        sentences, is_sentence = self._sentences(text_tokens, sentences_is_valid)
        with torch.autocast(patches.device.type, enabled=False):
            scale, found = self.scale(), torch.einsum("bse,bne->bsn", sentences, patches)
            heat = at_least_float32(gaze.flatten(2)) * is_sentence.unsqueeze(-1)
            if gaze_is_known is not None:
                heat = heat * gaze_is_known[:, None, None]
            fine = _fine(scale * found, heat > 0, is_sentence)
            mapping = _mapping(patches, sentences, found, heat, is_sentence, scale)
            losses = {
                "fine": known_mean(fine, is_sentence.any(dim=1) & (True if gaze_is_known is None else gaze_is_known)),
                "instance": _instance(patches, sentences, is_sentence, scale),
                "mapping": known_mean(mapping, is_sentence.any(dim=1)),
            }
        return Output(losses=losses)

    def _sentences(self, text_tokens: Tensor, sentences_is_valid: Tensor) -> tuple[Tensor, Tensor]:
        """L2-normalised vectors of sentences (B, S, E), and which are there (B, S)."""
        pooled = masked_mean(text_tokens.flatten(0, 1), sentences_is_valid.flatten(0, 1)).unflatten(0, text_tokens.shape[:2])
        return at_least_float32(F.normalize(self.text_projection(pooled), dim=-1)), sentences_is_valid.any(dim=-1)

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        """L2-normalised means of patches, (B, E)."""
        return F.normalize(F.normalize(self.image_projection(image_tokens), dim=-1).mean(dim=1), dim=-1)

    def embed_text(self, text_tokens: Tensor, sentences_is_valid: Tensor) -> Tensor:
        """L2-normalised means of sentences, (B, E)."""
        return F.normalize(masked_mean(*self._sentences(text_tokens, sentences_is_valid)), dim=-1).to(text_tokens.dtype)


def _fine(scores: Tensor, is_positive: Tensor, is_sentence: Tensor) -> Tensor:
    """(B, S, N) scores to (B,): over patches for each sentence, and over sentences for each patch."""
    is_counted = is_sentence.unsqueeze(-1).expand_as(is_positive)
    by_sentence = _mean_valid(multi_label_loss(scores, is_positive, is_counted), is_sentence)
    turned = (one.transpose(1, 2) for one in (scores, is_positive, is_counted))
    return 0.5 * (by_sentence + multi_label_loss(*turned).mean(dim=-1))


def _instance(patches: Tensor, sentences: Tensor, is_sentence: Tensor, scale: Tensor) -> Tensor:
    """Contrast of every image with the sentences of every report, also of other processes."""
    counts = local_batch_sizes(patches)
    if len(counts) > 1:  # as many sentences as in the process with the most
        missing = int(largest_over_ranks(torch.tensor([sentences.shape[1]], device=sentences.device))) - sentences.shape[1]
        sentences, is_sentence = F.pad(sentences, (0, 0, 0, missing)), F.pad(is_sentence, (0, missing))
    others, is_other = gather_rows(sentences, counts), gather_rows(is_sentence, counts)
    found = torch.einsum("bne,cse->bcsn", patches, others)
    by_patch = found.masked_fill(~is_other[None, :, :, None], -1.0).amax(dim=2).mean(dim=-1)
    by_sentence = _mean_valid(found.amax(dim=3), is_other.unsqueeze(0).expand(found.shape[:3]))
    return contrast_of_pairs(scale * 0.5 * (by_patch + by_sentence), is_counted=is_sentence.any(dim=1), counts=counts)


def _mapping(patches: Tensor, sentences: Tensor, found: Tensor, heat: Tensor, is_sentence: Tensor, scale: Tensor) -> Tensor:
    """Contrast of patches and sentences with what they are as means of each other, inside each record: (B,)."""
    low, high = found.amin(dim=-1, keepdim=True), found.amax(dim=-1, keepdim=True)
    kept = (found - low >= (high - low) / found.shape[-1]).to(found.dtype)
    weights = ((kept + heat) * is_sentence.unsqueeze(-1)).detach()
    as_sentences = weights.transpose(1, 2) @ sentences / weights.sum(dim=1).clamp(min=1e-6).unsqueeze(-1)
    as_patches = weights @ patches / weights.sum(dim=2).clamp(min=1e-6).unsqueeze(-1)
    is_patch = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
    of_patches = _within(patches, F.normalize(as_sentences, dim=-1), is_patch, scale)
    return 0.5 * (of_patches + _within(sentences, F.normalize(as_patches, dim=-1), is_sentence, scale))


def _within(units: Tensor, mapped: Tensor, is_unit: Tensor, scale: Tensor) -> Tensor:
    """``1/2 mean_j [CE(s_j., j) + CE(s_.j, j)]`` of the units of each record, (B, J, E) to (B,)."""
    logits = (scale * units @ mapped.transpose(1, 2)).masked_fill(~(is_unit.unsqueeze(1) & is_unit.unsqueeze(2)), LOWEST)
    both = logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2) + logits.log_softmax(dim=1).diagonal(dim1=1, dim2=2)
    return -0.5 * _mean_valid(both, is_unit)
