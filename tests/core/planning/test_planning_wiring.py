"""Which call computes a port in a view: names, views that fall back, several that give one port, what cannot be fed, circles."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from toy_parts import BASE, CONTRAST, EARLY, ENCODER, FUSION, MASKING, PIXELS, plan_parts, planned

from medvlp_core.planning.missing import why_missing
from medvlp_core.planning.wiring import Call, Circle, Missing, PortKey, Wiring
from medvlp_core.spec.contract import Contract, TensorSpec

#: A head that is content with what every model here has.
HEAD = Contract(needs={"image_tokens": "B S Di"}, losses=("loss",))
REGIONS = Contract(needs={"image_tokens": "B S Di"}, gives={"image_tokens": "B S Di"})


def wiring_of(parts: dict[str, Any], **blocks: Any) -> Wiring:
    return planned({**BASE, "model.decoders.head": HEAD, **parts}, **blocks).wiring


def key(wiring: Wiring, name: str, view: str = "clean") -> str:
    found = wiring.resolve(name, view)
    assert isinstance(found, PortKey), found
    return str(found)


def missing(wiring: Wiring, name: str, view: str = "clean") -> Missing:
    found = wiring.resolve(name, view)
    assert isinstance(found, Missing), found
    return found


# --------------------------------------------------------------------------------------------------------------------- names


def test_a_key_reads_and_prints_its_name() -> None:
    for text in ("image", "gla.image_embedding", "image_is_masked@masked", "second.image_tokens@mae"):
        assert str(PortKey.parse(text)) == text
    found = PortKey.parse("second.image_tokens@mae")
    assert (found.slot, found.name, found.port, found.view) == ("second", "image_tokens", "second.image_tokens", "mae")
    assert (PortKey.parse("image@clean"), PortKey.parse("image").slot) == (PortKey("image"), "")


def test_short_and_full_names_mean_the_same_port() -> None:
    wiring = wiring_of({})
    assert key(wiring, "image_tokens") == key(wiring, "image_encoder.image_tokens") == "image_encoder.image_tokens"
    assert wiring.short(PortKey("image_encoder.image_tokens")) == "image_tokens"
    assert wiring.key("image_encoder.image_tokens") == wiring.key("image_tokens")


def test_what_the_batch_brings_goes_by_the_port_alone() -> None:
    wiring = wiring_of({})
    assert [key(wiring, name) for name in ("image", "token_ids", "inputs.image", "tokenizer.token_ids")] == [
        "image",
        "token_ids",
        "image",
        "token_ids",
    ]
    assert missing(wiring, "image_encoder.token_ids") == Missing("", "image_encoder.token_ids", "clean")


def test_a_shape_has_the_slot_that_gives_it_and_no_call() -> None:
    wiring = wiring_of({})
    found = wiring.resolve("image_grid")
    assert found == PortKey("image_encoder.image_grid")
    assert wiring.call_of(found) is None
    assert wiring.sizes(found) == (2, 2)


def test_a_short_name_means_the_fixed_slot_before_any_other() -> None:
    wiring = wiring_of({"model.parts.regions": REGIONS})
    assert key(wiring, "image_tokens") == "image_encoder.image_tokens"
    assert key(wiring, "regions.image_tokens") == "regions.image_tokens"
    assert wiring.short(PortKey("regions.image_tokens")) == "regions.image_tokens"


def test_a_short_name_means_the_only_port_of_that_name() -> None:
    wiring = wiring_of({"model.alignments.nce": CONTRAST})
    assert key(wiring, "image_embedding") == "nce.image_embedding"
    assert wiring.short(PortKey("nce.image_embedding")) == "image_embedding"


def test_a_name_with_several_meanings_names_them_all() -> None:
    wiring = wiring_of({"model.alignments.nce": CONTRAST, "model.alignments.again": CONTRAST})
    found = missing(wiring, "image_embedding")
    assert found.candidates == ("again.image_embedding", "nce.image_embedding")
    assert key(wiring, "again.image_embedding") == "again.image_embedding"
    assert why_missing(wiring, [found]) == (
        "image_embedding, which several components give (again.image_embedding, nce.image_embedding)"
    )


def test_a_call_that_cannot_be_fed_makes_no_name_ambiguous() -> None:
    starved = CONTRAST | {"embed_image": Contract(needs={"lung_mask": "B N"}, gives={"image_embedding": "B 3"})}
    wiring = wiring_of({"model.alignments.nce": CONTRAST, "model.alignments.again": starved})
    assert key(wiring, "image_embedding") == "nce.image_embedding"


def test_a_port_that_nobody_gives_has_no_cause() -> None:
    wiring = wiring_of({})
    assert missing(wiring, "lung_mask") == Missing("", "lung_mask", "clean")
    assert wiring.key("lung_mask") is None
    assert missing(wiring, "nowhere.image_tokens").port == "nowhere.image_tokens"


# --------------------------------------------------------------------------------------------------------------------- views


def test_a_port_that_is_the_same_in_a_view_is_its_parents() -> None:
    words = Contract(needs={"text_is_valid": "B L:bool"}, gives={"text_is_masked": "B L:bool", "token_ids": "B L:int"})
    wiring = wiring_of({"model.masking": words})
    assert key(wiring, "image_tokens", "masked") == "image_encoder.image_tokens", "masked words cost no second image pass"
    assert key(wiring, "text_tokens", "masked") == "text_encoder.text_tokens@masked"
    assert key(wiring, "text_is_valid", "masked") == "text_is_valid"
    assert key(wiring, "token_ids", "masked") == "token_ids@masked"
    assert wiring.call("model.image_encoder", "forward", "masked") is wiring.call("model.image_encoder", "forward")


def test_a_port_differs_in_a_view_if_something_on_the_way_to_it_does() -> None:
    wiring = wiring_of({"model.fusion": FUSION, "model.parts.regions": REGIONS})
    assert key(wiring, "fused_text_tokens", "masked") == "fusion.fused_text_tokens@masked"
    assert key(wiring, "regions.image_tokens", "masked") == "regions.image_tokens@masked"
    provider = wiring.provider(PortKey("image_encoder.image_tokens", "masked"))
    assert (provider.spec.layout, provider.spec.dims) == ("dropped", ("B", "Nv", 6)), "the shape where the mask is there"
    assert wiring.provider(PortKey("image_encoder.image_tokens")).spec.dims == ("B", 4, 6)
    assert wiring.sizes(PortKey("image_encoder.image_tokens", "masked")) == (None, None, 6)


def test_views_fall_back_link_by_link() -> None:
    words = Contract(needs={"token_ids": "B L:int"}, gives={"text_is_masked": "B L:bool", "token_ids": "B L:int"})
    wiring = wiring_of({"model.maskings.mae": MASKING, "model.maskings.mlm": (words, {"of": "mae"}), "model.fusion": FUSION})
    assert list(wiring.chain("mlm")) == ["mlm", "mae", "clean"]
    assert key(wiring, "image_is_masked", "mlm") == "image_is_masked@mae"
    assert key(wiring, "image_tokens", "mlm") == "image_encoder.image_tokens@mae"
    assert key(wiring, "text_is_masked", "mlm") == "text_is_masked@mlm"
    assert key(wiring, "fused_text_tokens", "mlm") == "fusion.fused_text_tokens@mlm"
    masking = wiring.call("model.maskings.mlm", "forward")
    assert isinstance(masking, Call)
    assert dict(masking.takes) == {"token_ids": PortKey("token_ids", "mae")}, "it reads its parent view"


def test_losses_read_the_clean_view_and_what_they_mark() -> None:
    both = Contract(
        needs={"image_tokens": "B S Di", "seen": TensorSpec.parse("B V Di @masked", port="image_tokens")}, losses=("loss",)
    )
    wiring = wiring_of({"model.decoders.both": both})
    call = wiring.call("model.decoders.both", "forward", "masked")
    assert isinstance(call, Call)
    assert call.view == "clean"
    assert dict(call.takes) == {
        "image_tokens": PortKey("image_encoder.image_tokens"),
        "seen": PortKey("image_encoder.image_tokens", "masked"),
    }


def test_a_recipe_binds_the_views_that_a_contract_names() -> None:
    parts = {
        "model.maskings.mae": MASKING,
        "model.decoders.pixels": (PIXELS, {"views": {"masked": "mae"}}),
        "model.decoders.second": PIXELS,
    }
    wiring = wiring_of(parts)
    taken = {slot: wiring.call(f"model.decoders.{slot}", "forward").takes for slot in ("pixels", "second")}  # type: ignore[union-attr]
    assert {slot: {str(source) for _, source in takes} for slot, takes in taken.items()} == {
        "pixels": {"image_encoder.image_tokens@mae", "image_is_masked@mae"},
        "second": {"image_encoder.image_tokens@masked", "image_is_masked@masked"},
    }


# --------------------------------------------------------------------------------------------------------------- re-pointing


def test_a_recipe_points_an_argument_elsewhere_in_all_calls() -> None:
    wiring = wiring_of(
        {"model.parts.regions": REGIONS, "model.alignments.nce": (CONTRAST, {"needs": {"image_tokens": "regions.image_tokens"}})}
    )
    for name in ("forward", "embed_image"):
        assert dict(wiring.takes("model.alignments.nce", name))["image_tokens"] == PortKey("regions.image_tokens")
    assert dict(wiring.takes("model.alignments.nce", "embed_text")) == {"text_tokens": PortKey("text_encoder.text_tokens")}


def test_a_recipe_may_name_the_view_too() -> None:
    wiring = wiring_of({"model.decoders.other": (HEAD, {"needs": {"image_tokens": "image_tokens@masked"}})})
    assert dict(wiring.takes("model.decoders.other")) == {"image_tokens": PortKey("image_encoder.image_tokens", "masked")}


# ------------------------------------------------------------------------------------------------------ what cannot be fed


def test_an_offer_that_nobody_can_feed_does_not_exist_and_says_why() -> None:
    starved = CONTRAST | {"embed_image": Contract(needs={"lung_mask": "B N"}, gives={"image_embedding": "B 3"})}
    plan, diagnostics = plan_parts({**BASE, "model.alignments.nce": starved})
    assert plan is not None, "only what losses or evaluators want is complained about"
    assert [problem.code for problem in diagnostics] == ["MV208"], "the masking is not used"
    found = missing(plan.wiring, "image_embedding")
    assert found.causes == (Missing("model.alignments.nce", "lung_mask", "clean"),)
    assert plan.wiring.call("model.alignments.nce", "embed_image") == found.causes
    assert why_missing(plan.wiring, [found]) == "image_embedding (model.alignments.nce (rnd.model_alignments_nce) lacks lung_mask)"


def test_the_reason_is_the_need_at_the_bottom() -> None:
    vector = Contract(needs={"region": "B N D"}, gives={"score": "B"})
    region = Contract(needs={"lung_mask": "B N"}, gives={"region": "B N 6"})
    head = Contract(needs={"score": "B"}, losses=("loss",))
    parts = {**BASE, "model.decoders.head": head, "model.parts.vector": vector, "model.parts.region": region}
    plan, diagnostics = plan_parts(parts)
    assert plan is None
    texts = {problem.text for problem in diagnostics.errors}
    assert texts == {"model.parts.region (rnd.model_parts_region) needs lung_mask, and no component gives it"}


def test_an_optional_need_may_be_missing_and_an_ambiguous_one_may_not() -> None:
    wants = Contract(needs={"image_tokens": "B S Di", "image_embedding": "B E?"}, losses=("loss",))
    wiring = wiring_of({"model.decoders.wants": wants})
    assert [argument for argument, _ in wiring.takes("model.decoders.wants")] == ["image_tokens"]
    two = {"model.alignments.a": CONTRAST, "model.alignments.b": CONTRAST, "model.decoders.wants": wants}
    plan, diagnostics = plan_parts({**BASE, **two})
    assert plan is None
    (problem,) = diagnostics.errors
    assert problem.code == "MV209"
    assert problem.hint == "say which one it means: `needs: {image_embedding: a.image_embedding}`"


def test_a_view_that_no_masking_opens_is_missing() -> None:
    parts = {"model.image_encoder": ENCODER, "model.decoders.pixels": PIXELS}
    plan, diagnostics = plan_parts(parts)
    assert plan is None
    (problem,) = diagnostics.errors
    assert (problem.code, problem.text) == ("MV201", "the recipe has no masking, and 1 component needs it")


def test_masked_tokens_are_not_taken_from_an_encoder_that_masks_nothing() -> None:
    whole = Contract(needs={"image": "B 1 8 8"}, gives={"image_tokens": "B 4 6"})
    plan, diagnostics = plan_parts({**BASE, "model.image_encoder": whole, "model.decoders.pixels": PIXELS})
    assert plan is None
    (problem,) = diagnostics.errors
    assert problem.code == "MV205"
    assert "needs image_tokens in the masked view" in problem.text
    assert "gives it only in the clean view: it masks no patches" in problem.text


# ------------------------------------------------------------------------------------------------------- calls and routes


def test_the_text_layers_run_on_fused_embeddings_only_after_an_early_fusion() -> None:
    early = wiring_of({"model.fusion": EARLY})
    assert key(early, "fused_text_tokens", "masked") == "text_encoder.fused_text_tokens@masked"
    call = early.call_of(PortKey("text_encoder.fused_text_tokens", "masked"))
    assert call is not None
    assert (call.name, call.method) == ("fused", "encode")
    assert dict(call.takes)["text_embeddings"] == PortKey("fusion.fused_text_embeddings", "masked")
    assert missing(wiring_of({}), "fused_text_tokens") == Missing("", "fused_text_tokens", "clean")


def test_a_route_has_what_is_needed_in_an_order_that_works_and_nothing_else() -> None:
    wiring = wiring_of({"model.fusion": FUSION, "model.alignments.nce": CONTRAST})
    wanted = [wiring.resolve("fused_text_tokens"), wiring.resolve("nce.image_embedding")]
    assert [str(call) for call in wiring.route(wanted)] == [
        "model.text_encoder.embed",
        "model.text_encoder.encode",
        "model.image_encoder",
        "model.fusion",
        "model.alignments.nce.embed_image",
    ]
    assert wiring.route([PortKey("image"), PortKey("image_encoder.image_grid")]) == ()


def test_every_call_of_a_plan_comes_after_what_it_takes() -> None:
    plan = planned({**BASE, "model.fusion": EARLY, "model.alignments.nce": CONTRAST, "model.decoders.pixels": PIXELS})
    have = {name for name in plan.wiring.batch if name.view == "clean"}
    for call in plan.calls:
        assert {source for _, source in call.takes} <= have, str(call)
        have |= set(call.gives)
        assert all(plan.wiring.call_of(given) == call for given in call.gives)


def test_the_call_of_a_port_that_there_is_not() -> None:
    with pytest.raises(KeyError):
        wiring_of({}).call_of(PortKey("image_encoder.text_tokens"))


# ------------------------------------------------------------------------------------------------------------------- circles


def test_calls_that_wait_for_each_other_are_named_in_a_row() -> None:
    first = Contract(needs={"score": "B"}, gives={"guess": "B 3"}, losses=("loss",))
    second = Contract(needs={"guess": "B 3"}, gives={"score": "B"}, losses=("loss",))
    plan, diagnostics = plan_parts({**BASE, "model.decoders.first": first, "model.decoders.second": second})
    assert plan is None
    (problem,) = diagnostics.errors
    assert (problem.code, problem.text) == (
        "MV201",
        "components wait for each other: model.decoders.first -> model.decoders.second -> model.decoders.first",
    )
    assert problem.position is not None
    assert problem.hint == "re-point one of their needs: `needs: {ARGUMENT: SLOT.PORT}`"


def test_a_component_that_feeds_itself_is_a_circle_of_one() -> None:
    own = Contract(needs={"guess": "B 3"}, gives={"guess": "B 3"}, losses=("loss",))
    _, diagnostics = plan_parts({**BASE, "model.decoders.own": own})
    assert [problem.text for problem in diagnostics.errors] == [
        "components wait for each other: model.decoders.own -> model.decoders.own"
    ]


def test_a_masking_may_read_clean_tokens_and_no_circle_is_seen() -> None:
    looks = Contract(needs={"image_tokens": "B N Di"}, gives={"image_is_masked": "B N:bool"})
    wiring = wiring_of({"model.masking": looks})
    assert key(wiring, "image_tokens", "masked") == "image_encoder.image_tokens@masked"
    masking = wiring.call("model.masking", "forward")
    assert isinstance(masking, Call)
    assert dict(masking.takes) == {"image_tokens": PortKey("image_encoder.image_tokens")}


def test_resolving_raises_what_planning_reports() -> None:
    own = Contract(needs={"guess": "B 3"}, gives={"guess": "B 3"}, losses=("loss",))
    plan = planned({**BASE, "model.decoders.head": HEAD})
    component = attrs.evolve(plan.components["model.decoders.head"], calls={"forward": own})
    wiring = Wiring({component.path: component}, plan.wiring.views)
    wiring.declared["guess"] = [("model.decoders.head", "forward")]
    with pytest.raises(Circle, match=r"model\.decoders\.head -> model\.decoders\.head"):
        wiring.resolve("guess")
