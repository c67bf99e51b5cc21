"""Specs of CoCa: a causal text tower and a captioning decoder. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, TensorSpec, component, param


@component("gallery.causal_text", role=Role.TEXT_ENCODER, build="medvlp_gallery.coca:CausalText")
@attrs.frozen(kw_only=True)
class CausalTextSpec(ComponentSpec):
    """A text tower whose positions see only what stands before them, and a summary of the whole text, as in CoCa."""

    width: int = param(384, help="width of a token", at_least=1)
    layers: int = param(6, help="transformer layers", at_least=1)
    heads: int = param(6, help="attention heads; must divide width", at_least=1)

    def calls(self) -> dict[str, Contract]:
        """Embeddings; then tokens that know the past alone, and one vector that knows all."""
        tokens = TensorSpec(dims=("B", "L", self.width), sees="past")
        sizes = ("V", "L")
        return {
            "embed": Contract(
                needs={"token_ids": "B L:int", "vocabulary": "V Mask:shape"},
                gives={"text_embeddings": tokens},
                sizes=sizes,
                require=(Divides(self.width, by=self.heads, field="heads"),),
            ),
            "encode": Contract(
                needs={"text_embeddings": f"B L {self.width}", "text_is_valid": "B L:bool"},
                gives={"text_tokens": tokens, "text_summary": f"B {self.width}"},
                sizes=sizes,
            ),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two layers."""
        return (cls(width=16, layers=1, heads=2), cls(width=24, layers=2, heads=3))


@component("gallery.captioner", role=Role.DECODER, build="medvlp_gallery.coca:Captioner")
@attrs.frozen(kw_only=True)
class CaptionerSpec(ComponentSpec):
    """Writes the text of an image: causal layers that attend to the image, as in CoCa."""

    layers: int = param(6, help="layers", at_least=1)
    heads: int = param(6, help="attention heads; must divide the width of the text", at_least=1)

    def contract(self) -> Contract:
        """Text that sees the past alone, and vectors of the image."""
        return Contract(
            needs={
                "text_tokens": TensorSpec(dims=("B", "L", "Dt"), sees="past"),
                "image_vectors": "B Q Di",
                "token_ids": "B L:int",
                "text_is_valid": "B L:bool",
                "vocabulary": "V Mask:shape",
            },
            gives={"next_word_logits": TensorSpec(dims=("B", "L", "V"), sees="past")},
            sizes=("Dt", "Di", "V"),
            require=(Divides("Dt", by=self.heads, field="heads"),),
            losses=("caption",),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two layers."""
        return (cls(layers=1, heads=2), cls(layers=2, heads=3))


SPECS: tuple[type[ComponentSpec], ...] = (CausalTextSpec, CaptionerSpec)
