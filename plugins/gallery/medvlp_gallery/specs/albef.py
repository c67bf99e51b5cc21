"""Specs of ALBEF: momentum contrast with queues, hard negatives, matching, and a masking of words alone. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param


@component("gallery.momentum_contrast", role=Role.ALIGNMENT, build="medvlp_gallery.albef:MomentumContrast")
@attrs.frozen(kw_only=True)
class MomentumContrastSpec(ComponentSpec):
    """Contrast with what a teacher makes of this step and of earlier ones, its similarities as soft targets, as in ALBEF."""

    dim: int = param(256, help="width E of the shared space", at_least=1)
    temperature: float = param(0.07, help="initial temperature; its inverse is learned and stays at or below 100", above=0.01)
    queue: int = param(65536, help="vectors of earlier steps that are kept of each side", at_least=1)
    distillation: float = param(0.4, help="share of the teacher's similarities in the targets", at_least=0, at_most=1)

    def calls(self) -> dict[str, Contract]:
        """The teacher's vectors come from a recipe's ports; they are what the queues take in after a step."""
        image, text = {"image_prefix": "B P Di"}, {"text_tokens": "B L Dt"}
        taught = {"teacher_image": f"B {self.dim}", "teacher_text": f"B {self.dim}"}
        return {
            "forward": Contract(
                needs={**image, **text, **taught},
                sizes=("Di", "Dt"),
                losses=("contrast",),
                mixes_rows=True,
                after={"teacher_image": f"T {self.dim}", "teacher_text": f"T {self.dim}"},
            ),
            "embed_image": Contract(needs=image, gives={"image_embedding": f"B {self.dim}"}, sizes=("Di",)),
            "embed_text": Contract(needs=text, gives={"text_embedding": f"B {self.dim}"}, sizes=("Dt",)),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Short queues."""
        return (cls(dim=8, queue=6), cls(dim=12, queue=4, distillation=0.0))


@component("gallery.hard_negatives", role=Role.PART, build="medvlp_gallery.albef:HardNegatives")
@attrs.frozen(kw_only=True)
class HardNegativesSpec(ComponentSpec):
    """For every pair another image and another text of the batch that look as if they belonged to it, as in ALBEF."""

    def contract(self) -> Contract:
        """Vectors say which are close; tokens are handed on in another order of rows."""
        return Contract(
            needs={
                "image_embedding": "B E",
                "text_embedding": "B E",
                "image_tokens": "B S Di",
                "text_tokens": "B L Dt",
                "text_is_valid": "B L:bool",
            },
            gives={
                "other_image_tokens": "B S Di",
                "other_text_tokens": "B L Dt",
                "other_text_is_valid": "B L:bool",
            },
            mixes_rows=True,
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """There is nothing to choose."""
        return (cls(), cls())


@component("gallery.matching", role=Role.DECODER, build="medvlp_gallery.albef:Matching")
@attrs.frozen(kw_only=True)
class MatchingSpec(ComponentSpec):
    """Says of fused pairs whether they belong together: pairs of the batch against hard negatives, as in ALBEF."""

    def calls(self) -> dict[str, Contract]:
        """The same fusion's tokens of pairs, and of both kinds of negatives; scores of pairs need no negatives."""
        pair = {"matched": "B L Df"}
        return {
            "forward": Contract(
                needs={**pair, "with_other_image": "B L Df", "with_other_text": "B L Df"}, sizes=("Df",), losses=("matching",)
            ),
            "score": Contract(needs=pair, gives={"match_score": "B"}, sizes=("Df",)),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """There is nothing to choose."""
        return (cls(), cls())


@component("gallery.word_masking", role=Role.MASKING, build="medvlp_gallery.albef:WordMasking")
@attrs.frozen(kw_only=True)
class WordMaskingSpec(ComponentSpec):
    """Masks tokens or whole words and no patches: the image needs no second pass."""

    ratio: float = param(0.15, help="probability of each unit to be masked", at_least=0, at_most=1)
    whole_words: bool = param(False, help="mask all pieces of a word together")

    def contract(self) -> Contract:
        """Needs the text alone, and gives its masked view."""
        return Contract(
            needs={"vocabulary": "V Mask:shape", "token_ids": "B L:int", "text_is_valid": "B L:bool", "word_ids": "B L:int"},
            gives={"text_is_masked": "B L:bool", "token_ids": "B L:int"},
            sizes=("Mask",),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Tokens and words."""
        return (cls(ratio=0.5), cls(ratio=0.4, whole_words=True))


SPECS: tuple[type[ComponentSpec], ...] = (MomentumContrastSpec, HardNegativesSpec, MatchingSpec, WordMaskingSpec)
