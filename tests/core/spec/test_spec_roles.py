"""What derives from the table of roles."""

from __future__ import annotations

from medvlp_core.spec.roles import BUILD_ORDER, ENCODERS, HEADS, MODULE_NAMES, Role


def test_the_parts_of_the_model_derive_from_the_table() -> None:
    assert ENCODERS == (Role.IMAGE_ENCODER, Role.TEXT_ENCODER)
    assert HEADS == (Role.ALIGNMENT, Role.DECODER)
    assert list(BUILD_ORDER) == [*ENCODERS, Role.MASKING, Role.FUSION, *HEADS]
    assert sorted(BUILD_ORDER) == sorted(MODULE_NAMES)


def test_a_port_has_the_stage_of_its_role_or_an_earlier_one() -> None:
    info = Role.TEXT_ENCODER.info
    assert (info.stage_of("text_tokens"), info.stage_of("text_embeddings")) == ("encode_text", "embed_text")
    assert Role.FUSION.info.stage_of("fused_text_tokens") == "fuse"
