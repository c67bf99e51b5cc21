"""``standard.mgca``: global contrast, and contrast of words and patches inside each pair."""

from __future__ import annotations

from torch import Tensor

from medvlp_core import Dims
from medvlp_core.nn import tokenwise_attention, tokenwise_loss
from medvlp_standard.alignment.shared import WordPatchAlignment
from medvlp_standard.specs.alignment import MgcaSpec


class Mgca(WordPatchAlignment):
    """Global: ``CE(s) + CE(s^T)``, ``s = cos(g_v, g_t) / 0.07``. Local: ``L_word + L_patch`` at temperature 0.1.

    L_word and L_patch stand at :func:`medvlp_core.nn.contrastive.tokenwise_loss`. A single pair has a local loss, and the global
    one is 0.

    Reference:
        Wang et al., Multi-Granularity Cross-modal Alignment (MGCA), NeurIPS 2022. Deviations: the prototype loss is left out;
        words and patches count evenly instead of by the encoders' last attention (which is not a port); the attended vector is
        normalised on both sides and padding is no negative (the released code does neither throughout); LayerNorm instead of
        BatchNorm in the projections, so that a pair does not depend on its batch; mean-pooled patches by default.
    """

    def __init__(self, spec: MgcaSpec, dims: Dims) -> None:
        super().__init__(spec, dims, scale=1.0 / spec.temperature)
        self.spec = spec

    def local_loss(self, patches: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
        """The sum of both directions: (B, N, E), (B, L, E), (B, L) bool to a scalar."""
        return 2.0 * tokenwise_loss(patches, words, is_word, self.spec.local_temperature)

    def word_maps(self, patches: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
        """The attention of the local loss, (B, L, N)."""
        return tokenwise_attention(patches, words, self.spec.local_temperature)
