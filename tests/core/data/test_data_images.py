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

from medvlp_core.data.images import as_float, read_gray, reduce_to
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
