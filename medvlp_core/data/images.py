"""Reading images in gray or colour, masks and arrays from files, with clear errors for everything that is none."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from medvlp_core.errors import DataError, Problem

#: 8-bit files stay uint8 (0..255) to save memory; 16-bit files become float32 in 0..1.
GrayArray = NDArray[np.uint8] | NDArray[np.float32]

# Pillow has no common base for "this file is broken": each of these came out of a damaged PNG or JPEG.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error, zlib.error)

_DEEP_GRAY_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR_MODES = ("RGB", "RGBA", "LA", "PA", "P", "1", "YCbCr", "CMYK", "RGBX", "RGBa", "La")

_T = TypeVar("_T")


class Pixels(NamedTuple):
    """An image, and the size of its file, which may be larger where a JPEG was decoded small.

    Shape:
        values: (h, w) gray, (h, w, 3) colour or (d, h, w) volume; uint8 in 0..255 or float32 in 0..1. height, width: of the file.
    """

    values: NDArray[Any]
    height: int
    width: int


def read_gray(path: str | Path, *, at_least: int | None = None) -> GrayArray:
    """Read a PNG or JPEG (8 or 16 bit; gray, colour, palette, with or without alpha) as one channel.

    16-bit values are divided by 65,535, colour becomes luma, transparent pixels black. ``at_least``: the smallest side in pixels
    that the caller needs; a JPEG is then decoded at the smallest of 1/1, 1/2, 1/4, 1/8 of its size that keeps both sides that long,
    which is several times faster. Other files come whole.

    Shape:
        (height, width), uint8 in 0..255 or float32 in 0..1.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, too large or of a kind that has no gray values (MV501).
    """
    return read_pixels(path, at_least=at_least).values


def read_colour(path: str | Path, *, at_least: int | None = None) -> NDArray[np.uint8]:
    """Read a PNG or JPEG as red, green and blue, 8 bit each; gray becomes three equal channels, transparent pixels black.

    Shape:
        (height, width, 3), uint8.

    Raises:
        DataError: see :func:`read_gray` (MV501).
    """
    return read_pixels(path, is_colour=True, at_least=at_least).values


def read_pixels(path: str | Path, *, is_colour: bool = False, at_least: int | None = None) -> Pixels:
    """:func:`read_gray` or :func:`read_colour`, with the size of the file.

    Raises:
        DataError: see :func:`read_gray` (MV501).
    """
    path = Path(path)

    def read(image: Image.Image) -> Pixels:
        width, height = image.size
        if at_least is not None:
            image.draft("RGB" if is_colour else "L", (at_least, at_least))
        image.load()  # a truncated file is noticed here, not when it is opened
        if image.getexif().get(0x0112) in (5, 6, 7, 8):  # the orientations that exchange the sides
            width, height = height, width
        ImageOps.exif_transpose(image, in_place=True)
        return Pixels((_colour_values if is_colour else _gray_values)(image, path), height, width)

    return _opened(path, read)


def read_mask(path: str | Path) -> NDArray[Any]:
    """Read a mask: the numbers of its pixels as they stand in a PNG (gray or palette; black and white is 0 and 1), or a .npy array.

    Shape:
        (height, width), or as the array; integers or truth values.

    Raises:
        DataError: the file cannot be read, or its pixels are colours or fractions (MV501).
    """
    path = Path(path)
    if path.suffix == ".npy":
        return read_array(path, what="mask")

    def read(image: Image.Image) -> NDArray[Any]:
        if image.format == "JPEG":
            raise _unreadable(path, "it is a JPEG, which changes the numbers of pixels", "save the mask as PNG", "mask")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode not in ("L", "P", "1", *_DEEP_GRAY_MODES):
            found = f"its pixel format is {image.mode!r}, and a mask has one number for each pixel"
            raise _unreadable(path, found, "save it as gray or palette PNG", "mask")
        return np.asarray(image)

    return _opened(path, read, "mask")


def read_array(path: str | Path, *, what: str = "array") -> NDArray[Any]:
    """Read a .npy file of numbers; Python objects in it are refused.

    Raises:
        DataError: the file is missing, broken, or holds something else than numbers (MV501).
    """
    path = Path(path)
    try:
        found: Any = np.load(path, allow_pickle=False)
    except _BROKEN as error:
        fault, hint = _diagnose(path, error)
        if path.is_file() and path.stat().st_size:
            fault, hint = f"it is no array of numbers ({error})", "write it with numpy.save"
        raise _unreadable(path, fault, hint, what) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        kind = found.dtype if isinstance(found, np.ndarray) else "several arrays"
        raise _unreadable(path, f"it holds {kind}, expected numbers", "write one array of numbers with numpy.save", what)
    array: NDArray[Any] = found
    return array


def gray_of(image: Image.Image) -> GrayArray:
    """The same of an image that Pillow has opened already.

    Raises:
        DataError: see :func:`read_gray` (MV501).
    """
    path = Path(str(getattr(image, "filename", "") or "given to medvlp"))
    try:
        return _gray_values(ImageOps.exif_transpose(image), path)
    except _BROKEN as error:
        raise _unreadable(path, f"it is truncated or damaged ({error or type(error).__name__})", "open it again") from error


def as_float(values: GrayArray) -> NDArray[np.float32]:
    """Gray values in 0..1, whatever :func:`read_gray` returned."""
    if values.dtype == np.uint8:
        gray: NDArray[np.float32] = values.astype(np.float32) / np.float32(255.0)
        return gray
    return values.astype(np.float32, copy=False)


def as_gray_range(values: NDArray[Any], source: str) -> NDArray[Any]:
    """Pixels of an array as those of a file: uint8 stays, uint16 becomes float32 in 0..1, floats must lie there already.

    Raises:
        DataError: other numbers, such as Hounsfield units (MV501). ``source`` says where the array comes from.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        gray: NDArray[np.float32] = values.astype(np.float32) / np.float32(65535.0)
        return gray
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:  # NaN fails both
        return values.astype(np.float32, copy=False)
    found = f"its values are {values.dtype} from {low} to {high}, expected uint8, uint16 or floats in 0..1"
    raise _unreadable(source, found, "scale them; of Hounsfield units take a window")


