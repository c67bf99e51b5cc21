"""The containers that carry tensors between components. NamedTuples, built by keyword, and a plain dict for the batch.

Frozen attrs objects with tensors crash torch.compile and hide their tensors from DDP; NamedTuples and dicts pass both, and the
default collate and pinning code of torch knows them. The field names of a module's output are the *ports* it gives
(docs/ports.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

#: What the input pipeline makes: tensors by port (``image``, ``PORT@VIEW``); ``record_index`` (B,) int64 says which rows they are.
Batch = dict[str, Tensor]


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


class Output(NamedTuple):
    """What a call gives: its ports by name, and its loss terms (scalars, unweighted).

    The general form. A call that gives one port may return its tensor, an encoder, a fusion or a masking returns the tuple of its
    role.
    """

    ports: Mapping[str, Tensor] = {}
    losses: Mapping[str, Tensor] = {}


class StepOutput(NamedTuple):
    """Output of the model for one training step.

    ``loss`` is the weighted sum, ``losses`` every term without its weight under its full name (``gla.global``), ``ports`` what
    maskings and the calls with losses gave, by full name (``image_decoder.patch_prediction``, ``image_is_masked@masked``), ``rows``
    what components get after the step (``Contract.after``), detached, by full name too. ``pull`` is the scalar whose gradient is
    what contrasts over the whole step ask of this pass; its value means nothing.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    ports: dict[str, Tensor]
    rows: Mapping[str, Tensor] = {}
    pull: Tensor | None = None
