"""Facts about timm models that a spec needs before torch is imported, read from ``timm_table.json``. Light."""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path
from typing import Any

import attrs

_TABLE = Path(__file__).with_name("timm_table.json")


@attrs.frozen
class VitFacts:
    """Sizes of a vision transformer as timm ships it. ``image_size`` and ``patch`` in pixels, ``prefix`` in tokens."""

    width: int
    patch: int
    image_size: int
    prefix: int
    depth: int
    heads: int


@attrs.frozen
class CnnFacts:
    """Channels and reductions (input pixels for one cell, per side) of every feature stage."""

    channels: tuple[int, ...]
    reductions: tuple[int, ...]


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(_TABLE.read_text(encoding="utf-8"))


def base_name(model: str) -> str:
    """The architecture without the tag that chooses weights: ``vit_base_patch16_224`` of ``vit_base_patch16_224.mae``."""
    return model.partition(".")[0]


def vit_facts(model: str) -> VitFacts | None:
    """The facts of a vision transformer, or None if the table does not have it."""
    row = _table()["vit"].get(base_name(model))
    return VitFacts(*row) if row else None


def cnn_facts(model: str) -> CnnFacts | None:
    """The facts of a convolutional network, or None if the table does not have it."""
    row = _table()["cnn"].get(base_name(model))
    return CnnFacts(tuple(row[0]), tuple(row[1])) if row else None


def misspelt(model: str, kind: str) -> str | None:
    """The name in the table that ``model`` must be a misspelling of, or None.

    Names that the table does not know are legal (a newer timm), so only a very near match counts.

    Example:
        >>> misspelt("vit_bsae_patch16_224", "vit"), misspelt("swin_tiny_patch4_window7_224", "vit")
        ('vit_base_patch16_224', None)
    """
    names, name = _table()[kind], base_name(model)
    if name in names:
        return None
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.9)
    return found[0] if found else None
