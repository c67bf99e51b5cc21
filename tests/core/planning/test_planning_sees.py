"""``sees="past"``: what sees a text only up to each position, worked out along the calls, and demanded where it counts (MV204)."""

from __future__ import annotations

from typing import Any

import pytest
from toy_parts import BASE, CONTRAST, ENCODER, FUSION, MASKING, TEXT, plan_parts, planned

from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.sees import Sight, text_along
from medvlp_core.planning.wiring import PortKey
from medvlp_core.spec.contract import Contract, TensorSpec

PAST = TensorSpec.parse("B L 7", sees="past")
CAUSAL = {
    "embed": Contract(needs={"token_ids": "B L:int"}, gives={"text_embeddings": TensorSpec.parse("B L 5", sees="past")}),
    "encode": Contract(
        needs={"text_embeddings": "B L 5", "text_is_valid": "B L:bool"},
        gives={"text_tokens": TensorSpec.parse("B L 5", sees="past")},
    ),
}


def head(given: Any = PAST, losses: tuple[str, ...] = ("loss",), **needs: Any) -> Contract:
    return Contract(needs=needs or {"text_tokens": "B L 5"}, gives={"next_word_logits": given}, losses=losses)


def parts(text: Any = CAUSAL, **more: Any) -> dict[str, Any]:
    named = {f"model.{name.replace('__', '.')}": one for name, one in more.items()}
    return {"model.image_encoder": ENCODER, "model.text_encoder": text, **named}


def complaint(recipe: dict[str, Any]) -> tuple[str, str]:
    plan, diagnostics = plan_parts(recipe)
    assert plan is None
    (problem,) = diagnostics.errors
    assert problem.code == "MV204"
    return problem.text, " ".join(problem.details)


def sees(plan: ModelPlan, name: str, view: str = "clean") -> dict[str, str]:
    key = plan.wiring.resolve(name, view)
    assert isinstance(key, PortKey)
    return dict(Sight(plan.wiring).of(key))


# ----------------------------------------------------------------------------------------------------------------- the rule


def test_ids_see_the_past_and_each_call_hands_on_what_it_promises() -> None:
    plan = planned(parts(decoders__lm=head()))
    for name in ("token_ids", "text_is_valid", "word_ids", "text_embeddings", "text_tokens", "next_word_logits"):
        assert sees(plan, name) == {"text": "past"}, name
    assert sees(plan, "image") == sees(plan, "image_tokens") == sees(plan, "progress") == {}


def test_who_promises_nothing_sees_all_and_so_does_what_comes_after() -> None:
    plan = planned({**BASE, "model.fusion": FUSION, "model.alignments.nce": CONTRAST})
    assert sees(plan, "text_embeddings") == sees(plan, "fused_text_tokens") == sees(plan, "text_embedding") == {"text": "all"}
    late = {**CAUSAL, "encode": TEXT["encode"]}
    plan = planned(parts(late, decoders__head=Contract(needs={"text_tokens": "B L 5"}, losses=("loss",))))
    assert (sees(plan, "text_embeddings"), sees(plan, "text_tokens")) == ({"text": "past"}, {"text": "all"})


def test_a_promise_behind_what_sees_all_is_worth_nothing() -> None:
    early = {**TEXT, "encode": CAUSAL["encode"]}
    plan = planned(parts(early, decoders__head=Contract(needs={"text_tokens": "B L 5"}, losses=("loss",))))
    assert sees(plan, "text_tokens") == {"text": "all"}


def test_what_a_masking_draws_has_seen_all_of_the_text() -> None:
    needs = Contract(needs={"text_tokens": "B L 5 @masked"}, losses=("loss",))
    plan = planned(parts(masking=MASKING, decoders__head=needs))
    assert sees(plan, "token_ids", "masked") == sees(plan, "text_tokens", "masked") == {"text": "all"}
    assert sees(plan, "text_tokens") == {"text": "past"}, "the clean view is as it was"


def test_a_vector_of_the_text_and_patches_that_have_seen_it_see_all_of_it() -> None:
    mixed = Contract(needs={"image_tokens": "B S Di", "text_tokens": "B L Dt"}, gives={"fused_image_tokens": "B S Di"})
    plan = planned(parts(fusion=mixed, decoders__head=Contract(needs={"fused_image_tokens": "B S D"}, losses=("loss",))))
    assert sees(plan, "fused_image_tokens") == {"text": "all"}


def test_a_port_along_no_text_cannot_see_the_past_of_one() -> None:
    pooled = Contract(needs={"text_tokens": "B L 5"}, gives={"summary": TensorSpec.parse("B 5", sees="past")})
    plan = planned(parts(parts__pool=pooled, decoders__head=Contract(needs={"summary": "B 5"}, losses=("loss",))))
    assert text_along(plan.wiring, PortKey("pool.summary")) is None
    assert sees(plan, "summary") == {"text": "all"}


# ------------------------------------------------------------------------------------------------------------------ demands


def test_a_next_word_head_behind_an_encoder_that_sees_all_is_refused() -> None:
    text, details = complaint(parts(TEXT, decoders__lm=head()))
    label = "model.decoders.lm (rnd.model_decoders_lm)"
    assert text.startswith(f"{label} may see a text only up to each position, for it gives next_word_logits, and text_tokens has")
    assert details == "all of it is seen from model.text_encoder (rnd.model_text_encoder) on"


@pytest.mark.parametrize("losses", [("loss",), ()])
def test_so_it_is_without_losses_and_behind_anything_between(losses: tuple[str, ...]) -> None:
    between = Contract(needs={"text_tokens": "B L 5"}, gives={"deeper": TensorSpec.parse("B L 5", sees="past")})
    lm = head(deeper="B L 5")
    given = {"parts__deep": between, "decoders__lm": lm} if losses else {"parts__lm": head(losses=()), "decoders__other": FREE}
    text, details = complaint(parts({**CAUSAL, "encode": TEXT["encode"]}, **given))
    assert "may see a text only up to each position" in text
    assert details == "all of it is seen from model.text_encoder (rnd.model_text_encoder) on"


FREE = Contract(needs={"image_tokens": "B S Di"}, losses=("loss",))


def test_next_words_must_be_promised_to_see_the_past() -> None:
    text, _ = complaint(parts(decoders__lm=head("B L 7")))
    assert text.endswith("next_word_logits must be promised to see the past only")


def test_a_side_door_is_no_way_round() -> None:
    vector = Contract(needs={"text_tokens": "B L Dt"}, gives={"summary": "B 3"})
    lm = head(text_tokens="B L 5", summary="B 3")
    text, details = complaint(parts(parts__pool=vector, decoders__lm=lm))
    assert text.endswith("and summary has seen all of it")
    assert details == "all of it is seen from model.parts.pool (rnd.model_parts_pool) on"


def test_a_need_may_demand_it() -> None:
    asks = Contract(needs={"text_tokens": TensorSpec.parse("B L 5", sees="past")}, losses=("loss",))
    planned(parts(decoders__head=asks))
    text, _ = complaint(parts(TEXT, decoders__head=asks))
    assert text.endswith("may see a text only up to each position, and text_tokens has seen all of it")


def test_a_head_of_any_name_that_promises_and_learns_is_held_to_it() -> None:
    other = Contract(needs={"text_tokens": "B L 5"}, gives={"scores": PAST}, losses=("loss",))
    assert "for it gives scores" in complaint(parts(TEXT, decoders__lm=other))[0]


def test_images_are_free() -> None:
    lm = head(token_ids="B L:int", text_is_valid="B L:bool", image_tokens="B S Di")
    planned(parts(TEXT, decoders__lm=lm))
