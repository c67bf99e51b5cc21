"""Reading image files: real radiographs in every form that is accepted, and everything that is not an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_open_cxr.manifest import DATA, read_rows
from PIL import Image

from medvlp_core.data.images import (
    as_float,
    as_gray_range,
    read_array,
    read_colour,
    read_gray,
    read_mask,
    read_pixels,
    reduce_to,
)
from medvlp_core.errors import DataError

RADIOGRAPH = DATA / read_rows()[0]["image"]


@pytest.fixture(scope="module")
def gray() -> np.ndarray:
    """A real radiograph, 8 bit."""
    with Image.open(RADIOGRAPH) as image:
        return np.asarray(image)


def message(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_gray(path)
    assert [problem.code for problem in caught.value.problems] == ["MV501"]
    return str(caught.value)


def test_a_path_may_be_text(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_gray(str(RADIOGRAPH)), read_gray(RADIOGRAPH))
    with pytest.raises(DataError, match=r"MV501.*film\.png: it does not exist"):
        read_gray(str(tmp_path / "film.png"))


def test_a_jpeg_is_read_as_it_is(gray: np.ndarray) -> None:
    found = read_gray(RADIOGRAPH)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, gray)


@pytest.mark.parametrize(
    "convert",
    [
        lambda image: image,
        lambda image: image.convert("RGB"),
        lambda image: image.convert("RGBA"),
        lambda image: image.convert("LA"),
        lambda image: image.convert("P"),
    ],
    ids=["gray", "colour", "colour with alpha", "gray with alpha", "palette"],
)
def test_8_bit_png_keeps_its_gray_values(gray: np.ndarray, tmp_path: Path, convert: Callable[[Image.Image], Image.Image]) -> None:
    convert(Image.fromarray(gray)).save(tmp_path / "study.png")
    found = read_gray(tmp_path / "study.png")
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - gray).max() <= 1  # luma of equal channels rounds


def test_16_bit_png_keeps_more_than_8_bit(gray: np.ndarray, tmp_path: Path) -> None:
    deep = gray.astype(np.uint16) * 257 - np.minimum(gray, 3)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    found = read_gray(tmp_path / "deep.png")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, deep / 65535, atol=1e-7)
    assert len(np.unique(found)) == len(np.unique(deep))


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 2), 200, dtype=np.uint8)
    pixels[:, :2, 1] = 0
    pixels[:, 2:, 1] = 255
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    found = read_gray(tmp_path / "alpha.png")
    assert found[:, :2].max() == 0
    assert found[:, 2:].min() == 200


def test_black_and_white_is_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1").save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_gray(tmp_path / "mask.png"), [[0, 255], [255, 0]])


def test_an_exif_rotation_is_applied(gray: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(gray).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_gray(tmp_path / "turned.png"), np.rot90(gray, -1))


@pytest.mark.parametrize("at_least", [40, 88, 100, 5000])
def test_a_jpeg_is_decoded_small_but_not_too_small(gray: np.ndarray, at_least: int) -> None:
    found = read_gray(RADIOGRAPH, at_least=at_least)
    shorter = min(gray.shape)
    assert min(found.shape) >= min(at_least, shorter)
    assert min(found.shape) == next(size for k in (8, 4, 2, 1) if (size := -(-shorter // k)) >= at_least or k == 1)
    large = np.asarray(Image.fromarray(gray).resize(found.shape[::-1], Image.Resampling.BOX)).astype(float)
    assert np.abs(found - large).mean() < 3


def test_reduce_to_keeps_the_shorter_side_and_never_enlarges(gray: np.ndarray) -> None:
    wide = gray[:100, :300]
    assert reduce_to(wide, 50).shape == (50, 150)
    assert reduce_to(wide, 100) is wide
    assert reduce_to(as_float(wide), 30).dtype == np.float32
    assert reduce_to(np.dstack([wide] * 3), 50).shape == (50, 150, 3)


def test_as_float_is_the_same_scale_for_both_kinds() -> None:
    np.testing.assert_array_equal(as_float(np.array([[0, 255]], dtype=np.uint8)), [[0.0, 1.0]])
    np.testing.assert_array_equal(as_float(np.array([[0.25]], dtype=np.float32)), [[0.25]])


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "absent.png"
    hint = "check the path, and the folder that relative paths start from"
    assert message(path) == f"[MV501] cannot read image {path}: it does not exist\n    hint: {hint}"


def test_folder(tmp_path: Path) -> None:
    assert message(tmp_path) == f"[MV501] cannot read image {tmp_path}: it is a folder\n    hint: give the path of an image file"


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    assert message(path) == f"[MV501] cannot read image {path}: it is empty (0 bytes)\n    hint: copy or download it again"


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "report.png"
    path.write_text("FINDINGS: Clear lungs.")
    assert message(path) == (
        f"[MV501] cannot read image {path}: it is not an image that Pillow knows; it starts with b'FINDINGS'\n"
        "    hint: PNG and JPEG are read; convert DICOM first"
    )


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_file(gray: np.ndarray, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(gray).save(path)
    path.write_bytes(path.read_bytes()[:-5000])
    text = message(path)
    assert text.startswith(f"[MV501] cannot read image {path}: it is truncated or damaged (")
    assert text.endswith("\n    hint: copy or download it again")


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (300, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    text = message(path)
    assert text.startswith(f"[MV501] cannot read image {path}: it is too large to be a radiograph (")
    assert text.endswith("\n    hint: scale it down; Pillow's limit is 1000 pixels")


def test_pixels_without_gray_values(tmp_path: Path) -> None:
    path = tmp_path / "float.tiff"
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path)
    assert message(path) == (
        f"[MV501] cannot read image {path}: its pixel format is 'F'\n    hint: save it as 8- or 16-bit gray PNG, or as JPEG"
    )
    Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(path)
    assert message(path) == (
        f"[MV501] cannot read image {path}: its gray values reach from 70000 to 70000\n    hint: save it as 8- or 16-bit gray PNG"
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data(), suffix=st.sampled_from(["jpg", "png"]))
def test_damage_gives_an_image_or_a_clear_error(
    gray: np.ndarray, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("damage") / f"study.{suffix}"
    Image.fromarray(gray[:64, :64]).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        shape = read_gray(path, at_least=32).shape
    except DataError as error:
        shape, codes = (), [problem.code for problem in error.problems]
    assert len(shape) == 2 or codes == ["MV501"]


# ------------------------------------------------------------------------------------------------- colour, masks, arrays


def test_colour_is_read_as_three_channels(gray: np.ndarray, tmp_path: Path) -> None:
    colour = np.stack([gray, 255 - gray, gray // 2], axis=-1)
    Image.fromarray(colour).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(read_colour(tmp_path / "photo.png"), colour)
    Image.fromarray(np.dstack([colour, np.where(gray > 90, 255, 0).astype(np.uint8)])).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_colour(tmp_path / "alpha.png"), np.where(gray[..., None] > 90, colour, 0))
    found = read_colour(RADIOGRAPH)
    assert found.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], gray)


def test_16_bit_gray_in_colour_is_8_bit(gray: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_colour(tmp_path / "deep.png"), np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize("is_turned", [False, True])
def test_the_size_of_the_file_is_known_where_it_is_decoded_small(tmp_path: Path, is_turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if is_turned else 1
    Image.new("L", (805, 808), 9).save(tmp_path / "film.jpg", exif=exif)
    values, height, width = read_pixels(tmp_path / "film.jpg", at_least=100)
    assert values.shape == (101, 101)
    assert (height, width) == ((805, 808) if is_turned else (808, 805))
    assert read_pixels(tmp_path / "film.jpg", is_colour=True, at_least=100).values.shape == (101, 101, 3)


def test_masks_keep_the_numbers_of_their_file(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 7], [200, 3, 0]], dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "gray.png")
    palette = Image.fromarray(labels)
    palette.putpalette([value for index in range(256) for value in (255 - index, index // 2, 9)])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(labels.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    np.save(tmp_path / "labels.npy", labels.astype(np.int64) - 5)
    np.testing.assert_array_equal(read_mask(tmp_path / "gray.png"), labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), labels.astype(np.uint16) * 300)
    np.testing.assert_array_equal(read_mask(tmp_path / "labels.npy"), labels.astype(np.int64) - 5)
    Image.fromarray(labels > 1).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_mask(str(tmp_path / "bit.png")), labels > 1)


def test_masks_are_neither_lossy_nor_colourful(gray: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_mask(RADIOGRAPH)
    text = "it is a JPEG, which changes the numbers of pixels\n    hint: save the mask as PNG"
    assert str(caught.value) == f"[MV501] cannot read mask {RADIOGRAPH}: {text}"
    Image.fromarray(gray).convert("RGB").save(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"its pixel format is 'RGB', and a mask has one number for each pixel"):
        read_mask(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"MV501.*cannot read mask .*absent\.png: it does not exist"):
        read_mask(tmp_path / "absent.png")


def test_arrays_are_numbers(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((3, 4, 5))
    np.save(tmp_path / "volume.npy", volume)
    np.testing.assert_array_equal(read_array(tmp_path / "volume.npy"), volume)
    np.save(tmp_path / "names.npy", np.array(["a", "b"]))
    np.save(tmp_path / "objects.npy", np.array([{}, 3], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=volume, b=volume)
    (tmp_path / "empty.npy").touch()
    (tmp_path / "cut.npy").write_bytes((tmp_path / "volume.npy").read_bytes()[:-100])
    for name, text in (
        ("absent.npy", "it does not exist"),
        ("empty.npy", "it is empty (0 bytes)"),
        ("names.npy", "it holds <U1, expected numbers"),
        ("objects.npy", "it is no array of numbers (Object arrays cannot be loaded"),
        ("two.npz", "it holds several arrays, expected numbers"),
        ("cut.npy", "it is no array of numbers ("),
    ):
        with pytest.raises(DataError) as caught:
            read_array(tmp_path / name, what="volume")
        assert str(caught.value).startswith(f"[MV501] cannot read volume {tmp_path / name}: {text}"), str(caught.value)


def test_pixels_of_arrays_lie_in_the_range_of_files() -> None:
    np.testing.assert_array_equal(as_gray_range(np.array([[65535, 0]], dtype=np.uint16), "x"), [[1.0, 0.0]])
    assert as_gray_range(np.zeros((2, 2), dtype=np.uint8), "x").dtype == np.uint8
    assert as_gray_range(np.ones((2, 2)), "x").dtype == np.float32
    for wrong, text in (
        (np.array([[-1024, 3071]], dtype=np.int16), "int16 from -1024 to 3071"),
        (np.array([[0.0, 1.5]]), "float64 from 0.0 to 1.5"),
        (np.array([[0.0, np.nan]]), "float64 from nan to nan"),
    ):
        with pytest.raises(DataError) as caught:
            as_gray_range(wrong, "scan.npy")
        assert str(caught.value) == (
            f"[MV501] cannot read image scan.npy: its values are {text}, expected uint8, uint16 or floats in 0..1\n"
            "    hint: scale them; of Hounsfield units take a window"
        )
