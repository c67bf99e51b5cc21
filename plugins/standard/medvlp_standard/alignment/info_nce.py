"""``standard.info_nce``: global contrast as in CLIP."""

from __future__ import annotations

from torch import Tensor

from medvlp_core import Dims
from medvlp_core.nn import LearnedScale, Output, equal_texts, symmetric_info_nce
from medvlp_standard.alignment.shared import PooledAlignment
from medvlp_standard.specs.alignment import InfoNceSpec


class InfoNce(PooledAlignment):
    """``L = 1/2 [CE(s) + CE(s^T)]``, ``s_bc = scale * cos(g_v^b, g_t^c)``, scale learned from 1 / 0.07 and at most 100.

    Shape:
        image_tokens (B, S, Di), image_prefix (B, P, Di), text_tokens (B, L, Dt), text_is_valid (B, L),
        token_ids (B, L) where equal texts are ignored; result {"global": scalar}.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision (CLIP), ICML 2021. Additions:
        mean pooling, an MLP projection, and ``same_text: ignore`` for reports that many studies share.
    """

    def __init__(self, spec: InfoNceSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.scale = LearnedScale(spec.temperature)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        token_ids: Tensor | None = None,
        image_prefix: Tensor | None = None,
    ) -> Output:
        """The contrastive loss of a batch; 0 for a single pair."""
        image = self.heads.image(image_tokens, image_prefix)
        text = self.heads.text(text_tokens, text_is_valid)
        is_ignored = None if token_ids is None else equal_texts(token_ids, text_is_valid)
        return Output(losses={"global": symmetric_info_nce(image, text, self.scale(), is_ignored)})
