"""Parts that are planned and never built, for evaluators on stand-in models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs

from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.roles import Role

BUILD = "stand_ins:Never"
TEXT = {"token_ids": "B L:int", "text_is_valid": "B L:bool", "word_ids": "B L:int"}
VOCABULARY = "V Mask:shape"


class Part(ComponentSpec):
    """Two equal examples are enough here."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        return (cls(), cls())


@component("stand.tokenizer", role=Role.TOKENIZER, build=BUILD)
@attrs.frozen(kw_only=True)
class TokenizerSpec(Part):
    """Six ids."""

    def contract(self) -> Contract:
        return Contract(
            gives={"token_ids": "B 8:int", "text_is_valid": "B 8:bool", "word_ids": "B 8:int", "vocabulary": "6 2:shape"}
        )


@component("stand.masking", role=Role.MASKING, build=BUILD)
@attrs.frozen(kw_only=True)
class MaskingSpec(Part):
    """Masks."""

    def contract(self) -> Contract:
        gives = {"image_is_masked": "B N:bool", "text_is_masked": "B L:bool", "token_ids": "B L:int"}
        return Contract(needs={"image_grid": "GH GW:shape", **TEXT}, gives=gives, sizes=("GH", "GW"))


@component("stand.encoder", role=Role.IMAGE_ENCODER, build=BUILD)
@attrs.frozen(kw_only=True)
class EncoderSpec(Part):
    """4 x 4 patches of 4 x 4 pixels."""

    def contract(self) -> Contract:
        gives = {"image_grid": "4 4:shape", "image_tokens": "B 16 3", "image_prefix": "B 0 3"}
        return Contract(needs={"image": "B 1 16 16", "image_is_masked": "B 16:bool?"}, gives=gives)


@component("stand.text", role=Role.TEXT_ENCODER, build=BUILD)
@attrs.frozen(kw_only=True)
class TextSpec(Part):
    """Text tokens."""

    def calls(self) -> dict[str, Contract]:
        valid = {"text_is_valid": "B L:bool"}
        return {
            "embed": Contract(needs={"token_ids": "B L:int", "vocabulary": VOCABULARY}, gives={"text_embeddings": "B L 3"}),
            "encode": Contract(needs={"text_embeddings": "B L 3", **valid}, gives={"text_tokens": "B L 3"}),
        }


@component("stand.fusion", role=Role.FUSION, build=BUILD)
@attrs.frozen(kw_only=True)
class FusionSpec(Part):
    """Fused tokens."""

    def contract(self) -> Contract:
        return Contract(needs={"text_tokens": "B L Dt", "image_tokens": "B S Di"}, gives={"fused_text_tokens": "B L Dt"})


@component("stand.alignment", role=Role.ALIGNMENT, build=BUILD)
@attrs.frozen(kw_only=True)
class AlignmentSpec(Part):
    """Vectors of two numbers."""

    def calls(self) -> dict[str, Contract]:
        image, text = {"image_tokens": "B S Di"}, {"text_tokens": "B L Dt"}
        return {
            "forward": Contract(needs=image | text, losses=("global",), mixes_rows=True),
            "embed_image": Contract(needs=image, gives={"image_embedding": "B 2"}),
            "embed_text": Contract(needs=text, gives={"text_embedding": "B 2"}),
        }


@component("stand.words", role=Role.DECODER, build=BUILD)
@attrs.frozen(kw_only=True)
class WordsSpec(Part):
    """Predicts words from the fused tokens."""

    def contract(self) -> Contract:
        needs = {
            "fused_text_tokens": "B L Df @masked",
            "token_ids": "B L:int @clean",
            "text_is_masked": "B L:bool @masked",
            "vocabulary": VOCABULARY,
        }
        return Contract(needs=needs, gives={"word_logits": "R V"}, sizes=("V",), losses=("mlm",))


@component("stand.patches", role=Role.DECODER, build=BUILD)
@attrs.frozen(kw_only=True)
class PatchesSpec(Part):
    """Predicts patches."""

    normalise_patches: bool = param(True, help="the target is normalised patch by patch")

    def contract(self) -> Contract:
        needs = {"image": "B C H W", "image_tokens": "B S Di @masked", "image_is_masked": "B N:bool @masked"}
        return Contract(needs=needs, gives={"patch_prediction": "B N Q"}, losses=("reconstruction",))


SPECS: tuple[type[ComponentSpec], ...] = (
    TokenizerSpec,
    MaskingSpec,
    EncoderSpec,
    TextSpec,
    FusionSpec,
    AlignmentSpec,
    WordsSpec,
    PatchesSpec,
)


@hookimpl
def medvlp_register_components(registry: Any) -> None:
    for spec in SPECS:
        registry.add(spec)


RECIPE = """\
medvlp: 1
tokenizer: {use: stand.tokenizer}
inputs: {mean: 0.5, std: 0.25}
model:
  masking: {use: stand.masking}
  image_encoder: {use: stand.encoder}
  text_encoder: {use: stand.text}
  fusion: {use: stand.fusion}
  alignments: {gla: {use: stand.alignment}}
  decoders:
    image: {use: stand.patches, normalise_patches: NORMALISE}
    report: {use: stand.words}
train: {steps: 3}
"""


def stand_in_plan(folder: Path, *, normalise: bool = True) -> ModelPlan:
    """A real plan, of parts that nobody builds."""
    bundle: Any = SimpleNamespace(MEDVLP_INTERFACE=2, medvlp_register_components=medvlp_register_components)
    host = PluginHost.from_modules({"stand": bundle})
    assert host.broken == ()
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("NORMALISE", str(normalise).lower()), encoding="utf-8")
    return plan_recipe(path, host=host)
