"""Specs of eCLIP: mix-up with what an expert looked at, and the contrast of the appended pairs. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, component, param


@component("gallery.heatmap_mixup", role=Role.PART, build="medvlp_gallery.eclip:HeatmapMixup")
@attrs.frozen(kw_only=True)
class HeatmapMixupSpec(ComponentSpec):
    """Mixes an image with what a learned processor makes of it and an expert's heat map, in some rows of a step, as in eCLIP."""

    patch_size: int = param(16, help="side of the processor's patches, pixels", at_least=1)
    width: int = param(256, help="width of the processor", at_least=1)
    heads: int = param(8, help="attention heads; must divide width", at_least=1)
    mixing: float = param(0.2, help="both parameters of the Beta distribution that the share of the image is drawn from", above=0)
    lowest: float = param(0.05, help="smallest probability that a row is mixed, after the cold start", at_least=0, at_most=1)
    highest: float = param(0.5, help="largest probability that a row is mixed", at_least=0, at_most=1)

    def contract(self) -> Contract:
        """A heat map as large as the image; the mixed image, which rows are mixed, and what a heat map of ones makes."""
        return Contract(
            needs={"image": "B C H W", "heatmap": "B H W", "heatmap_is_known": "B:bool?", "progress": ":float"},
            gives={"mixed_image": "B C H W", "is_mixed": "B:bool", "identity_image": "B C H W"},
            sizes=("C", "H", "W"),
            require=(
                Divides("H", by=self.patch_size, field="patch_size"),
                Divides("W", by=self.patch_size, field="patch_size"),
                Divides(self.width, by=self.heads, field="heads"),
            ),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Small and larger patches."""
        return (cls(patch_size=8, width=8, heads=2), cls(patch_size=16, width=12, heads=3, highest=0.9))


@component("gallery.appended_contrast", role=Role.ALIGNMENT, build="medvlp_gallery.eclip:AppendedContrast")
@attrs.frozen(kw_only=True)
class AppendedContrastSpec(ComponentSpec):
    """Contrast of a batch to which the mixed images are appended with their texts, as in eCLIP."""

    dim: int = param(512, help="width E of the shared space", at_least=1)
    temperature: float = param(0.07, help="initial temperature; its inverse is learned and stays at or below 100", above=0.01)

    def calls(self) -> dict[str, Contract]:
        """Tokens of images and of mixed images; the processor's image of a heat map of ones, for its cold start."""
        image, text = {"image_tokens": "B S Di"}, {"text_tokens": "B L Dt", "text_is_valid": "B L:bool"}
        more = {"mixed_tokens": "B S Di", "is_mixed": "B:bool", "image": "B C H W", "identity_image": "B C H W"}
        return {
            "forward": Contract(
                needs={**image, **text, **more},
                sizes=("Di", "Dt"),
                losses=("global", "reconstruction"),
                mixes_rows=True,
            ),
            "embed_image": Contract(needs=image, gives={"image_embedding": f"B {self.dim}"}, sizes=("Di",)),
            "embed_text": Contract(needs=text, gives={"text_embedding": f"B {self.dim}"}, sizes=("Dt",)),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two widths."""
        return (cls(dim=8), cls(dim=12, temperature=0.2))


SPECS: tuple[type[ComponentSpec], ...] = (HeatmapMixupSpec, AppendedContrastSpec)
