"""Specs of the standard maskings: what is masked in the masked view. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param

_TEXT_UNIT = "what is masked at once: token, or whole_word (all pieces of a word together)"
_REPLACE = "what stands at masked tokens: mask = always [MASK]; bert = 80 % [MASK], 10 % a random id, 10 % unchanged"


def masking_contract() -> Contract:
    """Ports of a masking of both modalities: it masks B N patches and B L tokens."""
    return Contract(
        needs={
            "image_grid": "GH GW:shape",
            "vocabulary": "V Mask:shape",
            "token_ids": "B L:int",
            "text_is_valid": "B L:bool",
            "word_ids": "B L:int",
        },
        gives={
            "image_is_masked": "B N:bool",
            "text_is_masked": "B L:bool",
            "token_ids": "B L:int",
        },
        sizes=("GH", "GW", "V", "Mask"),
    )


@component("standard.random", role=Role.MASKING, build="medvlp_standard.masking:RandomMasking")
@attrs.frozen(kw_only=True)
class RandomMaskingSpec(ComponentSpec):
    """Random patches and random tokens or whole words, each modality on its own."""

    image_ratio: float = param(
        0.75, help="share of the patches that is masked, the same number in every image", at_least=0, below=1
    )
    text_unit: str = param("token", help=_TEXT_UNIT, one_of=("token", "whole_word"))
    text_ratio: float = param(0.15, help="probability of each unit of the text to be masked", at_least=0, at_most=1)
    replace: str = param("mask", help=_REPLACE, one_of=("mask", "bert"))

    def contract(self) -> Contract:
        """Needs the grid, the vocabulary and the text; gives the masked view."""
        return masking_contract()

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Few and many masked patches and words."""
        return (cls(image_ratio=0.5, text_ratio=0.5), cls(text_unit="whole_word", text_ratio=0.3, replace="bert"))


@component("standard.blockwise", role=Role.MASKING, build="medvlp_standard.masking:BlockwiseMasking")
@attrs.frozen(kw_only=True)
class BlockwiseMaskingSpec(ComponentSpec):
    """Rectangular blocks of patches as in BEiT, and random tokens or whole words."""

    image_ratio: float = param(0.4, help="share of the patches that is masked, the same number in every image", at_least=0, below=1)
    min_block_patches: int = param(
        16, help="patches of the smallest block; smaller ones only to reach the exact number", at_least=1
    )
    min_aspect: float = param(0.3, help="flattest block, height / width; the steepest is its inverse", above=0, at_most=1)
    text_unit: str = param("token", help=_TEXT_UNIT, one_of=("token", "whole_word"))
    text_ratio: float = param(0.15, help="probability of each unit of the text to be masked", at_least=0, at_most=1)
    replace: str = param("mask", help=_REPLACE, one_of=("mask", "bert"))

    def contract(self) -> Contract:
        """Needs the grid, the vocabulary and the text; gives the masked view."""
        return masking_contract()

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Small and larger blocks."""
        return (cls(min_block_patches=1, text_ratio=0.5), cls(image_ratio=0.6, min_block_patches=4, text_unit="whole_word"))


SPECS: tuple[type[ComponentSpec], ...] = (RandomMaskingSpec, BlockwiseMaskingSpec)
