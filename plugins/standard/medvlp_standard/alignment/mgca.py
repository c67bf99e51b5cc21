"""``standard.mgca``: global contrast, and contrast of words and patches inside each pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp_core.interfaces import Alignment, Dims
from medvlp_core.ops import symmetric_info_nce
from medvlp_standard.alignment.shared import GlobalHeads, maps_of_tokens, mean_over, projection, scored_positions, word_units
from medvlp_standard.specs.alignment import MgcaSpec


def one_side(units: Tensor, others: Tensor, is_unit: Tensor, is_other: Tensor, temperature: float) -> Tensor:
    """Each unit must find its own counterpart in the other modality among the counterparts of its pair.

    With x the units and y the others, both L2-normalised::

        c_j  = normalise(sum_n softmax_n(x_j . y_n / tau) y_n)
        P_jk = x_j . c_k / tau
        L    = 1/2 mean_j [CE(P_j., j) + CE(P_.j, j)]

    Units that are not valid are no rows and no columns, others that are not valid get no attention.

    Shape:
        units (B, J, E), others (B, N, E), is_unit (B, J), is_other (B, N) bool; result (B,), 0 without a valid unit.
    """
    similarity = units @ others.transpose(1, 2) / temperature
    lowest = torch.finfo(similarity.dtype).min  # of the product: autocast may have lowered its precision
    attention = similarity.masked_fill(~is_other.unsqueeze(1), lowest).softmax(dim=-1)
    counterparts = F.normalize(attention @ others, dim=-1)
    scores = units @ counterparts.transpose(1, 2) / temperature
    scores = scores.masked_fill(~(is_unit.unsqueeze(2) & is_unit.unsqueeze(1)), lowest)
    found = scores.log_softmax(dim=2).diagonal(dim1=1, dim2=2) + scores.log_softmax(dim=1).diagonal(dim1=1, dim2=2)
    return -0.5 * found.masked_fill(~is_unit, 0.0).sum(dim=1) / is_unit.sum(dim=1).clamp(min=1)


def local_loss(patches: Tensor, words: Tensor, is_word: Tensor, temperature: float) -> Tensor:
    """``L_word + L_patch`` (:func:`one_side` both ways), mean over the pairs that have words.

    Shape:
        patches (B, N, E), words (B, J, E), is_word (B, J) bool, result a scalar.
    """
    patches, words = F.normalize(patches, dim=-1), F.normalize(words, dim=-1)
    is_patch = is_word.new_ones(patches.shape[:2])
    by_word = one_side(words, patches, is_word, is_patch, temperature)
    by_patch = one_side(patches, words, is_patch, is_word, temperature)
    return mean_over(by_word + by_patch, is_word.any(dim=1))


class Mgca(Alignment):
    """Global: ``CE(s) + CE(s^T)``, ``s = cos(g_v, g_t) / 0.07``. Local: :func:`local_loss` at temperature 0.1.

    A report without words takes no part in the local loss; a single pair has a local loss, and the global one is 0.

    Shape:
        image_tokens (B, S, Di), image_prefix (B, P, Di), text_tokens (B, L, Dt), text_is_valid, word_ids, text_is_masked (B, L);
        result {"global": scalar, "local": scalar}.

    Reference:
        Wang et al., Multi-Granularity Cross-modal Alignment (MGCA), NeurIPS 2022. Deviations: the prototype loss is left out;
        words and patches count evenly instead of by the encoders' last attention (which is not a port); the attended vector is
        normalised on both sides and padding is no negative (the released code does neither throughout); LayerNorm instead of
        BatchNorm in the projections, so that a pair does not depend on its batch; mean-pooled patches by default.
    """

    def __init__(self, spec: MgcaSpec, dims: Dims) -> None:
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
        """Both losses of a batch."""
        image, text = self.heads.image(image_tokens, image_prefix), self.heads.text(text_tokens, text_is_valid)
        words, is_word = self._words(text_tokens, word_ids, scored_positions(text_is_valid, word_ids, text_is_masked))
        patches = self.patch_projection(image_tokens)
        return {
            "global": 2.0 * symmetric_info_nce(image, text, 1.0 / self.spec.temperature),
            "local": local_loss(patches, words, is_word, self.spec.local_temperature),
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
        """Patch weights of each token's word, ``softmax_n(t_j . v_n / tau)``, (B, L, S); special tokens: equal weights."""
        words, is_word = self._words(text_tokens, word_ids, scored_positions(text_is_valid, word_ids, None))
        patches = F.normalize(self.patch_projection(image_tokens), dim=-1)
        maps = (F.normalize(words, dim=-1) @ patches.transpose(1, 2) / self.spec.local_temperature).softmax(dim=-1)
        return maps_of_tokens(maps, is_word, word_ids, aggregate=self.spec.aggregate_words)

    def _words(self, text_tokens: Tensor, word_ids: Tensor, is_scored: Tensor) -> tuple[Tensor, Tensor]:
        units, is_unit = word_units(text_tokens, word_ids, is_scored, aggregate=self.spec.aggregate_words)
        return self.word_projection(units), is_unit
