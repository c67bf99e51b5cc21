"""``gallery.semantic_matching``: the loss of MedCLIP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from medvlp_core.nn import Output, in_full_precision
from medvlp_core.runtime import gather_rows, local_batch_sizes
from medvlp_gallery.shared import MeanEmbeddings


@in_full_precision
def semantic_loss(image: Tensor, text: Tensor, labels: Tensor, text_labels: Tensor, scale: Tensor) -> Tensor:
    """``L = -1/2 mean_i sum_j [y_ij log softmax_j(scale v_i.t_j) + y'_ij log softmax_j(scale t_i.v_j)]``.

    The targets are those of label vectors l (image) and m (text): ``y_ij = softmax_j(cos(l_i, m_j))``,
    ``y'_ij = softmax_j(cos(m_i, l_j))``. A vector of zeros has cosine 0 with all.

    Shape:
        image, text (B, E) L2-normalised, labels, text_labels (B, K), result a scalar. Columns are those of all processes.
    """
    labels, text_labels = F.normalize(labels, dim=-1), F.normalize(text_labels, dim=-1)
    counts = local_batch_sizes(image)
    total = image.new_zeros(())
    for rows, columns, row_labels, column_labels in ((image, text, labels, text_labels), (text, image, text_labels, labels)):
        target = (row_labels @ gather_rows(column_labels, counts).t()).softmax(dim=1)
        logits = scale * (rows @ gather_rows(columns, counts).t())
        total = total - (target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    return 0.5 * total


class SemanticMatching(MeanEmbeddings):
    """Mean of the patch tokens and of the text tokens, projected, L2-normalised, compared by :func:`semantic_loss`.

    Unknown labels count as 0, neither similar nor dissimilar.

    Shape:
        image_tokens (B, S, Di), text_tokens (B, L, Dt), text_is_valid (B, L), labels, text_labels and their ``_is_known``
        (B, K); result {"semantic": scalar}, vectors (B, E).

    Reference:
        Wang et al., MedCLIP: Contrastive Learning from Unpaired Medical Images and Text, EMNLP 2022 (semantic
        matching loss). Deviations: images and texts of a batch are those of the same records (there two streams that need not
        be pairs); the factor on the logits is learned; mean pooling.
    """

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        labels: Tensor,
        text_labels: Tensor,
        labels_is_known: Tensor | None = None,
        text_labels_is_known: Tensor | None = None,
    ) -> Output:
        """The loss of a batch."""
        if labels_is_known is not None:
            labels = labels * labels_is_known
        if text_labels_is_known is not None:
            text_labels = text_labels * text_labels_is_known
        image, text = self.embed_image(image_tokens), self.embed_text(text_tokens, text_is_valid)
        return Output(losses={"semantic": semantic_loss(image, text, labels, text_labels, self.scale())})
