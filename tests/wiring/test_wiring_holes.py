"""What check once called right and nothing could run: each is built and runs, or is refused with a code and a place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_parts import BASE, CONTRAST, EARLY, ENCODER, FUSION, MASKING, PIXELS, TEXT, built, plan_parts, planned, synthetic_batch

from medvlp_core.errors import DataError
from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn.batch import StepOutput
from medvlp_core.spec.contract import Contract, TensorSpec
from medvlp_core.spec.fields import Field

HEAD = Contract(needs={"image_tokens": "B S Di"}, losses=("loss",))


def step(parts: dict[str, Any], **more: torch.Tensor) -> tuple[ComposedModel, StepOutput]:
    """Build a recipe and make one step; every part that a loss leads to gets a gradient."""
    plan = planned({**BASE, **parts})
    model = built(plan).train()
    output = model(synthetic_batch(**more))
    assert set(output.losses) == set(plan.losses)
    output.loss.backward()
    used = {call.path for call in plan.calls if call.gives or plan.components[call.path].losses}
    lost = [path for path in used if path != "model.masking" and model.get_parameter(f"{path[6:]}.scale").grad is None]
    assert lost == []
    return model, output


def refused(parts: dict[str, Any], **blocks: Any) -> tuple[str, str, str | None]:
    """Code, text and hint of the one error; it has a place."""
    plan, diagnostics = plan_parts({**BASE, **parts}, **blocks)
    assert plan is None
    (problem,) = diagnostics.errors
    assert problem.position is not None
    return problem.code, problem.text, problem.hint


# ------------------------------------------------------------------------------------------------------- what a batch holds


WANTS_LABELS = Contract(needs={"labels": "B 14", "image_tokens": "B S Di"}, losses=("loss",))


def test_a_data_component_that_gives_labels_is_refused() -> None:
    plan, diagnostics = plan_parts({**BASE, "data": Contract(gives={"labels": "B 14"}), "model.decoders.wants": WANTS_LABELS})
    assert plan is None
    (problem,) = (one for one in diagnostics.errors if one.code == "MV302")
    assert problem.text == "data (rnd.data): a data component gives no ports but fields, found gives={labels}"
    assert problem.hint == "declare Contract(fields={NAME: Field(DIMS, kind=...)})"
    assert problem.position is not None


def test_a_data_component_with_a_field_of_labels_feeds_whoever_needs_them() -> None:
    data = Contract(fields={"labels": Field("B 14", kind="vector")})
    step({"data": data, "model.decoders.wants": WANTS_LABELS}, labels=torch.zeros(3, 14))


def test_a_tokenizer_that_gives_sentence_ids_feeds_whoever_needs_them() -> None:
    rows = {name: f"B 24:{kind}" for name, kind in (("token_ids", "int"), ("text_is_valid", "bool"), ("word_ids", "int"))}
    tokenizer = Contract(gives={**rows, "sentence_ids": "B 24:int", "vocabulary": "64 3:shape"})
    wants = Contract(needs={"sentence_ids": "B L:int", "text_tokens": "B L Dt"}, losses=("loss",))
    parts = {"tokenizer": tokenizer, "model.decoders.wants": wants}
    step(parts, sentence_ids=torch.zeros(3, 7, dtype=torch.int64))
    model = built(planned({**BASE, **parts}))
    with pytest.raises(DataError) as caught:
        model(synthetic_batch())
    (problem,) = caught.value.problems
    assert problem.code == "MV505"
    assert problem.text == "model.decoders.wants (rnd.model_decoders_wants) takes sentence_ids, which the batch does not hold"
    assert problem.position is not None


# ------------------------------------------------------------------------------------------------------------ heads on heads


@pytest.mark.parametrize("port", ["image_embedding", "nce.image_embedding"])
def test_a_decoder_may_need_the_vector_of_an_alignment(port: str) -> None:
    wants = Contract(needs={"vector": TensorSpec.parse("B E", port="image_embedding")}, losses=("loss",))
    block = (wants, {"needs": {"vector": port}})
    model, output = step({"model.alignments.nce": CONTRAST, "model.decoders.wants": block})
    assert "model.alignments.nce.embed_image" in [str(call) for call in model.plan.calls]
    assert torch.isfinite(output.losses["wants.loss"])


def test_a_decoder_may_need_the_prediction_of_another() -> None:
    second = Contract(needs={"guess": "B 3"}, gives={"score": "B"}, losses=("loss",))
    # the one that needs stands first in the recipe
    model, output = step({"model.decoders.a_second": second, "model.decoders.pixels": PIXELS})
    assert [str(call) for call in model.plan.calls][-2:] == ["model.decoders.pixels", "model.decoders.a_second"]
    assert list(output.losses) == ["pixels.loss", "a_second.loss"]
    assert {"pixels.guess", "a_second.score"} <= set(output.ports)


def test_decoders_that_need_each_other_are_refused() -> None:
    first = Contract(needs={"score": "B"}, gives={"guess": "B 3"}, losses=("loss",))
    second = Contract(needs={"guess": "B 3"}, gives={"score": "B"}, losses=("loss",))
    code, text, _ = refused({"model.decoders.first": first, "model.decoders.second": second})
    assert code == "MV201"
    assert text.startswith("components wait for each other: ")


# ------------------------------------------------------------------------------------------------------- maskings, text encoders


def test_a_masking_may_give_a_further_port() -> None:
    further = Contract(needs=MASKING.needs, gives={**MASKING.gives, "score": "B"})
    wants = Contract(needs={"score": "B @masked", "image_tokens": "B S Di @masked"}, losses=("loss",))
    _, output = step({"model.masking": further, "model.decoders.wants": wants})
    assert output.ports["score@masked"].shape == (3,)


def test_what_a_masking_gives_is_there_in_its_view_only() -> None:
    further = Contract(needs=MASKING.needs, gives={**MASKING.gives, "score": "B"})
    code, text, _ = refused({"model.masking": further, "model.decoders.wants": Contract(needs={"score": "B"}, losses=("loss",))})
    assert code == "MV205"
    assert text.endswith("needs score in the clean view, and the model gives it only in the masked view")


def test_a_text_encoder_gets_its_further_needs() -> None:
    embed = Contract(needs={"token_ids": "B L:int", "word_ids": "B L:int"}, gives={"text_embeddings": "B L 5"})
    encode = Contract(
        needs={"text_embeddings": "B L 5", "text_is_valid": "B L:bool", "image_prefix": "B P Di"}, gives={"text_tokens": "B L 5"}
    )
    wants = Contract(needs={"text_tokens": "B L Dt"}, losses=("loss",))
    model, _ = step({"model.text_encoder": {"embed": embed, "encode": encode}, "model.decoders.wants": wants})
    takes = {str(call): [argument for argument, _ in call.takes] for call in model.plan.calls}
    assert takes["model.text_encoder.embed"] == ["token_ids", "word_ids"]
    assert takes["model.text_encoder.encode"] == ["text_embeddings", "text_is_valid", "image_prefix"]


def test_a_text_encoders_need_that_nobody_gives_is_refused() -> None:
    embed = Contract(needs={"token_ids": "B L:int", "sentence_ids": "B L:int"}, gives={"text_embeddings": "B L 5"})
    wants = Contract(needs={"text_tokens": "B L Dt"}, losses=("loss",))
    code, text, _ = refused({"model.text_encoder": {**TEXT, "embed": embed}, "model.decoders.wants": wants})
    assert (code, text) == (
        "MV201",
        "model.text_encoder (rnd.model_text_encoder) needs sentence_ids, and no component gives it",
    )


@pytest.mark.parametrize("fusion", [None, EARLY, FUSION])
def test_a_text_encoder_may_give_more(fusion: Contract | None) -> None:
    encode = Contract(needs=TEXT["encode"].needs, gives={"text_tokens": "B L 5", "sentence": "B L 5"})
    wants = Contract(needs={"sentence": "B L Ds"}, losses=("loss",))
    fused = Contract(needs={"fused_text_tokens": "B L Df"}, losses=("loss",))
    parts: dict[str, Any] = {"model.text_encoder": {**TEXT, "encode": encode}, "model.decoders.wants": wants}
    if fusion is not None:
        parts |= {"model.fusion": fusion, "model.decoders.fused": fused}
    model, _ = step(parts)
    found = model.eval().ports(synthetic_batch(), "sentence", "text_encoder.sentence", "sentence@masked")
    assert found["sentence"].shape == (3, 7, 5)
    assert torch.equal(found["sentence"], found["text_encoder.sentence"])


def test_after_an_early_fusion_all_that_the_text_layers_give_is_there_once_more() -> None:
    encode = Contract(needs=TEXT["encode"].needs, gives={"text_tokens": "B L 5", "sentence": "B L 5"})
    wants = Contract(needs={"fused_sentence": "B L Ds"}, losses=("loss",))
    parts = {"model.text_encoder": {**TEXT, "encode": encode}, "model.fusion": EARLY, "model.decoders.wants": wants}
    model, _ = step(parts)
    found = model.ports(synthetic_batch(), "fused_sentence", "sentence", "fused_text_tokens")
    assert {name: value.shape for name, value in found.items()} == dict.fromkeys(found, (3, 7, 5))


# ------------------------------------------------------------------------------------------------------------ two that give one


def test_two_decoders_may_give_one_port() -> None:
    other = Contract(needs={"image_tokens": "B S Di"}, gives={"guess": "B 3"}, losses=("loss",))
    model, output = step({"model.decoders.first": PIXELS, "model.decoders.second": other})
    assert {"first.guess", "second.guess"} <= set(output.ports)
    found = model.ports(synthetic_batch(), "first.guess", "second.guess")
    assert list(found) == ["first.guess", "second.guess"]


def test_who_needs_the_port_of_two_must_say_which() -> None:
    other = Contract(needs={"image_tokens": "B S Di"}, gives={"guess": "B 3"}, losses=("loss",))
    wants = Contract(needs={"answer": TensorSpec.parse("B 3", port="guess")}, losses=("loss",))
    two = {"model.decoders.first": PIXELS, "model.decoders.second": other}
    assert refused({**two, "model.decoders.wants": wants}) == (
        "MV209",
        "model.decoders.wants (rnd.model_decoders_wants) needs guess, and several components give it: first.guess, second.guess",
        "say which one it means: `needs: {answer: first.guess}`",
    )
    model, _ = step({**two, "model.decoders.wants": (wants, {"needs": {"answer": "second.guess"}})})
    (call,) = (call for call in model.plan.calls if call.path == "model.decoders.wants")
    assert [(argument, str(key)) for argument, key in call.takes] == [("answer", "second.guess")]


def test_an_evaluator_that_needs_the_port_of_two_is_skipped_until_it_says_which() -> None:
    two = {"model.alignments.first": CONTRAST, "model.alignments.second": CONTRAST}
    block = {"use": "standard.retrieval"}
    plan, diagnostics = plan_parts({**BASE, **two}, evaluators={"retrieval": block})
    assert plan is not None
    assert not plan.evaluators
    (skipped,) = (problem for problem in diagnostics.warnings if problem.code == "MV207")
    assert skipped.hint == (
        "say which one it means: `needs: {image_embedding: first.image_embedding, text_embedding: first.text_embedding}`"
    )
    needs = {"image_embedding": "second.image_embedding", "text_embedding": "second.text_embedding"}
    plan = planned({**BASE, **two}, evaluators={"retrieval": {**block, "needs": needs}})
    assert list(plan.evaluators) == ["retrieval"]
    takes = plan.wiring.takes("evaluators.retrieval")
    assert {argument: str(key) for argument, key in takes} == needs


def test_what_a_call_gives_names_no_view() -> None:
    former = Contract(needs=ENCODER.needs, gives={"image_tokens": "B 4 6 @masked"})
    code, text, hint = refused({"model.image_encoder": former, "model.decoders.head": HEAD})
    assert (code, hint) == ("MV306", "its author must repair it")
    assert "forward gives 'image_tokens' in the view 'masked', and what a call gives names no view" in text
    assert "marked with when=ARGUMENT" in text


def test_an_encoder_may_give_more_and_its_prefix_may_be_missing() -> None:
    more = Contract(needs=ENCODER.needs, gives={**ENCODER.gives, "pooled": "B 6"})
    wants = Contract(needs={"pooled": "B Di"}, losses=("loss",))
    _, output = step({"model.image_encoder": more, "model.decoders.wants": wants})
    assert torch.isfinite(output.loss)
