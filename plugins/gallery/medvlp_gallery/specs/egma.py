"""Spec of EGMA's loss. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param


@component("gallery.gaze_alignment", role=Role.ALIGNMENT, build="medvlp_gallery.egma:GazeAlignment")
@attrs.frozen(kw_only=True)
class GazeAlignmentSpec(ComponentSpec):
    """Sentences and patches, aligned where a radiologist looked while saying them, as in EGMA."""

    dim: int = param(128, help="width E of the shared space", at_least=1)
    temperature: float = param(0.07, help="initial temperature; its inverse is learned and stays at or below 100", above=0.01)

    def calls(self) -> dict[str, Contract]:
        """Tokens of sentences, and gaze on the grid of patches; gaze may be unknown."""
        image = {"image_tokens": "B N Di"}
        text = {"text_tokens": "B S L Dt", "sentences_is_valid": "B S L:bool"}
        gaze = {"gaze": "B S GH GW", "gaze_is_known": "B:bool?", "image_grid": "GH GW:shape"}
        return {
            "forward": Contract(
                needs={**image, **text, **gaze},
                sizes=("Di", "Dt"),
                losses=("fine", "instance", "mapping"),
                mixes_rows=True,
            ),
            "embed_image": Contract(needs=image, gives={"image_embedding": f"B {self.dim}"}, sizes=("Di",)),
            "embed_text": Contract(needs=text, gives={"text_embedding": f"B {self.dim}"}, sizes=("Dt",)),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two widths."""
        return (cls(dim=8), cls(dim=12, temperature=0.2))


SPECS: tuple[type[ComponentSpec], ...] = (GazeAlignmentSpec,)
