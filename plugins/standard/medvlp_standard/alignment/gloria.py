"""``standard.gloria``: global contrast, and local contrast of words with the regions they attend to."""

from __future__ import annotations

from torch import Tensor

from medvlp_core import Dims
from medvlp_core.nn import gloria_attention, gloria_loss
from medvlp_standard.alignment.shared import WordPatchAlignment
from medvlp_standard.specs.alignment import GloriaSpec


class Gloria(WordPatchAlignment):
    """Global: ``CE(s) + CE(s^T)``, ``s = 10 cos(g_v, g_t)``. Local: the same with ``s = 10 S``.

    S is :func:`medvlp_core.nn.contrastive.gloria_similarity`. The dot product of its attention uses features as they are, not
    normalised. A single pair has the losses 0.

    Reference:
        Huang et al., GLoRIA, ICCV 2021. Deviations: any encoder instead of ResNet-50; the text encoder's last layer instead of
        the sum of its last four.
    """

    def __init__(self, spec: GloriaSpec, dims: Dims) -> None:
        super().__init__(spec, dims, scale=spec.logit_scale)
        self.spec = spec

    def local_loss(self, patches: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
        """The sum of both directions: (B, N, E), (B, L, E), (B, L) bool to a scalar."""
        return 2.0 * gloria_loss(
            patches,
            words,
            is_word,
            attention_scale=self.spec.attention_scale,
            word_scale=self.spec.word_scale,
            logit_scale=self.spec.logit_scale,
        )

    def word_maps(self, patches: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
        """GLoRIA's double softmax, (B, L, N)."""
        return gloria_attention(patches, words, is_word, self.spec.attention_scale)
