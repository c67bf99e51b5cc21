"""Reading one image file as gray values, with clear errors for everything that is not an image."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

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
    path = Path(path)
    try:
        with Image.open(path) as image:
            if at_least is not None:
                image.draft("L", (at_least, at_least))
            image.load()  # a truncated file is noticed here, not when it is opened
            ImageOps.exif_transpose(image, in_place=True)
            return _gray_values(image, path)
    except Image.DecompressionBombError as error:
        hint = f"scale it down; Pillow's limit is {Image.MAX_IMAGE_PIXELS} pixels"
        raise _unreadable(path, f"it is too large to be a radiograph ({error})", hint) from error
    except _BROKEN as error:
        found, hint = _diagnose(path, error)
        raise _unreadable(path, found, hint) from error


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


def reduce_to(values: GrayArray, least_side: int) -> GrayArray:
    """Scale an image down (antialiased) so that its shorter side has ``least_side`` pixels; a smaller one stays as it is."""
    factor = least_side / min(values.shape)
    if factor >= 1:
        return values
    height, width = (max(least_side, round(side * factor)) for side in values.shape)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


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
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        black = Image.new("RGBA", seen.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, seen).convert("L"))
    if image.mode in _COLOUR_MODES:
        return np.asarray(image.convert("L"))
    raise _unreadable(path, f"its pixel format is {image.mode!r}", "save it as 8- or 16-bit gray PNG, or as JPEG")


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


def _unreadable(path: Path, found: str, hint: str) -> DataError:
    return DataError(Problem(code="MV501", text=f"cannot read image {path}: {found}", hint=hint))