def reduce_to(values: NDArray[Any], least_side: int) -> NDArray[Any]:
    """Scale an image, gray or colour, down (antialiased) so that its shorter side has ``least_side`` pixels; never up."""
    factor = least_side / min(values.shape[:2])
    if factor >= 1:
        return values
    height, width = (max(least_side, round(side * factor)) for side in values.shape[:2])
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def _opened(path: Path, read: Callable[[Image.Image], _T], what: str = "image") -> _T:
    """What ``read`` makes of an image file; every way in which a file can be broken becomes MV501."""
    try:
        with Image.open(path) as image:
            return read(image)
    except Image.DecompressionBombError as error:
        hint = f"scale it down; Pillow's limit is {Image.MAX_IMAGE_PIXELS} pixels"
        raise _unreadable(path, f"it is too large to be a radiograph ({error})", hint, what) from error
    except _BROKEN as error:
        found, hint = _diagnose(path, error)
        raise _unreadable(path, found, hint, what) from error


def _colour_values(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode in _DEEP_GRAY_MODES:
        gray = (_gray_values(image, path) * np.float32(255)).round().astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if _has_alpha(image):
        return np.asarray(_on_black(image).convert("RGB"))
    if image.mode in ("L", *_COLOUR_MODES):
        return np.asarray(image.convert("RGB"))
    raise _unreadable(path, f"its pixel format is {image.mode!r}", "save it as 8-bit PNG, or as JPEG")


def _gray_values(image: Image.Image, path: Path) -> GrayArray:
    if image.mode == "L" and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode in _DEEP_GRAY_MODES:
        deep = np.asarray(image)
        low, high = int(deep.min()), int(deep.max())
        if low < 0 or high > 65535:
            raise _unreadable(path, f"its gray values reach from {low} to {high}", "save it as 8- or 16-bit gray PNG")
        gray: NDArray[np.float32] = deep.astype(np.float32) / np.float32(65535.0)
        return gray
    if _has_alpha(image):
        return np.asarray(_on_black(image).convert("L"))
    if image.mode in _COLOUR_MODES:
        return np.asarray(image.convert("L"))
    raise _unreadable(path, f"its pixel format is {image.mode!r}", "save it as 8- or 16-bit gray PNG, or as JPEG")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info


def _on_black(image: Image.Image) -> Image.Image:
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen)


def _diagnose(path: Path, error: Exception) -> tuple[str, str]:
    """What is wrong with a file that Pillow could not read, and what to do about it."""
    if not path.exists():
        return "it does not exist", "check the path, and the folder that relative paths start from"
    if path.is_dir():
        return "it is a folder", "give the path of an image file"
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as failure:
        return f"it cannot be opened ({failure.strerror})", "check the file's permissions"
    if not head:
        return "it is empty (0 bytes)", "copy or download it again"
    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image that Pillow knows; it starts with {head!r}", "PNG and JPEG are read; convert DICOM first"
    return f"it is truncated or damaged ({error or type(error).__name__})", "copy or download it again"


def _unreadable(source: str | Path, found: str, hint: str, what: str = "image") -> DataError:
    return DataError(Problem(code="MV501", text=f"cannot read {what} {source}: {found}", hint=hint))
