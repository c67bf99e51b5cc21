"""Fields: what a sample of a data source holds beside or instead of one image and one text. Light.

A *field* is a named value of a record. Its kind says how it is read, cut and stacked:

=========  ==========================  =================================================================================
kind       axes                        what it is
=========  ==========================  =================================================================================
image      ``B [V] C [D] H W``         images, several of a study (V), volumes (D slices); with 3 for C they are read in colour
map        ``B ... [D] Hh Wh``         numbers on an image (heat maps), cut with it and scaled antialiased
mask       ``B ... [D] Hm Wm``         regions or labels of an image's pixels, cut with it; the nearest pixel's value
boxes      ``B K 4``                   left, top, right, bottom in pixels of the original image; cut with it
vector     ``B ...``                   numbers: labels, measurements, a frozen vector
spans      ``B K 2``                   start and end in characters of a text
text       ``B ... L``                 texts; L are their tokens
=========  ==========================  =================================================================================

A field without ``B`` is *constant*: the same for all records (class prompts, entity descriptions), and not stacked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, get_args

import attrs

Kind = Literal["image", "map", "mask", "boxes", "vector", "spans", "text"]
FieldDtype = Literal["float", "int", "bool"]

#: The dtypes that a field of each kind may have; the first is that of a field which names none.
DTYPES: dict[Kind, tuple[FieldDtype, ...]] = {
    "image": ("float",),
    "map": ("float",),
    "mask": ("bool", "int"),
    "boxes": ("float",),
    "vector": ("float", "int", "bool"),
    "spans": ("int",),
    "text": ("int",),
}
#: What the axes of each kind are, for messages.
_AXES: dict[Kind, str] = {
    "image": "B [V] C [D] H W",
    "map": "B ... [D] H W",
    "mask": "B ... [D] H W",
    "boxes": "B K 4",
    "vector": "B ...",
    "spans": "B K 2",
    "text": "B ... L",
}
#: What ``on`` must name, where there is one.
_LIES_ON: dict[Kind, Kind] = {"map": "image", "mask": "image", "boxes": "image", "spans": "text"}


class FieldPort(NamedTuple):
    """A port that a field gives: its dimensions and its dtype."""

    dims: tuple[str | int, ...]
    dtype: FieldDtype


def _dims(given: str | int | Iterable[str | int]) -> tuple[str | int, ...]:
    parts = given.split() if isinstance(given, str) else [given] if isinstance(given, int) else given
    return tuple(int(part) if isinstance(part, str) and part.isdigit() else part for part in parts)


@attrs.frozen
class Field:
    """What one field of a sample is: axes, kind, and the image or text that it lies on.

    ``on`` names the image whose crop, mirror and scale a map, mask or boxes follow, or the text whose cut spans follow.

    Raises:
        ValueError: the axes do not suit the kind, or ``on`` or ``dtype`` does not.

    Example:
        >>> Field("B S Hh Wh", kind="map", on="image").ragged({"Hh": 14, "Wh": 14})
        ('S',)
    """

    dims: tuple[str | int, ...] = attrs.field(converter=_dims)
    kind: Kind = attrs.field(kw_only=True)
    on: str | None = attrs.field(default=None, kw_only=True)
    dtype: FieldDtype = attrs.field(
        default=attrs.Factory(lambda self: DTYPES.get(self.kind, ("float",))[0], takes_self=True), kw_only=True
    )

    def __attrs_post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown kind of field {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        for fault in (self._dims_fault(), self._on_fault(), self._dtype_fault()):
            if fault:
                raise ValueError(f"not a field of kind {self.kind!r}: {fault}")

    @property
    def is_constant(self) -> bool:
        """Whether it is the same for all records: its axes have no ``B``."""
        return "B" not in self.dims

    @property
    def axes(self) -> tuple[str | int, ...]:
        """The axes of one record's value: those after ``B``."""
        return self.dims if self.is_constant else self.dims[1:]

    @property
    def channel_axis(self) -> int:
        """Of an image: where among :attr:`axes` its channels are; 0, or 1 behind an axis of several images."""
        return _channel_axis(self.axes)

    @property
    def has_several_images(self) -> bool:
        """Whether it is a field of several images of one record: ``B V C H W``."""
        return self.kind == "image" and self.channel_axis == 1

    @property
    def has_depth(self) -> bool:
        """Whether it is a field of volumes: ``B C D H W``."""
        return self.kind == "image" and len(self.axes) - self.channel_axis == 4

    @property
    def is_colour(self) -> bool:
        """Whether images are read in colour: the channel axis is the number 3. A symbol is gray, repeated as the model asks."""
        return self.kind == "image" and self.axes[self.channel_axis] == 3

    def pixel_axes(self, on: Field | None = None) -> tuple[str | int, ...]:
        """The axes that the crop scales: ``H W``, or ``D H W`` of a volume and of what lies ``on`` one. None of other kinds.

        Raises:
            ValueError: the field lies on a volume and has too few axes.
        """
        if self.kind not in ("image", "map", "mask"):
            return ()
        count = 3 if self.has_depth or (on is not None and on.has_depth) else 2
        if len(self.axes) < count:
            raise ValueError(f"a {self.kind} on a volume has the axes B ... D H W, found {_printed(self.dims)}")
        return self.axes[-count:]

    def ragged(self, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """The axes that no number was solved for: each batch is padded to its longest. ``sizes``: solved numbers of symbols.

        A constant field and the tokens of a text are not ragged: the first is not padded, the second is cut by the tokenizer.
        """
        axes = () if self.is_constant else self.axes[:-1] if self.kind == "text" else self.axes
        return tuple(axis for axis in axes if isinstance(axis, str) and axis not in sizes)

    def extra_ports(self, name: str, sizes: Mapping[str, int], *, may_lack: bool = False) -> dict[str, FieldPort]:
        """The ports beside ``name`` itself: ``NAME_is_valid`` and, if it may lack, ``NAME_is_known``; a text's tokens.

        ``NAME_is_valid`` is False at padding; boxes and spans always have it, for the cut may take one away. ``NAME_is_known``
        has a vector's own shape, else (B,).
        """
        found = {}
        if self.kind == "text":
            found = text_ports(name, self.dims)
        elif self.kind in ("boxes", "spans"):
            found[f"{name}_is_valid"] = FieldPort(self.dims[:-1], "bool")
        elif ragged := self.ragged(sizes):
            found[f"{name}_is_valid"] = FieldPort(("B", *ragged), "bool")
        if may_lack and not self.is_constant:
            found[f"{name}_is_known"] = FieldPort(self.dims if self.kind == "vector" else ("B",), "bool")
        return found

    def ports(self, name: str, sizes: Mapping[str, int], *, may_lack: bool = False) -> dict[str, FieldPort]:
        """All ports that the field gives: itself (a text is given as its tokens alone) and :meth:`extra_ports`."""
        own = {} if self.kind == "text" else {name: FieldPort(self.dims, self.dtype)}
        return own | self.extra_ports(name, sizes, may_lack=may_lack)

    def _dims_fault(self) -> str | None:
        wanted = f"expected {_AXES[self.kind]}, found {_printed(self.dims)!r}"
        for dim in self.dims:
            if not (isinstance(dim, int) and dim > 0) and not (isinstance(dim, str) and dim.isidentifier()):
                return f"{dim!r} is neither a symbol nor a number above 0; {wanted}"
        if "B" in self.dims[1:]:
            return f"B is the first axis, or there is none; {wanted}"
        least = {"image": 3, "map": 2, "mask": 2, "boxes": 2, "spans": 2, "text": 1, "vector": 0 if "B" in self.dims else 1}
        most = {"image": 5, "boxes": 2, "spans": 2}
        if not least[self.kind] <= len(self.axes) <= most.get(self.kind, len(self.axes)):
            return wanted
        if self.kind in ("boxes", "spans") and self.axes[-1] != {"boxes": 4, "spans": 2}[self.kind]:
            return wanted
        return self._channel_fault() if self.kind == "image" else None

    def _channel_fault(self) -> str | None:
        if len(self.axes) == 4 and len(_named_channels(self.axes)) != 1:
            hint = "name the channels C, or give their number: 'B V C H W' are several images, 'B C D H W' volumes"
            return f"which of the axes {_printed(self.axes[:2])} of {_printed(self.dims)!r} are the channels? {hint}"
        return None

    def _on_fault(self) -> str | None:
        lies_on = _LIES_ON.get(self.kind)
        if lies_on is None and self.on is not None:
            return f"it lies on nothing, found on={self.on!r}"
        if lies_on is not None and self.on is None:
            return f"it lies on {'an image' if lies_on == 'image' else 'a text'}, expected on=NAME of that field, found none"
        if lies_on is not None and self.is_constant:
            return f"it follows one record's {lies_on}, expected B as the first axis, found {_printed(self.dims)!r}"
        return None

    def _dtype_fault(self) -> str | None:
        if self.dtype not in DTYPES[self.kind]:
            return f"expected the dtype {' or '.join(DTYPES[self.kind])}, found {self.dtype!r}"
        return None

    def __str__(self) -> str:
        text = f"{self.kind} {_printed(self.dims)}"
        text += f":{self.dtype}" if self.dtype != DTYPES[self.kind][0] else ""
        return text + (f" on {self.on}" if self.on else "")


def text_ports(name: str, dims: tuple[str | int, ...]) -> dict[str, FieldPort]:
    """The ports of a text: ``NAME_token_ids`` and so on; the field ``text`` has the short names.

    Example:
        >>> list(text_ports("findings", ("B", "L")))
        ['findings_token_ids', 'findings_is_valid', 'findings_word_ids', 'findings_token_spans']
    """
    prefix = "" if name == "text" else f"{name}_"
    return {
        f"{prefix}token_ids": FieldPort(dims, "int"),
        f"{name}_is_valid": FieldPort(dims, "bool"),
        f"{prefix}word_ids": FieldPort(dims, "int"),
        f"{prefix}token_spans": FieldPort((*dims, 2), "int"),
    }


def field_faults(fields: Mapping[str, Field]) -> list[str]:
    """What is wrong between fields: ``on`` names none of them, or one of another kind. ``image`` and ``text`` are always there.

    Example:
        >>> field_faults({"heat": Field("B Hh Wh", kind="map", on="scan")})
        ["field 'heat' lies on 'scan', and there is no such field; images: image"]
    """
    there = {"image": Field("B C H W", kind="image"), "text": Field("B L", kind="text"), **fields}
    found = []
    for name, field in fields.items():
        wanted = _LIES_ON.get(field.kind)
        if field.on is None or wanted is None:
            continue
        if field.on not in there or there[field.on].kind != wanted:
            fault = f"that is a field of kind {there[field.on].kind!r}" if field.on in there else "there is no such field"
            names = ", ".join(other for other, one in there.items() if one.kind == wanted)
            found.append(f"field {name!r} lies on {field.on!r}, and {fault}; {wanted}s: {names}")
        elif wanted == "image" and (place := _place_fault(field, there[field.on])):
            found.append(f"field {name!r} lies on {place}, found {_printed(field.dims)!r}")
    return found


def _place_fault(field: Field, on: Field) -> str | None:
    """Why a map, mask or boxes cannot lie on an image field: axes are missing."""
    if field.kind == "boxes":
        return "several images of a record, and boxes have no axis for them" if on.has_several_images else None
    axes = [str(on.axes[0])] * on.has_several_images + ["...", *(["D"] * on.has_depth), "H", "W"]
    if len(field.axes) >= len(axes) - 1:
        return None
    what = "several images of a record" if on.has_several_images else "volumes"
    return f"{what}, expected the axes B {' '.join(axes)}"


def _named_channels(axes: tuple[str | int, ...]) -> list[int]:
    """The places that can be those of the channels in four axes: an axis named C, else 1 or 3."""
    named = [place for place in (0, 1) if axes[place] == "C"]
    return named or [place for place in (0, 1) if axes[place] in (1, 3)]


def _channel_axis(axes: tuple[str | int, ...]) -> int:
    if len(axes) == 4:
        return _named_channels(axes)[0]
    return int(len(axes) == 5)


def _printed(dims: Iterable[str | int]) -> str:
    return " ".join(map(str, dims))
