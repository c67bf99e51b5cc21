"""A bundle with a fixed set of components, so that the golden texts do not change when the real bundles grow. Nothing is built."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.registry import PluginComponents
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import AtLeast, Contract, Divides, TensorSpec
from medvlp_core.spec.roles import Role

MEDVLP_INTERFACE = 2
BUILD = "toy_modules:Nothing"


class Toy(ComponentSpec):
    """Two equal examples are enough here."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        return (cls(), cls())


@component("toy.pairs", role=Role.DATA, build=BUILD)
@attrs.frozen(kw_only=True)
class PairsSpec(Toy):
    """Radiographs with reports."""

    folder: str = param("pairs", help="where they lie")
    labels: str | None = param(None, help="a file with labels", is_path=True)

    def contract(self) -> Contract:
        return Contract()


@component("toy.words", role=Role.TOKENIZER, build=BUILD)
@attrs.frozen(kw_only=True)
class WordsSpec(Toy):
    """A fixed vocabulary of words."""

    size: int = param(500, help="words", at_least=10)
    length: int = param(64, help="longest report, tokens", at_least=2)
    cased: bool = param(False, help="keep capital letters")
    keep_case: bool = param(False, help="keep capital letters", deprecated="use cased")

    def contract(self) -> Contract:
        rows = {"token_ids": f"B {self.length}:int", "text_is_valid": f"B {self.length}:bool"}
        return Contract(gives={**rows, "word_ids": f"B {self.length}:int", "vocabulary": f"{self.size} Mask:shape"})


@component("toy.random", role=Role.MASKING, build=BUILD)
@attrs.frozen(kw_only=True)
class RandomSpec(Toy):
    """Masks random patches and words."""

    ratio: float = param(0.5, help="share of the patches that is masked", at_least=0, below=1)
    unit: str = param("word", help="what is masked of a text", one_of=("word", "token"))

    def contract(self) -> Contract:
        return Contract(
            needs={"image_grid": "GH GW:shape", "token_ids": "B L:int", "text_is_valid": "B L:bool", "word_ids": "B L:int"},
            gives={"image_is_masked": "B N:bool", "text_is_masked": "B L:bool", "token_ids": "B L:int"},
        )


@component("toy.vit", role=Role.IMAGE_ENCODER, build=BUILD)
@attrs.frozen(kw_only=True)
class VitSpec(Toy):
    """A vision transformer."""

    image_size: int = param(224, help="side of the input, pixels", at_least=16)
    patch: int = param(16, help="side of a patch, pixels", at_least=1)
    width: int = param(192, help="width", at_least=1)
    prefix: int = param(1, help="prefix tokens", at_least=0)
    sizes: tuple[int, ...] = param((), help="more sizes", at_least=1)
    can_mask: bool = param(True, help="give a masked view")

    def contract(self) -> Contract:
        side = self.image_size // self.patch
        image = f"B 1 {self.image_size} {self.image_size}"
        tokens = TensorSpec.parse(f"B Nv {self.width}", port="image_tokens", layout="dropped", when="image_is_masked")
        return Contract(
            needs={"image": image, **({"image_is_masked": f"B {side * side}:bool?"} if self.can_mask else {})},
            gives={
                "image_grid": f"{side} {side}:shape",
                "image_tokens": f"B {side * side} {self.width}",
                **({"visible_tokens": tokens} if self.can_mask else {}),
                "image_prefix": f"B {self.prefix} {self.width}",
            },
        )

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        if self.image_size % self.patch:
            yield "patch", f"patch={self.patch} must divide image_size={self.image_size}", None


@component("toy.bert", role=Role.TEXT_ENCODER, build=BUILD)
@attrs.frozen(kw_only=True)
class BertSpec(Toy):
    """A BERT."""

    width: int = param(192, help="width", at_least=1)
    path: str | None = param(None, help="folder with weights")

    def calls(self) -> dict[str, Contract]:
        embedded = {"text_embeddings": f"B L {self.width}"}
        return {
            "embed": Contract(needs={"token_ids": "B L:int", "vocabulary": "V Mask:shape"}, gives=embedded, sizes=("V",)),
            "encode": Contract(needs={**embedded, "text_is_valid": "B L:bool"}, gives={"text_tokens": f"B L {self.width}"}),
        }


