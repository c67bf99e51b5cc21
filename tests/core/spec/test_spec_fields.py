"""What a field may be, which of its axes are ragged, and which ports it gives."""

from __future__ import annotations

import re
from typing import Any

import pytest

from medvlp_core.spec.fields import Field, field_faults


def test_a_field_is_read_from_its_short_form() -> None:
    field = Field("B S Hh Wh", kind="map", on="image")
    assert field.dims == ("B", "S", "Hh", "Wh")
    assert (field.kind, field.on, field.dtype) == ("map", "image", "float")
    assert str(field) == "map B S Hh Wh on image"
    assert Field(("B", 14), kind="vector") == Field("B 14", kind="vector")
    assert str(Field("B 14", kind="vector", dtype="int")) == "vector B 14:int"
    assert Field("B H W", kind="mask", on="image").dtype == "bool"


@pytest.mark.parametrize(
    ("dims", "is_several", "is_deep", "is_colour"),
    [
        ("B C H W", False, False, False),
        ("B 3 H W", False, False, True),
        ("B V C H W", True, False, False),
        ("B V 3 H W", True, False, True),
        ("B 3 C H W", True, False, False),
        ("B 1 D H W", False, True, False),
        ("B C D H W", False, True, False),
        ("B V C D H W", True, True, False),
        ("3 H W", False, False, True),
    ],
)
def test_axes_of_images(dims: str, is_several: bool, is_deep: bool, is_colour: bool) -> None:
    field = Field(dims, kind="image")
    assert (field.has_several_images, field.has_depth, field.is_colour) == (is_several, is_deep, is_colour)
    assert field.pixel_axes() == (("D", "H", "W") if is_deep else ("H", "W"))


def test_the_crop_scales_the_depth_of_what_lies_on_a_volume() -> None:
    scan = Field("B 1 D H W", kind="image")
    assert Field("B S D H W", kind="map", on="scan").pixel_axes(scan) == ("D", "H", "W")
    assert Field("B S D H W", kind="map", on="scan").pixel_axes() == ("H", "W")
    assert Field("B 14", kind="vector").pixel_axes() == ()
    with pytest.raises(ValueError, match=re.escape("a mask on a volume has the axes B ... D H W, found B H W")):
        Field("B H W", kind="mask", on="scan").pixel_axes(scan)


def test_ragged_axes_are_those_without_a_number() -> None:
    heat = Field("B S Hh Wh", kind="map", on="image")
    assert heat.ragged({}) == ("S", "Hh", "Wh")
    assert heat.ragged({"Hh": 14, "Wh": 14}) == ("S",)
    assert heat.ragged({"S": 4, "Hh": 14, "Wh": 14}) == ()
    assert Field("B S L", kind="text").ragged({}) == ("S",), "the tokenizer cuts the tokens"
    assert Field("K L", kind="text").ragged({}) == (), "a constant is not padded"
    assert Field("K L", kind="text").is_constant
    assert not heat.is_constant


def ports(field: Field, sizes: dict[str, int] | None = None, **rest: Any) -> dict[str, str]:
    found = field.extra_ports("x", sizes or {}, **rest)
    return {name: f"{' '.join(map(str, port.dims))}:{port.dtype}" for name, port in found.items()}


def test_extra_ports_say_what_is_real_and_what_is_known() -> None:
    assert ports(Field("B 14", kind="vector")) == {}
    assert ports(Field("B 14", kind="vector"), may_lack=True) == {"x_is_known": "B 14:bool"}
    assert ports(Field("B T F", kind="vector"), {"F": 5}, may_lack=True) == {"x_is_valid": "B T:bool", "x_is_known": "B T F:bool"}
    assert ports(Field("B H W", kind="map", on="image"), {"H": 2, "W": 2}, may_lack=True) == {"x_is_known": "B:bool"}
    assert ports(Field("B V C H W", kind="image"), {"C": 1, "H": 2, "W": 2}) == {"x_is_valid": "B V:bool"}
    assert ports(Field("B K 4", kind="boxes", on="image")) == {"x_is_valid": "B K:bool"}
    assert ports(Field("B 29 4", kind="boxes", on="image")) == {"x_is_valid": "B 29:bool"}, "the crop may take one away"
    assert ports(Field("B K 2", kind="spans", on="text"), {"K": 3}) == {"x_is_valid": "B K:bool"}, "so may the cut"
    assert ports(Field("14 5", kind="vector"), may_lack=True) == {}


