"""The standard decoders: pixels of masked patches, words at masked tokens."""

from __future__ import annotations

from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Decoder, Output, PatchReconstructor, scored_tokens, word_loss
from medvlp_standard.specs.decoders import MlmHeadSpec, PatchDecoderSpec


class PatchDecoder(PatchReconstructor):
    """Reconstructs the pixels of masked patches of the input itself (layers:
    :class:`~medvlp_core.nn.reconstruction.PatchReconstructor`).

    Shape:
        image_tokens (B, S, Di), S = N or the number of visible patches; image_prefix (B, P, Di); image_is_masked (B, N);
        image (B, C, H, W); prediction (B, N, ph * pw * C), in normalised pixels if ``normalise_patches``.

    Reference:
        He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022.
    """

    def __init__(self, spec: PatchDecoderSpec, dims: Dims) -> None:
        super().__init__(
            spec,
            dims,
            width=spec.width,
            depth=spec.depth,
            heads=spec.heads,
            hidden=round(spec.width * spec.ffn_ratio),
            target_size=(dims["H"], dims["W"]),
            normalises=spec.normalise_patches,
        )

    def forward(self, image_tokens: Tensor, image_prefix: Tensor, image_is_masked: Tensor, image: Tensor) -> Output:
        """Reconstruct every patch; score the masked ones, 0 if none is."""
        return self.reconstruct(image_tokens, image_prefix, image_is_masked, image)


class MlmHead(Decoder):
    """``logits = W LN(gelu(W' F)) + b``, cross-entropy with the true ids, averaged over the scored positions.

    Logits are computed only where they are scored. With ``positions: all`` padding is scored too, so the loss then depends on
    how far the batch is padded (MRM pads every text to 100 tokens).

    Shape:
        fused_text_tokens (B, L, Df), token_ids, text_is_masked, text_is_valid (B, L);
        prediction (R, V), the R masked positions in row-major order of ``text_is_masked``.

    Reference:
        Devlin et al., BERT, NAACL 2019. Deviation: the output matrix is not tied to the token embeddings (as in MRM).
    """

    def __init__(self, spec: MlmHeadSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.positions = spec.positions
        width = dims["Df"]
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.to_vocabulary = nn.Linear(width, dims["V"])

    def forward(self, fused_text_tokens: Tensor, token_ids: Tensor, text_is_masked: Tensor, text_is_valid: Tensor) -> Output:
        """Predict the words at the scored positions; 0 if none is scored."""
        is_scored = scored_tokens(self.positions, text_is_masked, text_is_valid)
        logits = self.to_vocabulary(self.transform(fused_text_tokens[is_scored]))
        loss = word_loss(logits, token_ids[is_scored])
        return Output(ports={"word_logits": logits[text_is_masked[is_scored]]}, losses={"mlm": loss})
