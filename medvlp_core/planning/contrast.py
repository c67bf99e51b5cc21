"""Contrasts over a whole step (``train.contrast_over: step``): which calls mix rows, and what they take from all others. Light.

Calls that mix rows run once over the rows of the step. Their ports come from micro-batches: rows are put one below the other, and
axes that are padded to the longest text of a micro-batch are padded to the longest of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.wiring import BATCH, Call, PortKey, Wiring
from medvlp_core.spec.contract import Axis, Size, Symbol

_TAKE_OUT = "or take `contrast_over: step` out of train"


@attrs.frozen(kw_only=True)
class StepContrast:
    """The calls of a step, and the ports between them.

    ``mixing`` run once over all rows. ``before`` are the calls that these need, ``row_wise`` all others with these first: so both
    passes over a micro-batch draw the same random numbers for them.

    ``ports`` are what ``mixing`` takes; ``common`` those of them that are the same in every micro-batch, ``trained`` those that get
    a gradient, ``padded`` the places of axes that are longer in some micro-batches.
    """

    before: tuple[Call, ...]
    row_wise: tuple[Call, ...]
    mixing: tuple[Call, ...]
    ports: tuple[PortKey, ...]
    common: frozenset[PortKey]
    trained: frozenset[PortKey]
    padded: dict[PortKey, tuple[int, ...]]


def mixes_rows(wiring: Wiring, call: Call) -> bool:
    """Whether a row of what a call gives depends on other rows, as its contract declares."""
    return wiring.components[call.path].calls[call.name].mixes_rows


def step_contrast(wiring: Wiring, calls: Sequence[Call], trained: Iterable[Call]) -> StepContrast | None:
    """How the calls of a step are divided; None if none of them mixes rows. ``trained`` are those that get a gradient."""
    mixing = tuple(call for call in calls if mixes_rows(wiring, call))
    if not mixing:
        return None
    ports = tuple(dict.fromkeys(key for call in mixing for _, key in call.takes))
    before = wiring.route(ports)
    others = (call for call in calls if call not in mixing and call not in before)
    axes = {key: _axes(wiring, key) for key in ports}
    is_trained = {key for call in trained for key in call.gives}
    return StepContrast(
        before=before,
        row_wise=(*before, *others),
        mixing=mixing,
        ports=ports,
        common=frozenset(key for key in ports if BATCH not in axes[key][:1]),
        trained=frozenset(key for key in ports if key in is_trained and wiring.provider(key).spec.dtype == "float"),
        padded={key: tuple(place for place, axis in enumerate(axes[key]) if _is_padded(axis)) for key in ports},
    )


def check_contrast(wiring: Wiring, calls: Sequence[Call], diagnostics: Diagnostics) -> None:
    """Refuse what needs a port of a call that mixes rows, and rows that cannot be put together (MV212)."""
    mixing = [call for call in calls if mixes_rows(wiring, call)]
    mixed = {key: call for call in mixing for key in call.gives}
    for call in calls:
        component = wiring.components[call.path]
        for argument, key in call.takes:
            if key in mixed:
                text = (
                    f"{component.label} needs {key}, which {mixed[key]} gives for all rows of a step at once, "
                    "after every other call: train.contrast_over is step"
                )
                hint = f"take a port of a call that mixes no rows, {_TAKE_OUT}"
                diagnostics.add("MV212", text, at=component.position(f"needs.{argument}"), hint=hint)
    for call in mixing:
        _check_ports(wiring, call, diagnostics)


def _check_ports(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
    component = wiring.components[call.path]
    keys = tuple(dict.fromkeys(key for _, key in call.takes))
    axes = {key: _axes(wiring, key) for key in keys}
    valid = {axis for key in keys if key.name.endswith("is_valid") for axis in axes[key]}
    for key in keys:
        provider = wiring.provider(key)
        if BATCH not in axes[key][:1]:
            if wiring.call_of(key) is not None:
                text = (
                    f"{component.label} takes {key} ({provider.spec}), which has no row for each record: "
                    "nobody knows which micro-batch's the whole step should take"
                )
                hint = f"its first axis must be the batch, {_TAKE_OUT}"
                diagnostics.add("MV212", text, at=component.position(), hint=hint)
            continue
        for dim, axis in zip(provider.spec.dims[1:], axes[key][1:], strict=True):
            if _is_padded(axis) and axis not in valid:
                text = (
                    f"{component.label} takes {key} ({provider.spec}), whose axis {dim} has another length in every micro-batch, "
                    "and nothing that says where it is padding"
                )
                hint = f"the call must need a port ..._is_valid with this axis as well, {_TAKE_OUT}"
                diagnostics.add("MV212", text, at=component.position(), hint=hint)


def _axes(wiring: Wiring, key: PortKey) -> tuple[Size | None, ...]:
    provider = wiring.provider(key)
    symbols = [wiring.symbol(provider.path, provider.call, provider.view, dim) for dim in provider.spec.dims]
    return tuple(wiring.table.size(one) if isinstance(one, Symbol) else one for one in symbols)


def _is_padded(axis: Size | None) -> bool:
    return isinstance(axis, Axis) and axis.is_padded and axis != BATCH
