"""The values of a record's fields, read and checked: paths, arrays, lists of numbers and strings become arrays and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from medvlp_core.data.images import Pixels, as_float, as_gray_range, read_array, read_gray, read_mask, read_pixels
from medvlp_core.errors import DataError, Problem
from medvlp_core.spec.fields import Field

#: Texts of one record: one, or lists of them.
Texts = str | list[Any]


@attrs.frozen
class FieldReader:
    """Reads one field of one record. ``record_id`` is named in errors."""

    name: str
    field: Field
    record_id: str

    def read(self, value: Any, at_least: int | None) -> Any:
        """What :func:`medvlp_core.data.fields.read_field` returns."""
        kind = self.field.kind
        if kind == "image" and self.field.has_several_images:
            if not isinstance(value, list | tuple | np.ndarray) or not len(value):
                raise self.error(f"found {_told(value)}, expected a list of images")
            return [self._image(one, at_least) for one in value]
        if kind == "image":
            return self._image(value, at_least)
        if kind == "text":
            return self._texts(value, len(self.field.axes) - 1)
        return {"map": self._map, "mask": self._mask, "boxes": self._boxes, "vector": self._vector, "spans": self._spans}[kind](
            value
        )

    def error(self, found: str, hint: str | None = None) -> DataError:
        """MV512, for this record and field."""
        return DataError(Problem(code="MV512", text=f"record {self.record_id!r}, field {self.name!r}: {found}", hint=hint))

    def _image(self, value: Any, at_least: int | None) -> Pixels:
        is_colour = self.field.is_colour
        if isinstance(value, str | Path) and Path(value).suffix != ".npy":
            if self.field.has_depth:
                raise self.error(f"found {_told(value)}, expected a volume", "save its slices as one .npy array (D, H, W)")
            return read_pixels(value, is_colour=is_colour, at_least=at_least)
        source = str(value) if isinstance(value, str | Path) else f"of record {self.record_id!r} (field {self.name!r})"
        pixels = as_gray_range(self._array(value, "image"), source)
        if is_colour and not self.field.has_depth and pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        wanted = "(D, H, W)" if self.field.has_depth else "(H, W, 3) of uint8" if is_colour else "(H, W)"
        is_right = pixels.ndim == wanted.count(",") + 1 and 0 not in pixels.shape
        if is_colour and not self.field.has_depth:
            is_right = is_right and pixels.shape[-1] == 3 and pixels.dtype == np.uint8
        if not is_right:
            raise self.error(f"found an array of shape {pixels.shape} and dtype {pixels.dtype}, expected {wanted}")
        height, width = pixels.shape[:2] if is_colour and not self.field.has_depth else pixels.shape[-2:]
        return Pixels(pixels, height, width)

    def _map(self, value: Any) -> NDArray[np.float32]:
        if isinstance(value, str | Path) and Path(value).suffix != ".npy":
            numbers = as_float(read_gray(value))
        else:
            numbers = self._array(value, "map").astype(np.float32)
        if not np.isfinite(numbers).all():
            raise self.error("a map has infinite or unknown numbers", "leave the whole map out where it is unknown")
        return self._of_rank(numbers)

    def _mask(self, value: Any) -> NDArray[Any]:
        labels = read_mask(value) if isinstance(value, str | Path) else self._array(value, "mask")
        if labels.dtype.kind == "f":
            raise self.error(f"found a mask of {labels.dtype}, expected integers or truth values", "round it, or use a map")
        return self._of_rank(labels != 0 if self.field.dtype == "bool" else labels.astype(np.int64))

    def _boxes(self, value: Any) -> NDArray[np.float32]:
        numbers = self._numbers([[None] * 4 if box is None else box for box in value] if isinstance(value, list | tuple) else value)
        boxes = numbers.reshape(-1, 4) if numbers.size == 0 else numbers
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise self.error(f"found boxes of shape {boxes.shape}, expected (K, 4): left, top, right, bottom in pixels")
        is_absent = np.isnan(boxes).sum(axis=1) == 4
        is_wrong = ~is_absent & ~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        if is_wrong.any():
            first = boxes[is_wrong.argmax()].tolist()
            raise self.error(
                f"the box {first} has no area", "boxes are left, top, right, bottom in pixels; write None for an absent one"
            )
        return np.where(is_absent[:, None], 0, boxes).astype(np.float32)

    def _vector(self, value: Any) -> NDArray[np.float64]:
        numbers = self._of_rank(self._numbers(value))
        known = numbers[np.isfinite(numbers)]
        if self.field.dtype == "int" and (fractions := known[np.mod(known, 1) != 0]).size:
            raise self.error(f"found {fractions[0]}, expected integers")
        if self.field.dtype == "bool" and (others := known[~np.isin(known, (0, 1))]).size:
            raise self.error(f"found {others[0]}, expected 0 or 1")
        return numbers

    def _spans(self, value: Any) -> NDArray[np.int64]:
        numbers = self._numbers(value)
        spans = numbers.reshape(-1, 2) if numbers.size == 0 else numbers
        if spans.ndim != 2 or spans.shape[1] != 2 or not (spans == np.round(spans)).all():
            raise self.error(f"found {_told(value)}, expected spans (K, 2): start and end in characters")
        is_wrong: NDArray[np.bool_] = (spans[:, 0] < 0) | (spans[:, 1] <= spans[:, 0])
        if is_wrong.any():
            first = spans[is_wrong.argmax()].astype(int).tolist()
            raise self.error(
                f"the span {first} is empty or before the text", "spans are start and end in characters, from 0, end exclusive"
            )
        return spans.astype(np.int64)

    def _texts(self, value: Any, depth: int) -> Texts:
        if depth == 0:
            if not isinstance(value, str):
                raise self.error(f"found {_told(value)}, expected a text")
            return value
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.error(f"found {_told(value)}, expected a list of texts")
        return [self._texts(one, depth - 1) for one in value]

    def _array(self, value: Any, what: str) -> NDArray[Any]:
        if isinstance(value, str | Path):
            return read_array(value, what=what)
        try:
            found = np.asarray(value)
        except ValueError:  # rows of different lengths
            found = np.asarray(None)
        if found.dtype.kind not in "biuf":
            raise self.error(f"found {_told(value)}, expected a path or an array of numbers")
        return found

    def _numbers(self, value: Any) -> NDArray[np.float64]:
        """Numbers, with NaN where one is None."""
        if isinstance(value, str | Path):
            value = read_array(value, what=self.field.kind)
        try:
            found = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.error(f"found {_told(value)}, expected numbers, as many in each row") from error
        if np.isinf(found).any():
            raise self.error("a number is infinite", "an unknown number is None or NaN")
        return found

    def _of_rank(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Refuse an array that has not the axes of the field; those that are numbers must agree, if no crop scales them."""
        axes = self.field.axes
        fixed = axes[:-2] if self.field.kind in ("map", "mask") else axes
        is_right = numbers.ndim == len(axes) and all(
            axis in (size, str(axis)) for axis, size in zip(fixed, numbers.shape, strict=False)
        )
        if not is_right or 0 in numbers.shape[len(fixed) :]:
            printed = ", ".join(map(str, axes)) + ("," if len(axes) == 1 else "")
            raise self.error(f"found an array of shape {numbers.shape}, expected ({printed})")
        return numbers


def _told(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
