"""The decoders of MPMA: masked patches at a higher resolution, masked words with the image's help."""

from __future__ import annotations

from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Decoder, Output, PatchReconstructor, scored_tokens, word_loss
from medvlp_mpma.specs import ImageDecoderSpec, ReportDecoderSpec


class ImageDecoder(PatchReconstructor):
    """Super-resolution reconstruction: each masked patch of the input is predicted with more pixels than the encoder was shown.

    The target is cut into the encoder's grid, so 448 pixels on a grid of 14 x 14 give cells of 32 x 32 for patches of 16 x 16.
    ``L = sum over masked n of mean_q (prediction_nq - target_nq)^2, divided by the number of masked patches``.

    The layers, prefix tokens and encoders that replace masked patches: :class:`~medvlp_core.nn.reconstruction.PatchReconstructor`.

    Shape:
        image_tokens (B, S, Di), S = N or the number of visible patches; image_prefix (B, P, Di); image_is_masked (B, N) bool;
        image_target (B, C, T, T); prediction (B, N, (T / GH) * (T / GW) * C), in normalised pixels if ``normalise_patches``.

    Reference:
        Zhou et al., Advancing Radiograph Representation Learning with Masked Record Modeling (MRM), ICLR 2023. That MPMA
        reconstructs images in this way is a reconstruction.
    """

    def __init__(self, spec: ImageDecoderSpec, dims: Dims) -> None:
        super().__init__(
            spec,
            dims,
            width=spec.width,
            depth=spec.depth,
            heads=spec.heads,
            hidden=4 * spec.width,
            target_size=(spec.target_size, spec.target_size),
            normalises=spec.normalise_patches,
        )

    def forward(self, image_tokens: Tensor, image_prefix: Tensor, image_is_masked: Tensor, image_target: Tensor) -> Output:
        """Reconstruct every patch of the larger image; score the masked ones, 0 if none is."""
        return self.reconstruct(image_tokens, image_prefix, image_is_masked, image_target)


class ReportDecoder(Decoder):
    """Words from fused tokens: cross-entropy with the true ids, averaged over the scored positions.

    ``head: transform`` is ``W LN(gelu(W' F)) + b``, ``head: linear`` is ``W F + b``; W is not tied to the token embeddings. Logits
    are computed only where they are scored or shown. ``positions: all`` scores padding too, as MRM's code does, so that the loss
    depends on how far the batch is padded (MRM pads every report to 100 tokens).

    Shape:
        fused_text_tokens (B, L, Df), token_ids (B, L) int, text_is_masked and text_is_valid (B, L) bool;
        prediction (R, V), the R masked positions in row-major order of ``text_is_masked``.

    Reference:
        Zhou et al., MRM, ICLR 2023. Scoring only masked positions, the default, is ALTA's choice and our reconstruction.
    """

    def __init__(self, spec: ReportDecoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.positions = spec.positions
        width = dims["Df"]
        dense = (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12)) if spec.head == "transform" else ()
        self.transform = nn.Sequential(*dense)
        self.to_words = nn.Linear(width, dims["V"])

    def forward(self, fused_text_tokens: Tensor, token_ids: Tensor, text_is_masked: Tensor, text_is_valid: Tensor) -> Output:
        """Predict the words at the scored positions; the loss is 0 if none is scored."""
        is_scored = scored_tokens(self.positions, text_is_masked, text_is_valid)
        logits = self.to_words(self.transform(fused_text_tokens[is_scored]))
        loss = word_loss(logits, token_ids[is_scored])
        return Output(ports={"word_logits": logits[text_is_masked[is_scored]]}, losses={"mlm": loss})
