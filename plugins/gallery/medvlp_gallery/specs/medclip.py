"""Spec of MedCLIP's loss. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param


@component("gallery.semantic_matching", role=Role.ALIGNMENT, build="medvlp_gallery.medclip:SemanticMatching")
@attrs.frozen(kw_only=True)
class SemanticMatchingSpec(ComponentSpec):
    """Contrast of images and texts whose targets are the similarities of their label vectors, as in MedCLIP."""

    dim: int = param(128, help="width E of the shared space", at_least=1)
    temperature: float = param(0.07, help="initial temperature; its inverse is learned and stays at or below 100", above=0.01)

    def calls(self) -> dict[str, Contract]:
        """Labels of images and of texts enter the loss alone."""
        image, text = {"image_tokens": "B S Di"}, {"text_tokens": "B L Dt", "text_is_valid": "B L:bool"}
        labels = {"labels": "B K", "text_labels": "B K", "labels_is_known": "B K:bool?", "text_labels_is_known": "B K:bool?"}
        return {
            "forward": Contract(needs={**image, **text, **labels}, sizes=("Di", "Dt"), losses=("semantic",), mixes_rows=True),
            "embed_image": Contract(needs=image, gives={"image_embedding": f"B {self.dim}"}, sizes=("Di",)),
            "embed_text": Contract(needs=text, gives={"text_embedding": f"B {self.dim}"}, sizes=("Dt",)),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two widths."""
        return (cls(dim=8), cls(dim=12, temperature=0.5))


SPECS: tuple[type[ComponentSpec], ...] = (SemanticMatchingSpec,)
