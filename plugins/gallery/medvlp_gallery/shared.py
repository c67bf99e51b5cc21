"""What several systems of the gallery share: means over known rows, and vectors that contrasts compare."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Alignment, LearnedScale, Output, Part, masked_mean, symmetric_info_nce
from medvlp_core.runtime import sum_over_ranks, world_size
from medvlp_gallery.specs.eclip import AppendedContrastSpec
from medvlp_gallery.specs.medclip import SemanticMatchingSpec
from medvlp_gallery.specs.shared import AttentionPoolSpec, VectorContrastSpec


def known_mean(values: Tensor, is_known: Tensor | None) -> Tensor:
    """``sum_b known_b x_b / max(1, sum_b known_b)``, over the rows of all processes.

    Weighted with its rows, as the training loop does, the numbers of all processes add up to the mean over all known rows.

    Shape:
        values (B,), is_known (B,) bool or None (all), result a scalar.
    """
    if is_known is None:
        return values.mean()
    total, counted = values.masked_fill(~is_known, 0.0).sum(), is_known.sum()
    if world_size() > 1:
        rows, counted = sum_over_ranks(torch.stack([torch.full_like(counted, len(is_known)), counted]))
        total = total * rows / len(is_known)
    return total / counted.clamp(min=1)


class VectorContrast(Alignment):
    """``L = 1/2 [CE(s) + CE(s^T)]``, ``s_bc = scale * cos(W mean_s(v_bs), U t_c)``; the scale is learned and at most 100.

    Shape:
        image_vectors (B, S, Di), other_vector (B, Dt); result {"global": scalar}, vectors (B, E).

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision (CLIP), ICML 2021. The vector of the
        other side is called ``text_embedding``, as every alignment's, whatever it is made of.
    """

    def __init__(self, spec: VectorContrastSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.image_projection = nn.Linear(dims["Di"], spec.dim, bias=False)
        self.other_projection = nn.Linear(dims["Dt"], spec.dim, bias=False)
        self.scale = LearnedScale(spec.temperature)

    def forward(self, image_vectors: Tensor, other_vector: Tensor) -> Output:
        """The loss of a batch."""
        image, other = self.embed_image(image_vectors), self.embed_text(other_vector)
        return Output(losses={"global": symmetric_info_nce(image, other, self.scale())})

    def embed_image(self, image_vectors: Tensor) -> Tensor:
        """L2-normalised image vectors, (B, E)."""
        return F.normalize(self.image_projection(image_vectors.mean(dim=1)), dim=-1)

    def embed_text(self, other_vector: Tensor) -> Tensor:
        """L2-normalised vectors of the other side, (B, E)."""
        return F.normalize(self.other_projection(other_vector), dim=-1)


class MeanEmbeddings(Alignment):
    """Mean of the patch tokens and mean of the valid text tokens, projected without bias and L2-normalised, and a learned scale.

    What the vectors are compared by is the ``forward`` of a subclass.

    Shape:
        image_tokens (B, S, Di), text_tokens (B, L, Dt), text_is_valid (B, L) bool; vectors (B, E).
    """

    def __init__(self, spec: AppendedContrastSpec | SemanticMatchingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.image_projection = nn.Linear(dims["Di"], spec.dim, bias=False)
        self.text_projection = nn.Linear(dims["Dt"], spec.dim, bias=False)
        self.scale = LearnedScale(spec.temperature)

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        """L2-normalised image vectors, (B, E)."""
        return F.normalize(self.image_projection(image_tokens.mean(dim=1)), dim=-1)

    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        """L2-normalised text vectors, (B, E)."""
        return F.normalize(self.text_projection(masked_mean(text_tokens, text_is_valid)), dim=-1)


class AttentionPool(Part):
    """Learned queries attend to tokens: ``p = LN(softmax(q (W x)^T / sqrt(D/K)) (U x) Wo)`` with K heads.

    Shape:
        tokens (B, S, D), result (B, Q, D).

    Reference:
        Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models, TMLR 2022 (attentional pooling).
    """

    def __init__(self, spec: AttentionPoolSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        width = dims["D"]
        self.queries = nn.Parameter(torch.randn(spec.queries, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, spec.heads, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool the tokens of each image."""
        queries = self.queries.to(tokens.dtype).expand(len(tokens), -1, -1)
        return self.norm(self.attention(queries, tokens, tokens, need_weights=False)[0])
