"""Spec of BioViL-T's temporal module. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, component, param


@component("gallery.temporal", role=Role.PART, build="medvlp_gallery.biovil_t:Temporal")
@attrs.frozen(kw_only=True)
class TemporalSpec(ComponentSpec):
    """Patch tokens of an image and of its prior image, if there is one: what is seen, and what has changed, as in BioViL-T."""

    width: int = param(64, help="width of each half of a token", at_least=1)
    layers: int = param(1, help="transformer blocks over both images", at_least=1)
    heads: int = param(4, help="attention heads; must divide width", at_least=1)

    def contract(self) -> Contract:
        """Tokens of two images of one grid; the static half in front of the temporal half."""
        return Contract(
            needs={"image_tokens": "B N Di @clean", "prior_tokens": "B N Di @clean", "prior_is_known": "B:bool?"},
            gives={"temporal_tokens": f"B N {2 * self.width}"},
            sizes=("N", "Di"),
            require=(Divides(self.width, by=self.heads, field="heads"),),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two blocks."""
        return (cls(width=8, heads=2), cls(width=12, layers=2, heads=3))


SPECS: tuple[type[ComponentSpec], ...] = (TemporalSpec,)