@component("toy.cross_attention", role=Role.FUSION, build=BUILD)
@attrs.frozen(kw_only=True)
class CrossAttentionSpec(Toy):
    """Words look at patches."""

    heads: int = param(4, help="attention heads", at_least=1)

    def contract(self) -> Contract:
        return Contract(
            needs={"text_tokens": "B L D", "text_is_valid": "B L:bool", "image_tokens": "B S Di"},
            gives={"fused_text_tokens": "B L D"},
            sizes=("D", "Di"),
            require=(Divides("D", by=self.heads, field="heads"),),
        )


@component("toy.late_fusion", role=Role.FUSION, build=BUILD, deprecated="use toy.cross_attention, which does the same")
@attrs.frozen(kw_only=True)
class LateFusionSpec(CrossAttentionSpec):
    """The former name of toy.cross_attention; it still works."""


@component("toy.contrast", role=Role.ALIGNMENT, build=BUILD)
@attrs.frozen(kw_only=True)
class ContrastSpec(Toy):
    """Image-text contrast."""

    dim: int = param(128, help="shared width", at_least=1)
    pool: str = param("mean", help="image vector: mean of the patches, or cls", one_of=("mean", "cls"))

    def calls(self) -> dict[str, Contract]:
        image, text = {"image_tokens": "B S Di", "image_prefix": "B P Di"}, {"text_tokens": "B L Dt", "text_is_valid": "B L:bool"}
        return {
            "forward": Contract(
                needs={**image, **text},
                sizes=("Di", "Dt"),
                require=(AtLeast("P", 1, field="pool"),) if self.pool == "cls" else (),
                losses=("global",),
                mixes_rows=True,
            ),
            "embed_image": Contract(needs=image, gives={"image_embedding": f"B {self.dim}"}),
            "embed_text": Contract(needs=text, gives={"text_embedding": f"B {self.dim}"}),
        }


@component("toy.whitening", role=Role.PART, build=BUILD)
@attrs.frozen(kw_only=True)
class WhiteningSpec(Toy):
    """Makes the features of a batch uncorrelated."""

    def contract(self) -> Contract:
        return Contract(needs={"image_tokens": "B S D"}, gives={"image_tokens": "B S D"}, mixes_rows=True)


@component("toy.pixels", role=Role.DECODER, build=BUILD)
@attrs.frozen(kw_only=True)
class PixelsSpec(Toy):
    """Reconstructs masked patches."""

    target_size: int = param(224, help="side of the reconstructed image, pixels")
    tokens: str = param("dropped", help="what the encoder does with masked patches", one_of=("dropped", "replaced"))

    def contract(self) -> Contract:
        return Contract(
            needs={
                "image_tokens": TensorSpec.parse("B S Di @masked", layout=self.tokens),  # type: ignore[arg-type]
                "image_is_masked": "B N:bool @masked",
                "image_target": f"B C {self.target_size} {self.target_size}",
            },
            gives={"patch_prediction": "B N Q"},
            sizes=("Di", "C"),
            losses=("reconstruction",),
        )


@component("toy.mlm", role=Role.DECODER, build=BUILD)
@attrs.frozen(kw_only=True)
class MlmSpec(Toy):
    """Predicts masked words."""

    hidden: int = param(help="width of the hidden layer", at_least=1)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        return (cls(hidden=8), cls(hidden=16))

    def contract(self) -> Contract:
        return Contract(
            needs={"fused_text_tokens": "B L D @masked", "text_is_masked": "B L:bool @masked", "vocabulary": "V Mask:shape"},
            gives={"word_logits": "R V"},
            sizes=("D", "V"),
            losses=("mlm",),
        )


@component("toy.retrieval", role=Role.EVALUATOR, build=BUILD)
@attrs.frozen(kw_only=True)
class RetrievalSpec(Toy):
    """Precision of image-text retrieval."""

    def contract(self) -> Contract:
        return Contract(needs={"image_embedding": "B E", "text_embedding": "B E"})


SPECS: tuple[type[ComponentSpec], ...] = (
    PairsSpec,
    WordsSpec,
    RandomSpec,
    VitSpec,
    BertSpec,
    CrossAttentionSpec,
    LateFusionSpec,
    ContrastSpec,
    WhiteningSpec,
    PixelsSpec,
    MlmSpec,
    RetrievalSpec,
)


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    for spec in SPECS:
        registry.add(spec)
    registry.retire("toy.early_fusion", since="0.3", text="use toy.cross_attention")


@hookimpl
def medvlp_register_presets(register: object) -> None:
    register("base", Path(__file__).parent / "toy_base.yaml")  # type: ignore[operator]
