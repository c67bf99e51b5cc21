"""Spec of the masking by region. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param


@component("gallery.region_masking", role=Role.MASKING, build="medvlp_gallery.mae_hd:RegionMasking")
@attrs.frozen(kw_only=True)
class RegionMaskingSpec(ComponentSpec):
    """Masks more patches inside a region, such as the lungs, than outside of it; no text."""

    inside: float = param(0.95, help="share of the patches inside the region that is masked", at_least=0, below=1)
    outside: float = param(0.85, help="share of the patches outside the region that is masked", at_least=0, below=1)
    area: float = param(0.4, help="usual share of the patches inside: it fixes how many stay visible", at_least=0, at_most=1)

    def contract(self) -> Contract:
        """A region on the grid of patches; the mask of patches alone."""
        return Contract(
            needs={"lungs": "B GH GW:bool", "image_grid": "GH GW:shape"},
            gives={"image_is_masked": "B N:bool"},
            sizes=("GH", "GW"),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Half of the patches, and nearly all."""
        return (cls(inside=0.6, outside=0.4), cls(inside=0.8, outside=0.5, area=0.2))


SPECS: tuple[type[ComponentSpec], ...] = (RegionMaskingSpec,)
