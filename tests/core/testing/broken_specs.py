"""Specs of components that break one promise each, and of good ones of an unusual kind. Light, as a plugin's specs are.

Each is one of the kit's stub components with one thing changed: the spec here, or the module in
``broken_fusions``, ``broken_views`` or ``broken_heads``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import attrs

from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import Contract, TensorSpec
from medvlp_core.spec.roles import Role
from medvlp_core.testing.stub_components.specs import (
    AlignmentSpec,
    Fault,
    FusionSpec,
    ImageDecoderSpec,
    ImageEncoderSpec,
    MaskingSpec,
    ReportDecoderSpec,
    TextEncoderSpec,
)

Change = Callable[[Contract], Contract]
SPECS: list[type[ComponentSpec]] = []
MODULES = {
    Role.FUSION: "broken_fusions",
    **dict.fromkeys((Role.IMAGE_ENCODER, Role.TEXT_ENCODER, Role.MASKING), "broken_views"),
    **dict.fromkeys((Role.ALIGNMENT, Role.DECODER), "broken_heads"),
}


def variant(base: type[ComponentSpec], build: str, change: Change | None = None) -> None:
    """``broken.build`` is the stub component with the class ``Build`` and, where one is given, a changed contract."""
    role = base.declaration.role

    @component(f"broken.{build}", role=role, build=f"{MODULES[role]}:{build.title().replace('_', '')}")
    @attrs.frozen(kw_only=True)
    class VariantSpec(base):  # type: ignore[valid-type, misc]
        """A stub component of the kit with one thing changed."""

        def calls(self) -> dict[str, Contract]:
            """The stub component's, its first one changed."""
            calls = dict(super().calls())
            first = next(iter(calls))
            return {**calls, first: change(calls[first])} if change else calls

    SPECS.append(VariantSpec)


def needing(**needs: TensorSpec | str) -> Change:
    """Changed or further needs."""
    return lambda contract: attrs.evolve(contract, needs={**contract.needs, **needs})


def giving(**gives: TensorSpec | str) -> Change:
    """Further ports."""
    return lambda contract: attrs.evolve(contract, gives={**contract.gives, **gives})


def giving_only(*, losses: tuple[str, ...] = (), **gives: TensorSpec | str) -> Change:
    """Other ports, and other losses."""
    return lambda contract: attrs.evolve(contract, gives=gives, losses=losses)


def needing_only(*names: str) -> Change:
    """Some of the needs."""
    return lambda contract: attrs.evolve(contract, needs={name: contract.needs[name] for name in names})


# ---------------------------------------------------------------------------------------------- fusions, broken in the module
for name in (
    "takes_other_names",
    "takes_one_argument",
    "gives_too_much",
    "gives_too_little",
    "is_too_wide",
    "gives_doubles",
    "reports_other_sizes",
    "shadows_dims",
    "sums_attention_to_two",
    "sets_the_seed",
    "draws_weights_elsewhere",
    "draws_noise_elsewhere",
    "sets_the_seed_when_called",
    "drops_out_always",
    "stays_on_the_cpu",
    "writes_into_features",
    "averages_padding",
    "averages_the_batch",
    "keeps_a_plain_tensor",
    "keeps_a_fleeting_buffer",
    "branches_on_data",
    "detaches_a_layer",
    "multiplies_by_zero",
    "detaches_the_image",
    "reverses_gradients",
):
    variant(FusionSpec, name)
variant(FusionSpec, "takes_undeclared_sizes")
variant(FusionSpec, "sizes_as_text", lambda contract: attrs.evolve(contract, sizes="Dt"))
variant(FusionSpec, "gives_in_a_view", giving(fused_text_tokens="B L Dt @masked"))
variant(FusionSpec, "marks_by_nothing", giving(fused_text_tokens=TensorSpec.parse("B L Dt", when="image_is_masked")))
variant(FusionSpec, "wants_the_optional", needing(text_is_valid="B L:bool?"))
variant(FusionSpec, "declares_a_loss", lambda contract: attrs.evolve(contract, losses=("balance",)))
variant(FusionSpec, "gives_another_port", giving_only(mixed_tokens="B L Dt"))
# ------------------------------------------------------------------------------------------------------ encoders and maskings
variant(TextEncoderSpec, "overrides_forward")
for name in ("turns_the_raster", "mixes_before_it_drops", "shuffles_visible_tokens"):
    variant(ImageEncoderSpec, name)
