"""Specs of the standard decoders: what reconstructs masked patches and words. Light."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, component, param


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


SPECS: tuple[type[ComponentSpec], ...] = (PatchDecoderSpec, MlmHeadSpec)
