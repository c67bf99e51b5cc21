"""What derives from the table of roles."""

from __future__ import annotations

from medvlp_core.nn import batch
from medvlp_core.spec.roles import BUILD_ORDER, ENCODERS, HEADS, MODEL_BLOCKS, ROLES, SLOTS, Role


def test_the_parts_of_the_model_derive_from_the_table() -> None:
    assert ENCODERS == (Role.IMAGE_ENCODER, Role.TEXT_ENCODER)
    assert HEADS == (Role.ALIGNMENT, Role.DECODER)
    assert list(BUILD_ORDER)[:2] == list(ENCODERS)
    assert set(BUILD_ORDER) == {role for role in Role if role.info.is_module}
    assert {slot.removeprefix("model.").removesuffix(".*") for slot in SLOTS if slot.startswith("model.")} == set(MODEL_BLOCKS)


def test_every_slot_takes_a_role_and_free_slots_take_encoders_too() -> None:
    assert {role for roles in SLOTS.values() for role in roles} == set(Role)
    assert all(role in SLOTS[role.info.slot] for role in Role)
    assert {*ENCODERS, Role.FUSION, Role.PART} <= set(SLOTS["model.parts.*"])
    assert SLOTS["model.masking"] == SLOTS["model.maskings.*"] == (Role.MASKING,)
    assert not set(HEADS) & set(SLOTS["model.parts.*"])


def test_every_role_can_be_called_and_returns_something_known() -> None:
    assert {role for role, info in ROLES.items() if info.calls != ("forward",)} == {
        Role.TEXT_ENCODER,
        Role.ALIGNMENT,
        Role.DECODER,
    }
    assert Role.DECODER.info.calls == ("forward", "generate")
    assert Role.TEXT_ENCODER.info.calls == ("embed", "encode")
    assert Role.ALIGNMENT.info.calls == ("forward", "embed_image", "embed_text")
    assert all(getattr(batch, info.output).__doc__ for info in ROLES.values() if info.output is not None)
    assert {role for role in HEADS if role.info.output != "Output"} == set()


def test_the_ports_of_a_role_are_those_it_gives_and_those_it_leads_to() -> None:
    assert Role.TEXT_ENCODER.info.ports == {"text_embeddings", "text_tokens", "fused_text_tokens"}
    assert {"fused_text_tokens", "fused_text_embeddings", "fused_image_tokens"} == Role.FUSION.info.ports
    assert Role.DECODER.info.ports == {"patch_prediction", "word_logits", "next_word_logits"}
