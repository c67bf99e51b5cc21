"""Spec of BioViL-T's temporal module. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, TensorSpec, component, param


@component("gallery.temporal", role=Role.PART, build="medvlp_gallery.biovil_t:Temporal")
@attrs.frozen(kw_only=True)
class TemporalSpec(ComponentSpec):
    """Patch tokens of an image and of its prior image, if there is one: what is seen, and what has changed, as in BioViL-T."""

    width: int = param(64, help="width of each half of a token; 4 must divide it", at_least=4)
    layers: int = param(1, help="transformer blocks over both images", at_least=1)
    heads: int = param(4, help="attention heads; must divide width", at_least=1)

    def contract(self) -> Contract:
        """Tokens of two whole images of one grid; the static half in front of the temporal half."""
        whole = TensorSpec.parse("B N Di", layout="replaced")
        return Contract(
            needs={
                "image_tokens": whole,
                "prior_tokens": whole,
                "prior_is_known": "B:bool?",
                "image_grid": "GH GW:shape",
            },
            gives={"temporal_tokens": f"B N {2 * self.width}"},
            sizes=("Di", "GH", "GW"),
            require=(Divides(self.width, by=self.heads, field="heads"), Divides(self.width, by=4, field="width")),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two blocks."""
        return (cls(width=8, heads=2), cls(width=12, layers=2, heads=3))


SPECS: tuple[type[ComponentSpec], ...] = (TemporalSpec,)
