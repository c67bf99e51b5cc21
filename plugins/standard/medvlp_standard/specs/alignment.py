"""Specs of the standard alignments: losses that pull images and their texts together. Light."""

from __future__ import annotations

import attrs

from medvlp_core import AtLeast, ComponentSpec, Contract, Role, component, param

_VIEW = "tokens to align: clean = nothing masked (maybe an extra pass of the encoders), masked = what the decoders see"
_DIM = "width E of the shared space"
_PROJECTION = "map to the shared space: linear (no bias), or mlp (Linear-GELU-LN-Linear)"
_IMAGE_POOL = "image vector: mean of the patch tokens, or cls = first prefix token"
_TEXT_POOL = "text vector: cls = position 0, or mean of all valid tokens"
_SAME_TEXT = "other pairs with the very same token ids: negative = as any other pair, ignore = no negatives"
_AGGREGATE = "sum the pieces of a word into one vector; false = each piece is a unit of its own"


@attrs.frozen(kw_only=True)
class AlignmentSpec(ComponentSpec):
    """Parameters and ports that all standard alignments share."""

    view: str = param("clean", help=_VIEW, one_of=("clean", "masked"))
    dim: int = param(128, help=_DIM, at_least=1)
    projection: str = param("linear", help=_PROJECTION, one_of=("linear", "mlp"))
    image_pool: str = param("mean", help=_IMAGE_POOL, one_of=("mean", "cls"))
    text_pool: str = param("cls", help=_TEXT_POOL, one_of=("cls", "mean"))

    def pooled_calls(self, *, losses: tuple[str, ...], needs: dict[str, str] | None = None) -> dict[str, Contract]:
        """Losses on tokens of the chosen view, and vectors of width ``dim`` in any view; ``needs`` adds ports to the losses."""
        image = {"image_tokens": "B S Di"} | ({"image_prefix": "B P Di"} if self.image_pool == "cls" else {})
        text = {"text_tokens": "B L Dt", "text_is_valid": "B L:bool"}
        require = (AtLeast("P", 1, field="image_pool"),) if self.image_pool == "cls" else ()
        viewed = {port: f"{dims} @{self.view}" for port, dims in (*image.items(), ("text_tokens", "B L Dt"))}
        return {
            "forward": Contract(
                needs={**viewed, "text_is_valid": "B L:bool", **(needs or {})},
                sizes=("Di", "Dt"),
                require=require,
                losses=losses,
                mixes_rows=True,
            ),
            "embed_image": Contract(needs=image, gives={"image_embedding": f"B {self.dim}"}, sizes=("Di",), require=require),
            "embed_text": Contract(needs=text, gives={"text_embedding": f"B {self.dim}"}, sizes=("Dt",)),
        }

    def local_needs(self) -> dict[str, str]:
        """Ports by which words are found; masked words are skipped by a local loss on the masked view."""
        needs = {"word_ids": "B L:int"}
        return needs | {"text_is_masked": "B L:bool? @masked"} if self.view == "masked" else needs


@component("standard.info_nce", role=Role.ALIGNMENT, build="medvlp_standard.alignment.info_nce:InfoNce")
@attrs.frozen(kw_only=True)
class InfoNceSpec(AlignmentSpec):
    """Global image-text contrast with a learned temperature, as in CLIP."""

    temperature: float = param(0.07, help="initial temperature; its inverse is learned and stays at or below 100", above=0.01)
    same_text: str = param("negative", help=_SAME_TEXT, one_of=("negative", "ignore"))

    def calls(self) -> dict[str, Contract]:
        """One loss, ``global``."""
        return self.pooled_calls(losses=("global",), needs={"token_ids": "B L:int @clean"} if self.same_text == "ignore" else None)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Both views, both projections."""
        return (cls(dim=8), cls(dim=12, view="masked", projection="mlp", text_pool="mean", same_text="ignore"))


@component("standard.siglip", role=Role.ALIGNMENT, build="medvlp_standard.alignment.siglip:SigLip")
@attrs.frozen(kw_only=True)
class SigLipSpec(AlignmentSpec):
    """Global image-text matching of every pair by itself with a sigmoid loss, as in SigLIP."""

    initial_scale: float = param(10.0, help="initial factor on the cosine; learned", above=0)
    initial_bias: float = param(-10.0, help="initial bias on the logits; learned")
    same_text: str = param("negative", help=_SAME_TEXT, one_of=("negative", "ignore"))

    def calls(self) -> dict[str, Contract]:
        """One loss, ``global``."""
        return self.pooled_calls(losses=("global",), needs={"token_ids": "B L:int @clean"} if self.same_text == "ignore" else None)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Both views, both projections."""
        return (cls(dim=8), cls(dim=12, view="masked", projection="mlp", text_pool="mean", same_text="ignore"))


@component("standard.gloria", role=Role.ALIGNMENT, build="medvlp_standard.alignment.gloria:Gloria")
@attrs.frozen(kw_only=True)
class GloriaSpec(AlignmentSpec):
    """Global contrast, and local contrast of words with the image regions they attend to, as in GLoRIA."""

    text_pool: str = param("mean", help=_TEXT_POOL, one_of=("cls", "mean"))
    attention_scale: float = param(4.0, help="sharpness of the attention over regions (tau1)", above=0)
    word_scale: float = param(5.0, help="sharpness of the sum over words (tau2)", above=0)
    logit_scale: float = param(10.0, help="factor on the similarities of both losses (tau3)", above=0)
    aggregate_words: bool = param(True, help=_AGGREGATE)

    def calls(self) -> dict[str, Contract]:
        """Two losses, ``global`` and ``local``."""
        return self.pooled_calls(losses=("global", "local"), needs=self.local_needs())

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Words and pieces, both views."""
        return (cls(dim=8), cls(dim=12, view="masked", projection="mlp", aggregate_words=False))


@component("standard.mgca", role=Role.ALIGNMENT, build="medvlp_standard.alignment.mgca:Mgca")
@attrs.frozen(kw_only=True)
class MgcaSpec(AlignmentSpec):
    """Global contrast, and contrast of words and patches inside each pair, as in MGCA (without prototypes)."""

    projection: str = param("mlp", help=_PROJECTION, one_of=("linear", "mlp"))
    temperature: float = param(0.07, help="temperature of the global loss", above=0)
    local_temperature: float = param(0.1, help="temperature of the local attention and loss", above=0)
    aggregate_words: bool = param(True, help=_AGGREGATE)

    def calls(self) -> dict[str, Contract]:
        """Two losses, ``global`` and ``local``."""
        return self.pooled_calls(losses=("global", "local"), needs=self.local_needs())

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Words and pieces, both views."""
        return (cls(dim=8), cls(dim=12, view="masked", projection="linear", aggregate_words=False))


SPECS: tuple[type[ComponentSpec], ...] = (InfoNceSpec, SigLipSpec, GloriaSpec, MgcaSpec)