def test_a_text_gives_its_tokens_and_the_text_short_names() -> None:
    assert ports(Field("B S L", kind="text"), may_lack=True) == {
        "x_token_ids": "B S L:int",
        "x_is_valid": "B S L:bool",
        "x_word_ids": "B S L:int",
        "x_token_spans": "B S L 2:int",
        "x_is_known": "B:bool",
    }
    assert list(Field("B L", kind="text").ports("text", {})) == ["token_ids", "text_is_valid", "word_ids", "token_spans"]
    assert list(Field("B 14", kind="vector").ports("labels", {}, may_lack=True)) == ["labels", "labels_is_known"]


@pytest.mark.parametrize(
    ("dims", "rest", "says"),
    [
        (
            "B H W",
            {"kind": "heatmap"},
            "unknown kind of field 'heatmap', expected one of image, map, mask, boxes",
        ),
        ("B H W", {"kind": "map"}, "'map': it lies on an image, expected on=NAME of that field, found none"),
        ("B K 2", {"kind": "spans"}, "'spans': it lies on a text, expected on=NAME of that field, found none"),
        ("B 14", {"kind": "vector", "on": "image"}, "'vector': it lies on nothing, found on='image'"),
        ("B H", {"kind": "map", "on": "image"}, "'map': expected B ... [D] H W, found 'B H'"),
        ("B K 5", {"kind": "boxes", "on": "image"}, "'boxes': expected B K 4, found 'B K 5'"),
        ("B S K 4", {"kind": "boxes", "on": "image"}, "'boxes': expected B K 4, found 'B S K 4'"),
        ("B K", {"kind": "spans", "on": "text"}, "'spans': expected B K 2, found 'B K'"),
        ("B", {"kind": "text"}, "'text': expected B ... L, found 'B'"),
        ("", {"kind": "vector"}, "'vector': expected B ..., found ''"),
        ("B H W", {"kind": "image"}, "'image': expected B [V] C [D] H W, found 'B H W'"),
        ("B X Y H W", {"kind": "image"}, "'image': which of the axes X Y of 'B X Y H W' are the channels?"),
        ("B 1 3 H W", {"kind": "image"}, "'image': which of the axes 1 3 of 'B 1 3 H W' are the channels?"),
        ("K B 4", {"kind": "vector"}, "'vector': B is the first axis, or there is none; expected B ..., found 'K B 4'"),
        ("B 0", {"kind": "vector"}, "'vector': 0 is neither a symbol nor a number above 0; expected B ..., found 'B 0'"),
        ("B x-y", {"kind": "vector"}, "'vector': 'x-y' is neither a symbol nor a number above 0"),
        ("H W", {"kind": "map", "on": "image"}, "'map': it follows one record's image, expected B as the first axis, found 'H W'"),
        ("B H W", {"kind": "mask", "on": "image", "dtype": "float"}, "'mask': expected the dtype bool or int, found 'float'"),
    ],
)
def test_nonsense_is_refused(dims: str, rest: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Field(dims, **rest)


def test_fields_lie_on_fields_of_the_right_kind() -> None:
    scan = Field("B 1 D H W", kind="image")
    heat, boxes = Field("B S H W", kind="map", on="image"), Field("B K 4", kind="boxes", on="scan")
    assert field_faults({"heat": heat, "scan": scan, "boxes": boxes, "names": Field("B K 2", kind="spans", on="text")}) == []
    assert field_faults({"heat": Field("B H W", kind="map", on="text"), "scan": scan}) == [
        "field 'heat' lies on 'text', and that is a field of kind 'text'; images: image, scan"
    ]
    assert field_faults({"heat": Field("B H W", kind="map", on="scan"), "scan": scan}) == [
        "field 'heat' lies on volumes, expected the axes B ... D H W, found 'B H W'"
    ]
    study = Field("B V C H W", kind="image")
    wrong = {"study": study, "boxes": Field("B K 4", kind="boxes", on="study"), "lungs": Field("B H W", kind="mask", on="study")}
    assert field_faults(wrong) == [
        "field 'boxes' lies on several images of a record, and boxes have no axis for them, found 'B K 4'",
        "field 'lungs' lies on several images of a record, expected the axes B V ... H W, found 'B H W'",
    ]
    assert field_faults({"study": study, "lungs": Field("B V H W", kind="mask", on="study")}) == []