for name in (
    "gives_small_ints",
    "computes_ids_as_floats",
    "masks_cls",
    "changes_other_ids",
    "keeps_masked_ids",
    "masks_any_number",
    "masks_the_same_each_time",
    "masks_the_same_in_a_batch",
    "masks_nothing",
    "takes_the_ratio_for_visible",
    "reads_padding",
):
    variant(MaskingSpec, name)
# ----------------------------------------------------------------------------------------------------- alignments and decoders
for name in (
    "has_a_secret_loss",
    "averages_padding_in_its_loss",
    "loses_precision",
    "rests_every_other_step",
    "forgets_to_normalise",
    "weighs_the_first_pair",
    "pushes_pairs_apart",
    "does_not_look_at_pairs",
    "keeps_a_view",
    "lacks_a_method",
):
    variant(AlignmentSpec, name)
variant(AlignmentSpec, "forgets_that_it_mixes", lambda contract: attrs.evolve(contract, mixes_rows=False))
for name in ("root_of_the_mean", "clips_the_image", "peeks_at_pixels", "ignores_the_image"):
    variant(ImageDecoderSpec, name)
WRITER = needing_only("text_tokens", "text_is_valid", "token_ids", "vocabulary")
variant(ReportDecoderSpec, "writes_from_the_answer", lambda contract: WRITER(needing(text_is_valid="B L:bool")(contract)))


def next_words(contract: Contract) -> Contract:
    """Needs an image and the words so far, gives the next word at every position."""
    return attrs.evolve(
        contract,
        needs={"image_tokens": "B S Di", "token_ids": "B L:int", "text_is_valid": "B L:bool", "vocabulary": "V Mask:shape"},
        gives={"next_word_logits": TensorSpec.parse("B L V", sees="past")},
        sizes=("Di", "V"),
    )


for name in ("leaks_the_next_word", "tells_the_length"):
    variant(ReportDecoderSpec, name, next_words)


# -------------------------------------------------------------------------------------------------------- broken in the spec
@component("broken.one_example", role=FusionSpec.declaration.role, build=FusionSpec.declaration.build)
@attrs.frozen(kw_only=True)
class OneExampleSpec(FusionSpec):
    """Shows one instance."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One."""
        return (cls(),)


@component("broken.equal_examples", role=FusionSpec.declaration.role, build=FusionSpec.declaration.build)
@attrs.frozen(kw_only=True)
class EqualExamplesSpec(FusionSpec):
    """Shows one instance twice."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """The same twice."""
        return (cls(), cls())


@component("broken.refused_examples", role=FusionSpec.declaration.role, build=FusionSpec.declaration.build)
@attrs.frozen(kw_only=True)
class RefusedExamplesSpec(FusionSpec):
    """Shows instances that it refuses itself."""

    def problems(self) -> Iterable[Fault]:
        """Only many heads."""
        if self.heads < 4:
            yield "heads", f"heads={self.heads} is not enough", None


HEADS = itertools.cycle((1, 2, 3))


@component("broken.other_examples", role=FusionSpec.declaration.role, build=FusionSpec.declaration.build)
@attrs.frozen(kw_only=True)
class OtherExamplesSpec(FusionSpec):
    """Shows others each time."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Others each time."""
        return (cls(heads=next(HEADS)), cls(heads=next(HEADS)))


@component("broken.list_for_tuple", role=FusionSpec.declaration.role, build=FusionSpec.declaration.build)
@attrs.frozen(kw_only=True)
class ListForTupleSpec(FusionSpec):
    """Shows a list where a tuple is declared."""

    layers: tuple[int, ...] = param((0,), help="layers")

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """A tuple and a list."""
        return (cls(), cls(layers=[1, 2]))  # type: ignore[arg-type]


