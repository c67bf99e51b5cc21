"""The fields of records as tensors of a batch: read, cut with their image, stacked with padding, validity and absence.

The way of one field: :func:`read_field` for each record, :func:`draw_field` for each image, :func:`cut_field` for what lies on it,
then :func:`collate_field` for the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medvlp_core.data.field_values import FieldReader, Texts
from medvlp_core.data.geometry import Geometry, Size, apply, draw, has_area
from medvlp_core.data.images import Pixels
from medvlp_core.data.tokenizer import Tokenizer
from medvlp_core.errors import DataError, Problem
from medvlp_core.spec.blocks import InputSpec
from medvlp_core.spec.fields import Field, text_ports

#: torch's types of the dtypes that fields have.
_TORCH = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
#: The crop of one image, or one for each image of a field of several.
Geometries = Geometry | Sequence[Geometry]


def read_field(name: str, field: Field, value: Any, *, record_id: str, at_least: int | None = None) -> Any:
    """One value of a record, read and checked. None (the record lacks it) stays None.

    ``value``: a path, an array, a list of numbers or a string, as the kind asks. In a vector, None or NaN is an unknown number; a
    box that is None is an absent one. ``at_least``: of images, see :func:`medvlp_core.data.images.read_gray`.

    Shape:
        image: :class:`Pixels`, or a list of them. map (..., h, w) float32. mask (..., h, w) bool or int64. boxes (K, 4) float32,
        absent ones 0. vector: float64, unknown numbers NaN. spans (K, 2) int64. text: a string, or lists of strings.

    Raises:
        DataError: a file cannot be read (MV501), or the value is not one of the field (MV512).
    """
    return None if value is None else FieldReader(name, field, record_id).read(value, at_least)


def draw_field(value: Pixels | list[Pixels], size: Size, inputs: InputSpec, *, is_training: bool) -> Geometry | list[Geometry]:
    """The crop of an image field, or one for each of its images, in their order. ``size``: what it is scaled to, (..., H, W)."""
    if isinstance(value, list):
        return [_drawn(one, size, inputs, is_training) for one in value]
    return _drawn(value, size, inputs, is_training)


def cut_field(
    field: Field, value: Any, geometry: Geometries | None, size: Size, *, inputs: InputSpec | None = None, channels: int = 1
) -> Any:
    """A value that :func:`read_field` gave, cut and scaled, as a tensor. Kinds that lie on no image come as they are.

    ``geometry``: of the field itself, or of the image that it lies on; several for a field of several images, whose maps, masks
    and boxes then have one entry for each image. ``size``: :func:`pixel_size`. None stays None, a text stays a text.

    Raises:
        DataError: there are not as many images as crops, or too few axes (MV505).
    """
    if value is None or field.kind == "text":
        return value
    if field.kind in ("vector", "spans"):
        return torch.tensor(value)
    assert geometry is not None
    if not isinstance(geometry, Geometry):
        if len(value) != len(geometry):
            text = f"a field of kind {field.kind!r} has {len(value)} entries, and its image has {len(geometry)}"
            raise DataError(Problem(code="MV505", text=text, hint="give one entry for each image"))
        return torch.stack([_cut(field, one, at, size, inputs, channels) for one, at in zip(value, geometry, strict=True)])
    return _cut(field, value, geometry, size, inputs, channels)


def pixel_size(field: Field, sizes: Mapping[str, int], *, on: Field | None = None) -> Size:
    """What an image, map or mask is scaled to: (H, W), or (D, H, W) if it is a volume or lies ``on`` one.

    Raises:
        ValueError: an axis has no solved number.
    """
    axes = field.pixel_axes(on)
    if unsolved := [axis for axis in axes if isinstance(axis, str) and axis not in sizes]:
        raise ValueError(f"the axis {unsolved[0]} of a field of kind {field.kind!r} has no number; a crop is scaled to one")
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in axes)


def collate_field(
    name: str,
    field: Field,
    values: Sequence[Any],
    sizes: Mapping[str, int],
    *,
    may_lack: bool = False,
    instead: Tensor | None = None,
    tokenizer: Tokenizer | None = None,
    record_ids: Sequence[str] = (),
    lengths: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """The ports of one field for a batch: those that ``field.ports`` names. Of a constant field, ``values`` is its one value.

    Ragged axes are padded to the longest of the batch, at least to 1 (and to what ``lengths`` says, for axes that other fields
    have too), with 0 (``NAME_is_valid`` is False there). Where a record lacks the field, 0 stands and ``NAME_is_known`` is False;
    so it does at single unknown numbers of a vector.

    ``values``: what :func:`cut_field` gave, None where a record lacks it. ``sizes``: solved numbers of symbols. ``may_lack``:
    whether records may. ``instead``: of an image field, the batch of images whose rows stand in for absent ones; (B, C, H, W).
    ``record_ids``: for errors.

    Raises:
        DataError: a record lacks the field and may not, or has another size than was solved (MV512).
    """
    ids = record_ids or [str(row) for row in range(len(values))]
    readers = [FieldReader(name, field, record_id) for record_id in ids]
    if not may_lack or field.is_constant:
        _expect_known(readers, values)
    if field.kind == "text":
        assert tokenizer is not None, "texts need a tokenizer"
        found = _collate_texts(readers, values, sizes, tokenizer, lengths or {})
    else:
        found = _collate_tensors(readers, values, sizes, instead, lengths or {})
    if field.is_constant:
        return {port: tensor[0] for port, tensor in found.items() if port in field.ports(name, sizes)}
    if may_lack and field.kind != "vector":
        found[f"{name}_is_known"] = torch.tensor([value is not None for value in values], dtype=torch.bool)
    return {port: found[port] for port in field.ports(name, sizes, may_lack=may_lack)}


def ragged_lengths(field: Field, values: Iterable[Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """How long the ragged axes of a field are in a batch: as long as in the longest of its values; none of a constant field.

    Fields of a data component that name an axis alike have one axis: a batch pads all of them to the longest of any.
    """
    found: dict[str, int] = {}
    for value in values:
        if value is None:
            continue
        shape = _lengths(value, len(field.axes) - 1) if field.kind == "text" else tuple(value.shape)
        for axis, size in zip(field.axes, shape, strict=False):
            if axis in field.ragged(sizes):
                found[str(axis)] = max(size, found.get(str(axis), 1))
    return found


class TokenRanges(NamedTuple):
    """Spans of a text as its tokens.

    Shape:
        ranges: (B, K, 2) int64, first token and the one behind the last; 0 where invalid. is_valid: (B, K) bool.
    """

    ranges: Tensor
    is_valid: Tensor


def spans_to_tokens(spans: Tensor, token_spans: Tensor) -> TokenRanges:
    """Which tokens each span of characters touches. One that lies beyond the cut, or is padding, is invalid.

    Of a span that the cut divides, the tokens that are left count.

    Shape:
        spans (B, K, 2), characters, end exclusive, empty at padding; token_spans (B, L, 2), -1 at special tokens and padding.
    """
    start, end = spans[..., 0, None], spans[..., 1, None]  # (B, K, 1)
    token_start, token_end = token_spans[:, None, :, 0], token_spans[:, None, :, 1]  # (B, 1, L)
    touches = (token_start >= 0) & (token_start < end) & (token_end > start)  # (B, K, L)
    is_valid = touches.any(dim=-1)
    first, count = touches.int().argmax(dim=-1), touches.shape[-1]
    last = count - touches.flip(-1).int().argmax(dim=-1)
    ranges = torch.stack([first, last], dim=-1)
    return TokenRanges(ranges.where(is_valid[..., None], ranges.new_zeros(())), is_valid)


def _drawn(pixels: Pixels, size: Size, inputs: InputSpec, is_training: bool) -> Geometry:
    is_volume = len(size) == 3
    height, width = pixels.values.shape[1:3] if is_volume else pixels.values.shape[:2]
    return draw(height, width, size, inputs, is_training=is_training, original=(pixels.height, pixels.width))


def _cut(field: Field, value: Any, geometry: Geometry, size: Size, inputs: InputSpec | None, channels: int) -> Tensor:
    assert field.kind in ("image", "map", "mask", "boxes")
    pixels = value.values if field.kind == "image" else value
    return apply(field.kind, pixels, geometry, size, inputs=inputs, channels=channels)


def _expect_known(readers: Sequence[FieldReader], values: Sequence[Any]) -> None:
    hint = "give every record the field, or let records lack it (inputs.may_lack)"
    for reader, value in zip(readers, values, strict=True):
        if value is None:
            raise reader.error("the record lacks it", hint)
        if reader.field.kind == "vector" and bool(value.isnan().any()):
            raise reader.error(f"{int(value.isnan().sum())} of {value.numel()} numbers are unknown", hint)


def _shape(
    readers: Sequence[FieldReader],
    shapes: Sequence[tuple[int, ...] | None],
    sizes: Mapping[str, int],
    axes: tuple[str | int, ...],
    lengths: Mapping[str, int],
) -> tuple[int, ...]:
    """The sizes of one record's axes in a batch: solved ones as they are, ragged ones as long as the longest."""
    there = [(reader, shape) for reader, shape in zip(readers, shapes, strict=True) if shape is not None]
    found = []
    for place, axis in enumerate(axes):
        solved = axis if isinstance(axis, int) else sizes.get(axis)
        for reader, shape in there:
            if solved is not None and shape[place] != solved:
                raise reader.error(f"{axis} is {shape[place]}, expected {solved}", f"the field is {reader.field}")
        found.append(solved if solved is not None else max([lengths.get(str(axis), 1), *(shape[place] for _, shape in there)]))
    return tuple(found)


