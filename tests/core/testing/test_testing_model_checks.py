"""Components in whole models: each check catches what it is for, and the stub components are made to fit."""

from __future__ import annotations

from pathlib import Path

import attrs
import broken_in_models
import pytest
from broken_bundle import FAULTS, SPECS, Fault, check_fault, host, result

from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import load_plugins
from medvlp_core.spec.component import component
from medvlp_core.spec.contract import Contract, TensorSpec
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import CHECKS as CHECKS_OF_THE_KIT
from medvlp_core.testing.runner import run_check
from medvlp_core.testing.stub_components.specs import FusionSpec, ImageEncoderSpec
from medvlp_core.testing.subject import Subject
from medvlp_core.testing.whole_model import host_with_stubs, plan_model

CHECKS = ("trains_in_a_model", "reloads_from_a_checkpoint", "plans_again_from_resolved")


@pytest.mark.parametrize("fault", FAULTS[broken_in_models.__name__], ids=lambda fault: fault.name)
def test_each_fault_is_caught(fault: Fault) -> None:
    check_fault(fault, *CHECKS)


def test_every_check_catches_something() -> None:
    assert frozenset(CHECKS) == frozenset().union(*(fault.caught_by for fault in FAULTS[broken_in_models.__name__]))


def test_what_needs_a_port_of_a_third_party_gets_one_of_its_shape(tmp_path: Path) -> None:
    assert result("broken.of_another", "trains_in_a_model").outcome == "passed"
    calls = [str(call) for call in planned("broken.of_another", tmp_path).calls]
    assert "model.parts.source @masked" in calls


def test_a_port_of_a_third_party_along_the_text_is_not_made() -> None:
    found = result("broken.of_words_of_another", "trains_in_a_model")
    assert found.outcome == "not applicable"
    assert found.text == "it needs acme_map (B L W), which no stub component of the kit gives"


def test_a_part_is_tried_with_a_squared_error_of_what_it_gives(tmp_path: Path) -> None:
    plan = planned("broken.towards_one", tmp_path)
    assert dict(plan.wiring.takes("model.decoders.distance")) == {"moved": ("tested.moved", "clean")}
    assert "distance.distance" in plan.losses
    subject = Subject(host(), "broken.towards_one")
    found = [run_check(subject, one) for one in CHECKS_OF_THE_KIT.values() if Role.PART in one.roles]
    found = [one for one in found if one.check != "declares_without_torch"]  # the specs of these tests stand beside their modules
    assert {one.check: one.text for one in found if one.outcome == "failed"} == {}
    assert {"trains_in_a_model", "reloads_from_a_checkpoint", "plans_again_from_resolved", "learns"} <= {
        one.check for one in found if one.outcome == "passed"
    }


def test_few_pairs_are_enough_and_images_without_texts_are_no_fault() -> None:
    assert result("broken.of_three_pairs", "trains_in_a_model").outcome == "passed"
    found = result("broken.of_images_alone", "trains_in_a_model")
    assert (found.outcome, found.text) == (
        "not applicable",
        "example 1 of broken.of_images_alone has no texts in the split 'train' to train on",
    )


# ------------------------------------------------------------------------------------------------------ fitting stub components


@component("broken.early", role=Role.FUSION, build="broken_in_models:ForFewPairs")
@attrs.frozen(kw_only=True)
class EarlySpec(FusionSpec):
    """Stands before the layers of the text encoder."""

    def contract(self) -> Contract:
        return Contract(
            needs={"text_embeddings": "B L 36", "image_tokens": TensorSpec.parse("B N 48", layout="replaced")},
            gives={"fused_text_embeddings": "B L 36"},
        )


@component("broken.of_images", role=Role.FUSION, build="broken_in_models:ForFewPairs")
@attrs.frozen(kw_only=True)
class OfImagesSpec(FusionSpec):
    """Gives image tokens alone."""

    def contract(self) -> Contract:
        needs = {"text_tokens": "B L Dt", "image_tokens": "B S Di", "image_prefix": "B 2 Di", "image_grid": "2 3:shape"}
        return Contract(needs=needs, gives={"fused_image_tokens": "B S Dt"})


@component("broken.clean_only", role=Role.IMAGE_ENCODER, build="medvlp_core.testing.stub_components.modules:PatchEncoder")
@attrs.frozen(kw_only=True)
class CleanOnlySpec(ImageEncoderSpec):
    """Has no masked view."""

    def contract(self) -> Contract:
        found = super().contract()
        return attrs.evolve(
            found,
            needs={"image": found.needs["image"]},
            gives={name: spec for name, spec in found.gives.items() if name != "masked_tokens"},
        )


@component("broken.masked_only", role=Role.IMAGE_ENCODER, build="medvlp_core.testing.stub_components.modules:PatchEncoder")
@attrs.frozen(kw_only=True)
class MaskedOnlySpec(ImageEncoderSpec):
    """Encodes no image as a whole."""

    def contract(self) -> Contract:
        found = super().contract()
        mask = attrs.evolve(found.needs["image_is_masked"], is_optional=False)
        return attrs.evolve(found, needs={**found.needs, "image_is_masked": mask})


SPECS += [EarlySpec, OfImagesSpec, CleanOnlySpec, MaskedOnlySpec]


def planned(name: str, folder: Path) -> ModelPlan:
    subject = Subject(host(), name)
    return plan_model(subject.examples[0], host_with_stubs(subject), folder)


def test_stub_components_take_the_sizes_that_a_part_asks_for(tmp_path: Path) -> None:
    plan = planned("broken.early", tmp_path)
    encoder = plan.components["model.image_encoder"].spec
    assert (encoder.token_width, encoder.layout) == (48, "replaced")  # type: ignore[attr-defined]
    assert plan.components["model.text_encoder"].spec.width == 36  # type: ignore[attr-defined]
    assert "model.text_encoder.fused @masked" in map(str, plan.calls)
    assert set(plan.losses) == {"pairs.global", "image.reconstruction", "report.words"}


def test_decoders_read_what_a_fusion_gives(tmp_path: Path) -> None:
    plan = planned("broken.of_images", tmp_path)
    encoder = plan.components["model.image_encoder"].spec
    assert (encoder.rows, encoder.columns, encoder.prefix) == (2, 3, 2)  # type: ignore[attr-defined]
    takes = dict(plan.wiring.takes("model.decoders.image"))
    assert takes["image_tokens"] == ("fusion.fused_image_tokens", "masked")


def test_losses_that_a_part_cannot_have_are_skipped(tmp_path: Path) -> None:
    plan = planned("broken.masked_only", tmp_path)
    assert set(plan.losses) == {"image.reconstruction", "report.words"}


def test_an_encoder_without_a_mask_reconstructs_nothing(tmp_path: Path) -> None:
    plan = planned("broken.clean_only", tmp_path)
    assert set(plan.losses) == {"pairs.global", "report.words"}
    assert [str(call) for call in plan.calls if call.path == "model.image_encoder"] == ["model.image_encoder"]


def test_the_host_holds_the_bundle_and_the_stub_components_alone() -> None:
    found = host_with_stubs(Subject(host(), "broken.early"))
    assert [plugin.namespace for plugin in found.plugins] == ["kit", "broken"]


def test_the_bundle_keeps_its_distribution_beside_the_stub_components() -> None:
    installed = load_plugins(["mpma"])
    found = host_with_stubs(Subject(installed, "mpma.memory_fusion"))
    assert found.components.distribution("mpma.memory_fusion").startswith("medvlp-mpma ")
