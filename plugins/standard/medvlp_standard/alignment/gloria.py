"""``standard.gloria``: global contrast, and local contrast of words with the regions they attend to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp_core.interfaces import Alignment, Dims
from medvlp_core.ops import symmetric_info_nce
from medvlp_standard.alignment.shared import GlobalHeads, maps_of_tokens, mean_over, projection, scored_positions, word_units
from medvlp_standard.specs.alignment import GloriaSpec


def region_weights(similarity: Tensor, is_word: Tensor, attention_scale: float) -> Tensor:
    """The double softmax: ``a_nj = softmax_j(sim_nj)`` over words, then ``alpha_nj = softmax_n(attention_scale * a_nj)``.

    Shape:
        similarity (..., N, J), is_word (..., 1, J) bool, result (..., N, J), columns sum to 1.
    """
    lowest = torch.finfo(similarity.dtype).min
    over_words = similarity.masked_fill(~is_word, lowest).softmax(dim=-1)
    return (attention_scale * over_words).softmax(dim=-2)


def local_similarity(patches: Tensor, words: Tensor, is_word: Tensor, *, attention_scale: float, word_scale: float) -> Tensor:
    """How well every report fits every image: ``S_bc = log sum_j exp(word_scale * cos(t_j, c_j))``.

    ``c_j = sum_n alpha_jn v_n`` is the part of image b that word j of report c attends to. Memory grows with B^2 J (N + E).

    Shape:
        patches (B, N, E), words (B, J, E), is_word (B, J) bool, result (B, B), image by report; a column without any word
        holds no meaning.
    """
    similarity = torch.einsum("bne,cje->bcnj", patches, words)
    weights = region_weights(similarity, is_word[None, :, None, :], attention_scale)
    context = torch.einsum("bcnj,bne->bcje", weights, patches)
    fit = word_scale * F.cosine_similarity(context, words.unsqueeze(0), dim=-1)
    return fit.masked_fill(~is_word.unsqueeze(0), torch.finfo(fit.dtype).min).logsumexp(dim=-1)


def contrast_of_pairs(logits: Tensor, is_counted: Tensor) -> Tensor:
    """``CE(s) + CE(s^T)`` among the counted pairs; pairs that do not count are neither anchors nor negatives.

    Shape:
        logits (B, B), is_counted (B,) bool, result a scalar.
    """
    both = is_counted[:, None] & is_counted[None, :]
    is_pair = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    # Outside the counted pairs: 0 on the diagonal keeps every row's softmax finite, and its cross-entropy is 0.
    logits = torch.where(both, logits, torch.zeros_like(logits).masked_fill(~is_pair, float("-inf")))
    target = torch.arange(len(logits), device=logits.device)
    each = F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.t(), target, reduction="none")
    return mean_over(each, is_counted)


class Gloria(Alignment):
    """Global: ``CE(s) + CE(s^T)``, ``s = 10 cos(g_v, g_t)``. Local: the same with ``s = 10 S`` of :func:`local_similarity`.

    A report without words takes no part in the local loss. The dot product of the attention uses features as they are, not
    normalised. Special and hidden tokens are no words.

    Shape:
        image_tokens (B, S, Di), image_prefix (B, P, Di), text_tokens (B, L, Dt), text_is_valid, word_ids, text_is_masked (B, L);
        result {"global": scalar, "local": scalar}.

    Reference:
        Huang et al., GLoRIA, ICCV 2021. Deviations: any encoder instead of ResNet-50; the text encoder's last layer instead of
        the sum of its last four.
    """

    def __init__(self, spec: GloriaSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec
        self.heads = GlobalHeads(spec, dims)
        self.patch_projection = projection(dims["Di"], spec.dim, spec.projection)
        self.word_projection = projection(dims["Dt"], spec.dim, spec.projection)

    def forward(  # type: ignore[override]
        self,
        image_tokens: Tensor,
        image_prefix: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        word_ids: Tensor,
        text_is_masked: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Both losses of a batch; 0 for a single pair."""
        image, text = self.heads.image(image_tokens, image_prefix), self.heads.text(text_tokens, text_is_valid)
        words, is_word = self._words(text_tokens, word_ids, scored_positions(text_is_valid, word_ids, text_is_masked))
        similarity = local_similarity(
            self.patch_projection(image_tokens),
            words,
            is_word,
            attention_scale=self.spec.attention_scale,
            word_scale=self.spec.word_scale,
        )
        return {
            "global": 2.0 * symmetric_info_nce(image, text, self.spec.logit_scale),
            "local": contrast_of_pairs(self.spec.logit_scale * similarity, is_word.any(dim=1)),
        }

    def embed_image(self, image_tokens: Tensor, image_prefix: Tensor) -> Tensor:
        """L2-normalised image vectors, (B, E)."""
        return self.heads.image(image_tokens, image_prefix)

    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> Tensor:
        """L2-normalised text vectors, (B, E)."""
        return self.heads.text(text_tokens, text_is_valid)

    def attention_maps(
        self,
        image_tokens: Tensor,
        image_prefix: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        word_ids: Tensor,
        text_is_masked: Tensor | None = None,
    ) -> Tensor:
        """Region weights of each token's word in its own image, (B, L, S); special tokens: equal weights."""
        words, is_word = self._words(text_tokens, word_ids, scored_positions(text_is_valid, word_ids, None))
        similarity = self.patch_projection(image_tokens) @ words.transpose(1, 2)
        maps = region_weights(similarity, is_word.unsqueeze(1), self.spec.attention_scale).transpose(1, 2)
        return maps_of_tokens(maps, is_word, word_ids, aggregate=self.spec.aggregate_words)

    def _words(self, text_tokens: Tensor, word_ids: Tensor, is_scored: Tensor) -> tuple[Tensor, Tensor]:
        units, is_unit = word_units(text_tokens, word_ids, is_scored, aggregate=self.spec.aggregate_words)
        return self.word_projection(units), is_unit
