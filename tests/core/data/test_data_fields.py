"""Fields of records: read, cut with their image, stacked; what is padding, what is unknown, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_open_cxr.manifest import DATA, read_rows
from PIL import Image
from torch import Tensor

from medvlp_core.data.fields import (
    collate_field,
    cut_field,
    draw_field,
    pixel_size,
    ragged_lengths,
    read_field,
    spans_to_tokens,
)
from medvlp_core.data.geometry import Geometry
from medvlp_core.data.images import Pixels, as_float, read_gray
from medvlp_core.errors import DataError
from medvlp_core.spec.blocks import InputSpec
from medvlp_core.spec.fields import Field
from medvlp_core.testing.stub_components.specs import WordsSpec
from medvlp_core.testing.stub_components.tokenizer import Words

RADIOGRAPH = DATA / read_rows()[0]["image"]
IMAGE = Field("B C H W", kind="image")
LABELS = Field("B 3", kind="vector")
BOXES = Field("B K 4", kind="boxes", on="image")
SPANS = Field("B K 2", kind="spans", on="text")
PHOTO = Field("B 3 H W", kind="image")
SENTENCES = Field("B S L", kind="text")
MOVING = InputSpec(mean=0.0, std=1.0, crop_scale=0.3, horizontal_flip=True)
NONE = float("nan")


def read(field: Field, value: Any, **rest: Any) -> Any:
    return read_field("x", field, value, record_id="case 7", **rest)


def refusal(field: Field, value: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(field, value)
    [problem] = caught.value.problems
    assert problem.code == "MV512"
    return problem.text.removeprefix("record 'case 7', field 'x': ")


def collate(field: Field, values: list[Any], sizes: dict[str, int] | None = None, **rest: Any) -> dict[str, Tensor]:
    """Read and stacked; for kinds that no crop touches, or values that are tensors already."""
    tensors = [value if isinstance(value, Tensor) else cut_field(field, read(field, value), None, ()) for value in values]
    return collate_field("x", field, tensors, sizes or {}, **rest)


def centre(height: int, width: int) -> Geometry:
    """The whole image, where it is a square."""
    pixels = Pixels(np.zeros((height, width), dtype=np.uint8), height, width)
    found = draw_field(pixels, (8, 8), InputSpec(), is_training=False)
    assert isinstance(found, Geometry)
    return found


# ------------------------------------------------------------------------------------------------------------------- vectors


def test_a_vector_is_stacked() -> None:
    found = collate(LABELS, [[0, 1, 0.5], np.array([3, 4, 5], dtype=np.int16)])
    assert list(found) == ["x"]
    assert found["x"].tolist() == [[0, 1, 0.5], [3, 4, 5]]
    assert found["x"].dtype == torch.float32
    assert collate(Field("B 2", kind="vector", dtype="int"), [[1, 2]])["x"].dtype == torch.int64
    assert collate(Field("B 2", kind="vector", dtype="bool"), [[1, False]])["x"].tolist() == [[True, False]]
    assert collate(Field("B", kind="vector"), [61, 23.5])["x"].tolist() == [61, 23.5]


def test_unknown_numbers_are_0_and_not_known() -> None:
    found = collate(LABELS, [[0, None, 1], None, [NONE, NONE, 2]], may_lack=True)
    assert found["x"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 2]]
    assert found["x_is_known"].tolist() == [[True, False, True], [False] * 3, [False, False, True]]
    found = collate(Field("B 2", kind="vector", dtype="bool"), [[None, 1]], may_lack=True)
    assert found["x"].tolist() == [[False, True]]
    assert found["x_is_known"].tolist() == [[False, True]]
    assert collate(LABELS, [None, None], may_lack=True)["x"].shape == (2, 3)


def test_ragged_vectors_are_padded_to_the_longest() -> None:
    series = Field("B T 2", kind="vector")
    found = collate(series, [[[1, 2]], [[3, 4], [5, None], [7, 8]], None], may_lack=True)
    assert found["x"].tolist() == [[[1, 2], [0, 0], [0, 0]], [[3, 4], [5, 0], [7, 8]], [[0, 0]] * 3]
    assert found["x_is_valid"].tolist() == [[True, False, False], [True, True, True], [False] * 3]
    assert found["x_is_known"].sum(dim=(1, 2)).tolist() == [2, 5, 0]
    assert "x_is_valid" not in collate(series, [[[1, 2]]], {"T": 1})
    assert collate(series, [None], may_lack=True)["x"].shape == (1, 1, 2), "an axis of nothing would break what pools over it"
    both = collate(Field("B S T", kind="vector"), [[[1, 2, 3]], [[4], [5]]])
    assert both["x"].tolist() == [[[1, 2, 3], [0, 0, 0]], [[4, 0, 0], [5, 0, 0]]]
    assert both["x_is_valid"].tolist() == [[[True] * 3, [False] * 3], [[True, False, False]] * 2]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(rows=st.lists(st.none() | st.lists(st.none() | st.floats(-9, 9, width=32), min_size=1, max_size=5), min_size=1, max_size=4))
def test_padding_loses_and_invents_nothing(rows: list[list[float | None] | None]) -> None:
    found = collate(Field("B T", kind="vector"), rows, may_lack=True)
    for row, given_row in enumerate(rows):
        numbers = given_row or []
        assert int(found["x_is_valid"][row].sum()) == len(numbers)
        assert found["x"][row][found["x_is_known"][row]].tolist() == [number for number in numbers if number is not None]
        assert not found["x_is_known"][row][~found["x_is_valid"][row]].any()
        assert (found["x"][row][~found["x_is_known"][row]] == 0).all()


def test_a_vector_comes_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "frozen.npy", np.arange(3.0))
    assert collate(LABELS, [tmp_path / "frozen.npy", str(tmp_path / "frozen.npy")])["x"].tolist() == [[0, 1, 2]] * 2
    with pytest.raises(DataError, match=r"MV501.*cannot read vector .*gone\.npy: it does not exist"):
        read(LABELS, tmp_path / "gone.npy")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (LABELS, [1, 2], "found an array of shape (2,), expected (3,)"),
        (LABELS, [[1, 2, 3]], "found an array of shape (1, 3), expected (3,)"),
        (LABELS, [1, 2, float("inf")], "a number is infinite"),
        (LABELS, ["a", 2, 3], "found ['a', 2, 3], expected numbers, as many in each row"),
        (Field("B T F", kind="vector"), [[1], [2, 3]], "found [[1], [2, 3]], expected numbers, as many in each row"),
        (Field("B 2", kind="vector", dtype="int"), [1, 2.5], "found 2.5, expected integers"),
        (Field("B 2", kind="vector", dtype="bool"), [1, -1], "found -1.0, expected 0 or 1"),
        (BOXES, [[1, 2, 3]], "found boxes of shape (1, 3), expected (K, 4): left, top, right, bottom in pixels"),
        (BOXES, [[5, 2, 5, 9]], "the box [5.0, 2.0, 5.0, 9.0] has no area"),
        (BOXES, [[5, NONE, 8, 9]], "the box [5.0, nan, 8.0, 9.0] has no area"),
        (SPANS, [[3, 3]], "the span [3, 3] is empty or before the text"),
        (SPANS, [[-1, 3]], "the span [-1, 3] is empty or before the text"),
        (
            Field("B K 2", kind="spans", on="text"),
            [[0, 1.5]],
            "found [[0, 1.5]], expected spans (K, 2): start and end in characters",
        ),
        (SPANS, [0, 2], "found [0, 2], expected spans (K, 2): start and end in characters"),
        (Field("B L", kind="text"), ["a", "b"], "found ['a', 'b'], expected a text"),
        (SENTENCES, "a b", "found 'a b', expected a list of texts"),
        (SENTENCES, ["a", 3], "found 3, expected a text"),
        (Field("B H W", kind="mask", on="image"), np.ones((4, 4)), "found a mask of float64, expected integers or truth values"),
        (Field("B H W", kind="mask", on="image"), np.ones(4, dtype=bool), "found an array of shape (4,), expected (H, W)"),
        (Field("B 2 H W", kind="map", on="image"), np.ones((3, 4, 4)), "found an array of shape (3, 4, 4), expected (2, H, W)"),
        (Field("B H W", kind="map", on="image"), [[1, NONE]], "a map has infinite or unknown numbers"),
        (Field("B H W", kind="map", on="image"), {"a": 1}, "found {'a': 1}, expected a path or an array of numbers"),
        (IMAGE, np.zeros((4, 4, 3), dtype=np.uint8), "found an array of shape (4, 4, 3) and dtype uint8, expected (H, W)"),
        (
            Field("B 3 H W", kind="image"),
            np.zeros((4, 4, 4)),
            "found an array of shape (4, 4, 4) and dtype float32, expected (H, W, 3) of uint8",
        ),
        (Field("B 1 D H W", kind="image"), RADIOGRAPH, f"found {str(RADIOGRAPH)!r}"[:50]),
        (Field("B V C H W", kind="image"), RADIOGRAPH, f"found {str(RADIOGRAPH)!r}"[:50]),
        (Field("B V C H W", kind="image"), [], "found [], expected a list of images"),
    ],
)
def test_what_is_not_of_the_field_is_refused(field: Field, value: Any, says: str) -> None:
    assert refusal(field, value).startswith(says)


def test_what_a_record_must_have_is_asked_for() -> None:
    with pytest.raises(DataError) as caught:
        collate(LABELS, [[1, 2, 3], None], record_ids=["a", "b"])
    hint = "give every record the field, or let records lack it (inputs.may_lack)"
    assert str(caught.value) == f"[MV512] record 'b', field 'x': the record lacks it\n    hint: {hint}"
    with pytest.raises(DataError, match=r"record 'a', field 'x': 2 of 3 numbers are unknown"):
        collate(LABELS, [[1, None, None]], record_ids=["a"])
    with pytest.raises(DataError, match=r"\[MV512\] record 'a', field 'x': T is 2, expected 3\n    hint: the field is vector B T"):
        collate(Field("B T", kind="vector"), [[1, 2]], {"T": 3}, record_ids=["a"])


# -------------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("seed", range(5))
def test_a_heat_map_and_boxes_follow_their_image(tmp_path: Path, seed: int) -> None:
    """From files to a batch: a heat map that is the image itself, smaller, and the box of its bright corner."""
    gray = read_gray(RADIOGRAPH)
    height, width = gray.shape
    np.save(
        tmp_path / "heat.npy", as_float(np.asarray(Image.fromarray(gray).resize((width // 3, height // 3), 2)))[None].repeat(2, 0)
    )
    Image.fromarray((gray > 120).astype(np.uint8)).save(tmp_path / "bright.png")
    heat_field = Field("B S Hh Wh", kind="map", on="image")
    mask_field = Field("B Hh Wh", kind="mask", on="image")
    sizes = {"H": 48, "W": 48, "Hh": 12, "Wh": 12}
    pixels = read(IMAGE, RADIOGRAPH, at_least=60)
    assert (pixels.height, pixels.width) == (height, width)
    torch.manual_seed(seed)
    geometry = draw_field(pixels, pixel_size(IMAGE, sizes), MOVING, is_training=True)
    assert isinstance(geometry, Geometry)
    image = cut_field(IMAGE, pixels, geometry, pixel_size(IMAGE, sizes), inputs=MOVING)
    heat = cut_field(heat_field, read(heat_field, tmp_path / "heat.npy"), geometry, pixel_size(heat_field, sizes))
    mask = cut_field(mask_field, read(mask_field, tmp_path / "bright.png"), geometry, (48, 48))
    whole = cut_field(BOXES, read(BOXES, [[0, 0, width, height], None, list(geometry.crop[:4])]), geometry, (48, 48))
    small = torch.nn.functional.avg_pool2d(image, 4)[0]
    for plane in heat:
        assert torch.corrcoef(torch.stack([plane.flatten(), small.flatten()]))[0, 1] > 0.99
    assert ((image[0] > 120 / 255) == mask).float().mean() > 0.9
    batch = collate_field("x", BOXES, [whole], sizes)
    torch.testing.assert_close(batch["x"][0, [0, 2]], torch.tensor([[0.0, 0, 48, 48]] * 2), atol=1e-3, rtol=0)
    assert batch["x_is_valid"].tolist() == [[True, False, True]]
    assert collate_field("x", heat_field, [heat, None], sizes, may_lack=True)["x_is_known"].tolist() == [True, False]


def test_boxes_that_are_cropped_away_are_padding() -> None:
    geometry = centre(100, 200)  # the columns 50 to 150
    cut = [
        cut_field(BOXES, read(BOXES, boxes), geometry, (50, 50))
        for boxes in ([[0, 0, 9, 9], [60, 0, 90, 50]], [], [[50, 0, 51, 9]])
    ]
    found = collate_field("x", BOXES, [*cut, None], {}, may_lack=True)
    assert found["x"].shape == (4, 2, 4)
    assert found["x"][0].tolist() == [[0, 0, 0, 0], [5, 0, 20, 25]]
    assert found["x_is_valid"].tolist() == [[False, True], [False, False], [True, False], [False, False]]
    assert found["x_is_known"].tolist() == [True, True, True, False]
    regions = collate_field("x", Field("B 2 4", kind="boxes", on="image"), cut[:1], {})
    assert regions["x_is_valid"].tolist() == [[False, True]]


def test_several_images_have_their_own_crops_and_validity() -> None:
    study = Field("B V 1 H W", kind="image")
    sizes = {"H": 16, "W": 16}
    gray = read_gray(RADIOGRAPH)
    values = [read(study, [RADIOGRAPH, gray[:90]]), read(study, [gray])]
    torch.manual_seed(0)
    geometries = [draw_field(value, (16, 16), MOVING, is_training=True) for value in values]
    cut = [cut_field(study, one, at, (16, 16)) for one, at in zip(values, geometries, strict=True)]
    found = collate_field("x", study, [*cut, None], sizes, may_lack=True, instead=torch.ones(3, 1, 16, 16))
    assert found["x"].shape == (3, 2, 1, 16, 16)
    assert found["x_is_valid"].tolist() == [[True, True], [True, False], [False, False]]
    assert found["x_is_known"].tolist() == [True, True, False]
    assert torch.equal(found["x"][0, 1], cut_field(IMAGE, values[0][1], geometries[0][1], (16, 16)))
    assert found["x"][2].unique(dim=0).flatten(1).mean(1).tolist() == [0, 1]
    heat = Field("B V Hh Wh", kind="map", on="x")
    maps = cut_field(heat, read(heat, np.stack([gray, gray])), geometries[0], (4, 4))
    assert maps.shape == (2, 4, 4)
    with pytest.raises(DataError, match=r"MV505.*has 1 entries, and its image has 2"):
        cut_field(heat, read(heat, gray[None]), geometries[0], (4, 4))


def test_an_absent_image_is_a_copy_of_another() -> None:
    instead = torch.rand(2, 1, 4, 4)
    image = torch.rand(1, 4, 4)
    found = collate_field("x", IMAGE, [None, image], {"C": 1, "H": 4, "W": 4}, may_lack=True, instead=instead)
    assert torch.equal(found["x"], torch.stack([instead[0], image]))
    assert found["x_is_known"].tolist() == [False, True]
    assert list(found) == ["x", "x_is_known"]
    says = r"MV505.*images of shape \(1, 4, 4\) cannot stand in for absent ones of field 'x', which are \(1, 8, 8\)"
    with pytest.raises(DataError, match=says):
        collate_field("x", IMAGE, [None], {"C": 1, "H": 8, "W": 8}, may_lack=True, instead=instead)


def test_colour_is_what_a_field_with_3_channels_says(tmp_path: Path) -> None:
    colour = np.zeros((20, 20, 3), dtype=np.uint8)
    colour[..., 0] = 255
    Image.fromarray(colour).save(tmp_path / "red.png")
    for value in (tmp_path / "red.png", colour):
        found = cut_field(PHOTO, read(PHOTO, value), centre(20, 20), (8, 8))
        assert found.mean(dim=(1, 2)).tolist() == [1, 0, 0]
    gray = cut_field(IMAGE, read(IMAGE, tmp_path / "red.png"), centre(20, 20), (8, 8), channels=3)
    assert gray.shape == (3, 8, 8)
    assert torch.equal(gray[0], gray[1])
    assert read(PHOTO, np.full((5, 5), 7, dtype=np.uint8)).values.shape == (5, 5, 3)


def test_16_bit_arrays_and_files_are_one_scale(tmp_path: Path) -> None:
    deep = (np.arange(400).reshape(20, 20) * 160).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.save(tmp_path / "deep.npy", deep)
    cut = [
        cut_field(IMAGE, read(IMAGE, value), centre(20, 20), (10, 10))
        for value in (tmp_path / "deep.png", tmp_path / "deep.npy", deep)
    ]
    assert torch.equal(cut[0], cut[1])
    assert torch.equal(cut[0], cut[2])
    assert 0.4 < cut[0].mean() < 0.6
    with pytest.raises(DataError, match=r"MV501.*image of record 'case 7' \(field 'x'\): its values are int16 from -1000 to 0"):
        read(IMAGE, np.array([[-1000, 0]], dtype=np.int16))


def test_volumes_are_cut_with_what_lies_on_them(tmp_path: Path) -> None:
    scan = Field("B 1 D H W", kind="image")
    regions = Field("B D H W", kind="mask", on="scan", dtype="int")
    sizes = {"D": 4, "H": 10, "W": 10}
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).random((8, 30, 20)))
    value = read(scan, tmp_path / "scan.npy")
    geometry = draw_field(value, pixel_size(scan, sizes), MOVING, is_training=True)
    found = cut_field(scan, value, geometry, pixel_size(scan, sizes))
    assert found.shape == (1, 4, 10, 10)
    labels = np.arange(8)[:, None, None].repeat(30, 1).repeat(20, 2)
    size = pixel_size(regions, sizes, on=scan)
    cut = cut_field(regions, read(regions, labels), geometry, size)
    assert cut.shape == (4, 10, 10)
    assert cut[:, 0, 0].tolist() == [1, 3, 5, 7]
    assert collate_field("x", regions, [cut, cut], sizes)["x"].dtype == torch.int64


def test_a_crop_is_scaled_to_a_solved_size() -> None:
    assert pixel_size(Field("B S 7 Wh", kind="map", on="image"), {"Wh": 9}) == (7, 9)
    with pytest.raises(ValueError, match="the axis Hh of a field of kind 'map' has no number; a crop is scaled to one"):
        pixel_size(Field("B Hh Wh", kind="map", on="image"), {})


# --------------------------------------------------------------------------------------------------------------------- texts


def words(size: int = 64, length: int = 8) -> Words:
    tokenizer = Words(WordsSpec(size=size, max_length=length), {})
    tokenizer.fit(["the heart is large and the lungs are clear with a small effusion on the left"])
    return tokenizer


def test_a_text_becomes_its_tokens() -> None:
    found = collate(Field("B L", kind="text"), ["the heart", None], tokenizer=words(), may_lack=True)
    assert list(found) == ["x_token_ids", "x_is_valid", "x_word_ids", "x_token_spans", "x_is_known"]
    assert found["x_token_spans"].tolist() == [[[-1, -1], [0, 3], [4, 9]], [[-1, -1]] * 3]
    assert found["x_is_valid"].tolist() == [[True] * 3, [True, False, False]]
    assert found["x_is_known"].tolist() == [True, False]
    plain = collate_field("text", Field("B L", kind="text"), ["the heart"], {}, tokenizer=words())
    assert list(plain) == ["token_ids", "text_is_valid", "word_ids", "token_spans"]


def test_an_axis_of_two_fields_is_as_long_as_the_longest_of_either() -> None:
    gaze = Field("B S 2 2", kind="map", on="image")
    maps = [torch.ones(1, 2, 2), None]
    texts = [["no nodule"], ["a nodule", "no effusion", "no mass"]]
    lengths = ragged_lengths(SENTENCES, texts, {})
    assert lengths == {"S": 3}
    assert ragged_lengths(gaze, maps, {}) == {"S": 1}
    assert collate_field("x", gaze, maps, {}, may_lack=True)["x"].shape == (2, 1, 2, 2)
    found = collate_field("x", gaze, maps, {}, may_lack=True, lengths=lengths)
    assert found["x"].shape == (2, 3, 2, 2)
    assert found["x_is_valid"].tolist() == [[True, False, False], [False] * 3]
    assert not found["x"][0, 1:].any()


def test_sentences_are_padded_with_texts_that_have_no_token() -> None:
    found = collate(SENTENCES, [["the heart is large", "the lungs"], ["clear"], None], tokenizer=words(), may_lack=True)
    assert found["x_token_ids"].shape == (3, 2, 5)
    assert found["x_is_valid"].sum(-1).tolist() == [[5, 3], [2, 0], [0, 0]]
    assert (found["x_word_ids"][~found["x_is_valid"]] == -1).all()
    assert found["x_is_known"].tolist() == [True, True, False]
    nested = collate(Field("B P S L", kind="text"), [[["the heart"], ["clear", "the lungs"]], [["left"]]], tokenizer=words())
    assert nested["x_is_valid"].any(-1).tolist() == [[[True, False], [True, True]], [[True, False], [False, False]]]
    with pytest.raises(DataError, match="S is 1, expected 2"):
        collate(SENTENCES, [["clear"]], {"S": 2}, tokenizer=words())


def test_constants_are_stacked_once_and_without_a_batch() -> None:
    prompts = collate(Field("2 L", kind="text"), [["the heart", "clear"]], tokenizer=words())
    assert prompts["x_token_ids"].shape == (2, 3)
    assert list(prompts) == ["x_token_ids", "x_is_valid", "x_word_ids", "x_token_spans"]
    table = collate(Field("K 2", kind="vector"), [[[1, 2], [3, 4], [5, 6]]])
    assert list(table) == ["x"]
    assert table["x"].tolist() == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(DataError, match="the record lacks it"):
        collate(Field("2 L", kind="text"), [None], tokenizer=words(), may_lack=True)


# --------------------------------------------------------------------------------------------------------------------- spans


def test_spans_become_tokens_and_those_beyond_the_cut_are_invalid() -> None:
    text = "The heart, is LARGE  and the lungs are clear"
    entities = ["heart", "is LARGE", ", is", "lungs", "lungs are clear", "clear"]
    places = [[text.index(one), text.index(one) + len(one)] for one in entities]
    found = collate(SPANS, [places, []])
    tokens = words(length=9).encode([text, "clear"])
    ranges, is_valid = spans_to_tokens(found["x"], tokens.token_spans)
    assert is_valid.tolist() == [[True, True, True, True, True, False], [False] * 6]
    assert found["x_is_valid"].tolist() == [[True] * 6, [False] * 6]
    assert ranges[0].tolist() == [[2, 3], [4, 6], [3, 5], [8, 9], [8, 9], [0, 0]]
    assert (ranges[1] == 0).all()


@settings(deadline=None, max_examples=80, derandomize=True)
@given(data=st.data(), length=st.integers(2, 12))
def test_the_tokens_of_a_span_are_those_that_touch_it(data: st.DataObject, length: int) -> None:
    text = data.draw(st.text(st.sampled_from("ab, .İ\n"), max_size=30))
    start = data.draw(st.integers(0, 30))
    span = torch.tensor([[[start, start + data.draw(st.integers(1, 12))]]])
    tokens = words(length=length).encode([text])
    ranges, is_valid = spans_to_tokens(span, tokens.token_spans)
    touched = [
        place
        for place, (first, last) in enumerate(tokens.token_spans[0].tolist())
        if first >= 0 and set(range(first, last)) & set(range(*span.flatten().tolist()))
    ]
    assert bool(is_valid) == bool(touched)
    assert ranges.flatten().tolist() == ([touched[0], touched[-1] + 1] if touched else [0, 0])