@component("broken.asks_torch", role=FusionSpec.declaration.role, build=FusionSpec.declaration.build)
@attrs.frozen(kw_only=True)
class AsksTorchSpec(FusionSpec):
    """Asks torch for a number."""

    def contract(self) -> Contract:
        """The stub component's."""
        import torch

        return super().contract() if torch.get_num_threads() else Contract()


@component("broken.embeds_into_two_spaces", role=Role.ALIGNMENT, build="broken_heads:EmbedsIntoTwoSpaces")
@attrs.frozen(kw_only=True)
class TwoSpacesSpec(AlignmentSpec):
    """Has shorter vectors of texts than of images, and says so."""

    def calls(self) -> dict[str, Contract]:
        """The stub component's, but for one width."""
        calls = super().calls()
        return {**calls, "embed_text": giving(text_embedding="B 4")(calls["embed_text"])}


SPECS += [OneExampleSpec, EqualExamplesSpec, RefusedExamplesSpec, OtherExamplesSpec, ListForTupleSpec, AsksTorchSpec, TwoSpacesSpec]

# ------------------------------------------------------------------------------------------- unusual, and as good as any other
GOOD_FROM = len(SPECS)
variant(TextEncoderSpec, "good_frozen_encoder")
variant(
    ImageEncoderSpec,
    "good_encoder_without_masked_view",
    lambda contract: attrs.evolve(
        needing_only("image")(contract), gives={name: spec for name, spec in contract.gives.items() if name != "masked_tokens"}
    ),
)
variant(ImageEncoderSpec, "good_encoder_that_needs_a_mask", needing(image_is_masked="B N:bool"))
variant(FusionSpec, "good_gate_that_starts_at_zero")
variant(FusionSpec, "good_names_of_its_own")
variant(
    FusionSpec,
    "good_fusion_of_image_tokens",
    giving_only(fused_image_tokens="B S Di"),
)
variant(FusionSpec, "good_port_of_its_own", giving(word_gates="B L 1"))
variant(AlignmentSpec, "good_alignment_with_a_queue")
variant(MaskingSpec, "good_masking_with_kept_ids")
variant(ReportDecoderSpec, "good_tied_decoder")
variant(ReportDecoderSpec, "good_next_words", next_words)
variant(ReportDecoderSpec, "good_writer", lambda contract: WRITER(needing(text_is_valid="B L:bool")(contract)))


@component("broken.good_masking_of_words_alone", role=Role.MASKING, build="broken_views:GoodMaskingOfWordsAlone")
@attrs.frozen(kw_only=True)
class WordsAloneSpec(MaskingSpec):
    """Masks no patch."""

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two shares of words."""
        return (cls(image_ratio=0.0), cls(image_ratio=0.0, text_ratio=0.6))


@component("broken.good_alignment_without_parameters", role=Role.ALIGNMENT, build="broken_heads:GoodAlignmentWithoutParameters")
@attrs.frozen(kw_only=True)
class WithoutParametersSpec(AlignmentSpec):
    """Compares tokens of one width."""

    def calls(self) -> dict[str, Contract]:
        """The stub component's, with one width in all calls."""
        calls = super().calls()
        gives = {"embed_image": {"image_embedding": "B D"}, "embed_text": {"text_embedding": "B D"}}
        return {
            name: attrs.evolve(
                contract,
                needs={
                    argument: attrs.evolve(spec, dims=tuple("D" if dim in ("Di", "Dt") else dim for dim in spec.dims))
                    for argument, spec in contract.needs.items()
                },
                gives=gives.get(name, {}),
                sizes=("D",),
            )
            for name, contract in calls.items()
        }


SPECS += [WordsAloneSpec, WithoutParametersSpec]
GOOD = tuple(spec.declaration.name for spec in SPECS[GOOD_FROM:])
