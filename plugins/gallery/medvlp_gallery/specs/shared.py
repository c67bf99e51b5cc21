"""Specs of what several systems of the gallery share. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, component, param


@component("gallery.vector_contrast", role=Role.ALIGNMENT, build="medvlp_gallery.shared:VectorContrast")
@attrs.frozen(kw_only=True)
class VectorContrastSpec(ComponentSpec):
    """Contrast of image vectors with one vector each of anything else: a text's summary, a table."""

    dim: int = param(128, help="width E of the shared space", at_least=1)
    temperature: float = param(0.07, help="initial temperature; its inverse is learned and stays at or below 100", above=0.01)

    def calls(self) -> dict[str, Contract]:
        """Both vectors come from ports that a recipe names."""
        image, other = {"image_vectors": "B S Di"}, {"other_vector": "B Dt"}
        return {
            "forward": Contract(needs={**image, **other}, sizes=("Di", "Dt"), losses=("global",), mixes_rows=True),
            "embed_image": Contract(needs=image, gives={"image_embedding": f"B {self.dim}"}, sizes=("Di",)),
            "embed_text": Contract(needs=other, gives={"text_embedding": f"B {self.dim}"}, sizes=("Dt",)),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two widths."""
        return (cls(dim=8), cls(dim=12, temperature=0.2))


@component("gallery.attention_pool", role=Role.PART, build="medvlp_gallery.shared:AttentionPool")
@attrs.frozen(kw_only=True)
class AttentionPoolSpec(ComponentSpec):
    """Learned queries that attend to tokens, as in CoCa."""

    queries: int = param(8, help="vectors that tokens are pooled to", at_least=1)
    heads: int = param(2, help="attention heads; must divide the width", at_least=1)

    def contract(self) -> Contract:
        """Tokens of any kind."""
        return Contract(
            needs={"tokens": "B S D"},
            gives={"pooled": f"B {self.queries} D"},
            sizes=("D",),
            require=(Divides("D", by=self.heads, field="heads"),),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and several vectors."""
        return (cls(queries=1), cls(queries=3, heads=1))


SPECS: tuple[type[ComponentSpec], ...] = (VectorContrastSpec, AttentionPoolSpec)
