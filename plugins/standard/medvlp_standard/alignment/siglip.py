"""``standard.siglip``: every image-text combination judged by itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Output, equal_texts, in_full_precision, in_passing
from medvlp_core.runtime import gather_rows, local_batch_sizes, rank
from medvlp_standard.alignment.shared import PooledAlignment
from medvlp_standard.specs.alignment import SigLipSpec


@in_full_precision
def sigmoid_pair_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, is_ignored: Tensor | None = None) -> Tensor:
    """``-1/B sum_bc log sigmoid(z_bc (scale * x_b . y_c + bias))``, z = 1 where b and c are a pair and -1 elsewhere.

    ``is_ignored`` marks combinations that are no negatives; pairs always count. With several processes, b are the own images and
    c the T texts of all; the texts of one process at a time are judged, and judged again in backward, so that no more than their
    logits live at once.

    Shape:
        image, text (B, E); scale, bias scalars; is_ignored (B, T) bool, image by text; result a scalar.
    """
    counts = local_batch_sizes(image)
    if len(counts) == 1:
        return _sum_of_terms(image, text, scale, bias, is_ignored, has_pairs=True) / len(image)
    texts = gather_rows(text, counts).split(counts)
    ignored = is_ignored.split(counts, dim=1) if is_ignored is not None else [None] * len(counts)
    sums = [
        in_passing(_sum_of_terms, image, one, scale, bias, skipped, has_pairs=process == rank())
        for process, (one, skipped) in enumerate(zip(texts, ignored, strict=True))
    ]
    return torch.stack(sums).sum() / len(image)


def _sum_of_terms(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, is_ignored: Tensor | None, *, has_pairs: bool
) -> Tensor:
    """The sum over all combinations; with ``has_pairs`` the diagonal holds the pairs."""
    logits = scale * (image @ text.t()) + bias
    is_pair = torch.zeros_like(logits, dtype=torch.bool)
    if has_pairs:
        is_pair.fill_diagonal_(True)
    terms = F.softplus(torch.where(is_pair, -logits, logits))
    if is_ignored is not None:
        terms = terms.masked_fill(is_ignored & ~is_pair, 0.0)
    return terms.sum()


class SigLip(PooledAlignment):
    """The sigmoid loss of :func:`sigmoid_pair_loss` with learned scale (init 10) and bias (init -10).

    A single pair keeps its positive term, so its loss is finite but not 0.

    Shape:
        image_tokens (B, S, Di), image_prefix (B, P, Di), text_tokens (B, L, Dt), text_is_valid (B, L),
        token_ids (B, L) where equal texts are ignored; result {"global": scalar}.

    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023. Addition: ``same_text: ignore``.
    """

    def __init__(self, spec: SigLipSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.log_scale = nn.Parameter(torch.tensor([math.log(spec.initial_scale)]))  # FSDP shards no scalars
        self.bias = nn.Parameter(torch.tensor([float(spec.initial_bias)]))

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        token_ids: Tensor | None = None,
        image_prefix: Tensor | None = None,
    ) -> Output:
        """The matching loss of a batch."""
        image = self.heads.image(image_tokens, image_prefix)
        text = self.heads.text(text_tokens, text_is_valid)
        is_ignored = None if token_ids is None else equal_texts(token_ids, text_is_valid)
        loss = sigmoid_pair_loss(image, text, self.log_scale.exp().squeeze(0), self.bias.squeeze(0), is_ignored)
        return Output(losses={"global": loss})
