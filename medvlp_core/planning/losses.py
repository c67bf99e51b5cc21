"""The weights of the loss terms: what ``losses:`` says of each, a number or a ramp over the training. Light."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import attrs

from medvlp_core.errors import Diagnostics, did_you_mean
from medvlp_core.planning.parameters import describe
from medvlp_core.recipe.load import Node

#: The keys of a ramp, as a recipe has them, and an example for messages.
RAMP_KEYS = ("from", "to", "begin", "end")
_EXAMPLE = "{from: 0, to: 1, begin: 0.1, end: 0.4}"


@attrs.frozen
class Ramp:
    """A weight that goes linearly from ``initial`` to ``final`` while ``progress`` goes from ``start`` to ``end``.

    ``w(p) = initial + (final - initial) * clamp((p - start) / (end - start), 0, 1)``; p is the share of the optimiser steps that
    are done. A recipe writes ``{from: INITIAL, to: FINAL, begin: START, end: END}``.

    Example:
        >>> [Ramp(0, 2, start=0.25, end=0.75).at(progress) for progress in (0.0, 0.5, 1.0)]
        [0.0, 1.0, 2.0]
    """

    initial: float = attrs.field(converter=float)
    final: float = attrs.field(converter=float)
    start: float = attrs.field(converter=float)
    end: float = attrs.field(converter=float)

    def at(self, progress: Any) -> Any:
        """The weight at a progress: a number of a number, a tensor of a tensor."""
        share = (progress - self.start) / (self.end - self.start)
        share = share.clamp(0, 1) if hasattr(share, "clamp") else min(max(share, 0.0), 1.0)
        return self.initial + (self.final - self.initial) * share

    def code(self, progress: str) -> str:
        """:meth:`at` as Python, for a tensor of this name; the same operations, so the same bits."""
        share = f"(({progress} - {self.start!r}) / {self.end - self.start!r}).clamp(0, 1)"
        return f"({self.initial!r} + {self.final - self.initial!r} * {share})"

    def __str__(self) -> str:
        return f"{self.initial:g} to {self.final:g} while progress goes from {self.start:g} to {self.end:g}"


#: What multiplies a loss term: the same number in every step, or a ramp.
Weight = float | Ramp


def weight_at(weight: Weight, progress: Any) -> Any:
    """The weight of a term at a progress (a number or a scalar tensor)."""
    return weight.at(progress) if isinstance(weight, Ramp) else weight


def weight_data(weight: Weight) -> float | dict[str, float]:
    """A weight as a recipe holds it."""
    if isinstance(weight, Ramp):
        return dict(zip(RAMP_KEYS, attrs.astuple(weight), strict=True))
    return weight


def weight_text(weight: Weight) -> str:
    """``0.5``, or ``0 to 1 while progress goes from 0.1 to 0.4``."""
    return str(weight) if isinstance(weight, Ramp) else f"{weight:g}"


def is_zero(weight: Weight) -> bool:
    """Whether a term never counts."""
    return not (weight.initial or weight.final) if isinstance(weight, Ramp) else not weight


def read_losses(recipe: Node, terms: Iterable[str], diagnostics: Diagnostics, *, is_complete: bool) -> dict[str, Weight]:
    """The weight of every term (``gla.local``): 1 unless ``losses:`` says otherwise. Every problem goes to ``diagnostics``.

    ``is_complete``: ``terms`` are all that there are; else some component could not be read, and unknown ones may be its.
    """
    weights: dict[str, Weight] = dict.fromkeys(terms, 1.0)
    node = recipe.get("losses")
    if node is None or node.value is None:
        return weights
    if not isinstance(node.value, dict):
        diagnostics.add("MV103", f"losses must be a mapping, found {describe(node)}", at=node.position)
        return weights
    for slot, block in node.value.items():
        children = {} if block.value is None else block.value
        if not isinstance(children, dict):
            text = f"losses.{slot} must map terms to weights, found {describe(block)}"
            diagnostics.add("MV103", text, at=block.position, hint=f"write `losses: {{{slot}: {{TERM: 1.0}}}}`")
            continue
        for term, child in children.items():
            name = f"{slot}.{term}"
            if name not in weights and is_complete:
                hint = did_you_mean(name, weights, what="terms")
                at = child.key_position or child.position
                diagnostics.add("MV107", f"no component emits the loss {name!r}", at=at, hint=hint)
                continue
            weight = _read_weight(child, f"losses.{name}", diagnostics)
            if weight is not None and name in weights:
                weights[name] = weight
    if weights and all(map(is_zero, weights.values())):
        diagnostics.add("MV104", "every loss has the weight 0: nothing would be learned", at=node.position)
    return weights


def _read_weight(node: Node, path: str, diagnostics: Diagnostics) -> Weight | None:
    if isinstance(node.value, dict):
        return _read_ramp(node, path, diagnostics)
    hint = None if isinstance(node.value, (int, float)) else f"write a number, or a ramp such as `{_EXAMPLE}`"
    return _read_number(node, path, diagnostics, hint=hint)


def _read_ramp(node: Node, path: str, diagnostics: Diagnostics) -> Ramp | None:
    assert isinstance(node.value, dict)
    known = len(diagnostics.errors)
    for key, child in node.value.items():
        if key not in RAMP_KEYS:
            hint = did_you_mean(key, RAMP_KEYS, what="keys of a ramp")
            diagnostics.add("MV102", f"{path} has no key {key!r}", at=child.key_position or child.position, hint=hint)
    if missing := [key for key in RAMP_KEYS if key not in node.value]:
        text = f"{path} is a ramp without {' and '.join(missing)}"
        hint = f"write `{_EXAMPLE}`; begin and end are shares of the training"
        diagnostics.add("MV105", text, at=node.key_position or node.position, hint=hint)
    found = {
        key: _read_number(node.value[key], f"{path}.{key}", diagnostics, most=1.0 if key in ("begin", "end") else None)
        for key in RAMP_KEYS
        if key in node.value
    }
    start, end = found.get("begin"), found.get("end")
    if start is not None and end is not None and start >= end:
        text = f"{path}: begin={start:g} must be below end={end:g}"
        diagnostics.add("MV104", text, at=node.value["end"].position, hint="both are shares of the training, from 0 to 1")
    if len(diagnostics.errors) > known:
        return None
    return Ramp(*(number for key in RAMP_KEYS if (number := found[key]) is not None))


def _read_number(
    node: Node, path: str, diagnostics: Diagnostics, *, most: float | None = None, hint: str | None = None
) -> float | None:
    """A finite number of at least 0 and at most ``most``."""
    is_number = isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
    if is_number and 0 <= node.value <= (sys.float_info.max if most is None else most):  # type: ignore[operator]
        return float(node.value)  # type: ignore[arg-type]
    wanted = "a finite number of at least 0" if most is None else f"a number from 0 to {most:g}"
    text = f"{path} must be {wanted}, found {describe(node)}"
    diagnostics.add("MV104" if is_number else "MV103", text, at=node.position, hint=hint)
    return None