def _collate_tensors(
    readers: Sequence[FieldReader],
    values: Sequence[Tensor | None],
    sizes: Mapping[str, int],
    instead: Tensor | None,
    lengths: Mapping[str, int],
) -> dict[str, Tensor]:
    name, field = readers[0].name, readers[0].field
    shape = _shape(readers, [None if value is None else tuple(value.shape) for value in values], sizes, field.axes, lengths)
    ragged = field.ragged(sizes)
    dtype = torch.float64 if field.kind == "vector" else _TORCH[field.dtype]
    stacked = torch.full((len(values), *shape), float("nan") if field.kind == "vector" else 0, dtype=dtype)
    is_valid = torch.zeros(len(values), *(shape[field.axes.index(axis)] for axis in ragged), dtype=torch.bool)
    if instead is not None and instead.shape[1:] != shape[field.has_several_images :]:
        text = f"images of shape {tuple(instead.shape[1:])} cannot stand in for absent ones of field {name!r}, which are {shape}"
        raise DataError(Problem(code="MV505", text=text, hint="let `instead` name an image field of the same size"))
    for row, value in enumerate(values):
        if value is not None:
            here: Any = (row, *map(slice, value.shape))
            there: Any = (row, *(slice(value.shape[field.axes.index(axis)]) for axis in ragged))
            stacked[here], is_valid[there] = value.to(dtype), True
        elif instead is not None:
            stacked[(row, 0) if field.has_several_images else row] = instead[row]
    if field.kind == "boxes":
        is_valid = has_area(stacked)
    elif field.kind == "spans":
        is_valid = stacked[..., 1] > stacked[..., 0]
    found = {name: stacked, f"{name}_is_valid": is_valid}
    if field.kind == "vector":
        found |= {name: stacked.nan_to_num(nan=0.0).to(_TORCH[field.dtype]), f"{name}_is_known": ~stacked.isnan()}
    return found


