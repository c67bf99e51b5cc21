"""The containers that carry tensors between components. NamedTuples, built by keyword.

Frozen attrs objects with tensors crash torch.compile and hide their tensors from DDP; NamedTuples pass both, and the default
collate and pinning code of torch knows them. The field names of a module's output are the *ports* it gives (docs/ports.md).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TokenBatch(NamedTuple):
    """A batch of tokenised texts.

    Shape:
        token_ids: (B, L) int64.
        text_is_valid: (B, L) bool, True = real token, not padding.
        word_ids: (B, L) int64, index of the word the token belongs to; -1 at special tokens and padding.
    """

    token_ids: Tensor
    text_is_valid: Tensor
    word_ids: Tensor


class ImageTextBatch(NamedTuple):
    """A batch of image-text pairs as the input pipeline makes it.

    Shape:
        image: (B, C, H, W) float, normalised.
        image_target: (B, C, Ht, Wt) float, the same crop in the resolution that a decoder reconstructs, or None.
        token_ids, text_is_valid, word_ids: as in :class:`TokenBatch`.
        record_index: (B,) int64, row of the record in its split.
    """

    image: Tensor
    image_target: Tensor | None
    token_ids: Tensor
    text_is_valid: Tensor
    word_ids: Tensor
    record_index: Tensor


class MaskPlan(NamedTuple):
    """What is masked from the encoders in the masked view.

    Shape:
        image_is_masked: (B, N) bool, True = masked; the same count in every row, so that dropping keeps a tensor.
        text_is_masked: (B, L) bool, True = masked; never at special tokens or padding.
        token_ids: (B, L) int64, the ids with the masked tokens replaced.
    """

    image_is_masked: Tensor
    text_is_masked: Tensor
    token_ids: Tensor


class ImageFeatures(NamedTuple):
    """Output of an image encoder.

    Shape:
        image_tokens: (B, N, Di); visible tokens only, in raster order, where the encoder drops masked patches.
        image_prefix: (B, P, Di), CLS and register tokens; P may be 0.
    """

    image_tokens: Tensor
    image_prefix: Tensor


class FusedFeatures(NamedTuple):
    """Output of a fusion; the fields that its contract does not give stay None.

    Shape:
        fused_text_tokens: (B, L, Df).
        fused_text_embeddings: (B, L, Dt), for a fusion in front of the text encoder's layers.
        fused_image_tokens: (B, N, Df).
    """

    fused_text_tokens: Tensor | None = None
    fused_text_embeddings: Tensor | None = None
    fused_image_tokens: Tensor | None = None


class DecoderOutput(NamedTuple):
    """Output of a decoder: its loss terms (scalars, unweighted) and its prediction (shape by its contract)."""

    losses: dict[str, Tensor]
    prediction: Tensor


class StepOutput(NamedTuple):
    """Output of the model for one training step.

    ``loss`` is the weighted sum, ``losses`` every term without its weight under its full name (``gla.global``), ``predictions``
    the decoders' predictions by slot name, ``mask_plan`` what was masked (None if the model needs no masked view).
    """

    loss: Tensor
    losses: dict[str, Tensor]
    predictions: dict[str, Tensor]
    mask_plan: MaskPlan | None = None
