"""Specs of the standard decoders: what reconstructs masked patches and words. Light."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, TensorSpec, component, param


@component("standard.patch_decoder", role=Role.DECODER, build="medvlp_standard.decoders:PatchDecoder")
@attrs.frozen(kw_only=True)
class PatchDecoderSpec(ComponentSpec):
    """Reconstructs the pixels of masked patches of the input image, as in MAE."""

    width: int = param(512, help="width of the decoder; heads and 4 must divide it", at_least=4)
    depth: int = param(8, help="transformer blocks", at_least=1)
    heads: int = param(16, help="attention heads K", at_least=1)
    ffn_ratio: float = param(4.0, help="width of the feed-forward layer, as a multiple of the width", above=0)
    normalise_patches: bool = param(True, help="reconstruct pixels normalised by mean and deviation of their own patch")

    def contract(self) -> Contract:
        """Tokens of the masked view, and the image as the target."""
        return Contract(
            needs={
                "image_tokens": "B S Di @masked",
                "image_prefix": "B P Di @masked",
                "image_is_masked": "B N:bool @masked",
                "image_grid": "GH GW:shape",
                "image": "B C H W",
            },
            gives={"patch_prediction": "B N Q"},
            sizes=("Di", "C", "H", "W", "GH", "GW"),
            require=(Divides("H", by="GH"), Divides("W", by="GW")),
            losses=("reconstruction",),
        )

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """The width must fit the heads and the sine-cosine positions."""
        if self.width % self.heads:
            yield "heads", f"heads={self.heads} must divide width={self.width}", None
        if self.width % 4:
            near = f"{max(4, self.width - self.width % 4)} or {self.width - self.width % 4 + 4}"
            yield "width", f"width={self.width} must be a multiple of 4 (sine-cosine positions)", f"use {near}"

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two blocks."""
        return (
            cls(width=8, depth=1, heads=2, ffn_ratio=2.0),
            cls(width=12, depth=2, heads=3, ffn_ratio=1.0, normalise_patches=False),
        )


@component("standard.mlm_head", role=Role.DECODER, build="medvlp_standard.decoders:MlmHead")
@attrs.frozen(kw_only=True)
class MlmHeadSpec(ComponentSpec):
    """Predicts masked words from fused text tokens: BERT's masked-language-modelling head."""

    positions: str = param(
        "masked",
        help="positions in the loss: masked = masked tokens; nonpad = all real tokens; all = padding too (as MRM's code)",
        one_of=("masked", "nonpad", "all"),
    )

    def contract(self) -> Contract:
        """Fused tokens of the masked view, and the true ids."""
        return Contract(
            needs={
                "fused_text_tokens": "B L Df @masked",
                "token_ids": "B L:int @clean",
                "text_is_masked": "B L:bool @masked",
                "text_is_valid": "B L:bool",
                "vocabulary": "V Mask:shape",
            },
            gives={"word_logits": "R V"},
            sizes=("Df", "V"),
            losses=("mlm",),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two choices of positions."""
        return (cls(positions="masked"), cls(positions="nonpad"))


@component("standard.caption_decoder", role=Role.DECODER, build="medvlp_standard.caption:CaptionDecoder")
@attrs.frozen(kw_only=True)
class CaptionDecoderSpec(ComponentSpec):
    """Writes the text of an image word by word: a causal transformer with cross-attention to the image tokens.

    The tokenizer must end each text (``standard.wordpiece`` with ``end_of_text: true``; those of transformers do).
    """

    width: int = param(256, help="width of a token; heads must divide it", at_least=1)
    layers: int = param(4, help="layers", at_least=1)
    heads: int = param(4, help="attention heads K", at_least=1)
    ffn_ratio: float = param(4.0, help="width of the feed-forward layer, as a multiple of the width", above=0)
    dropout: float = param(0.1, help="dropout in training, of embeddings, attention and feed-forward layers", at_least=0, below=1)
    num_beams: int = param(1, help="when it writes: beams of the search; 1 = greedy, or sampling", at_least=1)
    do_sample: bool = param(False, help="when it writes: draw each token instead of taking the likeliest")
    temperature: float = param(1.0, help="when it samples: logits are divided by it", above=0)
    top_p: float = param(1.0, help="when it samples: draw among the likeliest tokens of this total probability", above=0, at_most=1)
    length_penalty: float = param(1.0, help="with several beams: a sum of log probabilities is divided by length ** this")

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Heads must divide the width."""
        if self.width % self.heads:
            yield "heads", f"heads={self.heads} must divide width={self.width}", None

    def calls(self) -> dict[str, Contract]:
        """Whole images and texts, for the loss and the logits of next words; images and first tokens, for texts of its own."""
        sizes = ("Di", "V", "L", "End")
        shapes = {"vocabulary": "V Mask:shape", "end_of_text": "End:shape"}
        return {
            "forward": Contract(
                needs={"image_tokens": "B S Di", "token_ids": "B L:int", "text_is_valid": "B L:bool", **shapes},
                gives={"next_word_logits": TensorSpec.parse("B L V", sees="past")},
                sizes=sizes,
                losses=("caption",),
            ),
            "generate": Contract(
                needs={"image_tokens": "B S Di", "token_ids": "B L:int"}, gives={"generated_ids": "B L:int"}, sizes=sizes
            ),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One layer that writes greedily, two that search with beams."""
        return (
            cls(width=16, layers=1, heads=2, ffn_ratio=2.0),
            cls(width=12, layers=2, heads=3, ffn_ratio=1.0, dropout=0.0, num_beams=2, length_penalty=0.5),
        )


SPECS: tuple[type[ComponentSpec], ...] = (PatchDecoderSpec, MlmHeadSpec, CaptionDecoderSpec)