def _collate_texts(
    readers: Sequence[FieldReader],
    values: Sequence[Texts | None],
    sizes: Mapping[str, int],
    tokenizer: Tokenizer,
    lengths: Mapping[str, int],
) -> dict[str, Tensor]:
    """Tokens of all texts at once. An absent text is an empty one; lists are padded with texts that have no valid token."""
    name, field = readers[0].name, readers[0].field
    depth = len(field.axes) - 1
    shape = _shape(
        readers, [None if value is None else _lengths(value, depth) for value in values], sizes, field.axes[:-1], lengths
    )
    flat: list[str | None] = []
    for value in values:
        flat += _flat("" if value is None and not depth else value, shape)
    tokens = tokenizer.encode([text or "" for text in flat])
    is_there = torch.tensor([text is not None for text in flat], dtype=torch.bool)
    tokens = tokens._replace(text_is_valid=tokens.text_is_valid & is_there[:, None])
    parts = [tensor.reshape(len(values), *shape, *tensor.shape[1:]) for tensor in tokens]
    return dict(zip(text_ports(name, field.dims), parts, strict=True))


def _lengths(texts: Texts, depth: int) -> tuple[int, ...]:
    """How many texts there are at each depth of nested lists, at most."""
    if depth == 0:
        return ()
    inner = [_lengths(one, depth - 1) for one in texts]
    return (len(texts), *map(max, zip(*inner, strict=True))) if inner else (0,) * depth


def _flat(texts: Texts | None, shape: tuple[int, ...]) -> list[str | None]:
    """The texts of nested lists in their order, with None at padding."""
    if not shape:
        return [texts if isinstance(texts, str) else None]
    inner = [_flat(one, shape[1:]) for one in texts or ()]
    return [text for one in inner for text in one] + [None] * (math.prod(shape) - len(inner) * math.prod(shape[1:]))
