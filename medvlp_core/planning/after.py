"""Rows that modules get after a step (``Contract.after``): where they come from, and what must run for them. Light."""

from __future__ import annotations

from collections.abc import Iterable

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.wiring import BATCH, Call, Missing, PlannedComponent, PortKey, Wiring
from medvlp_core.spec.contract import CLEAN, Axis, Symbol

#: The rows of a component: arguments of its ``after_step``, and the ports that they are taken from.
Rows = tuple[tuple[str, PortKey], ...]


def rows_of(wiring: Wiring, call: Call) -> dict[str, PortKey | Missing]:
    """The ports of a call's ``after``: what fills an argument of the call, else what the component itself gives in its view."""
    component = wiring.components[call.path]
    contract = component.calls[call.name]
    taken = dict(call.takes)
    found: dict[str, PortKey | Missing] = {}
    for argument, row in contract.after.items():
        port = str(row.port)
        if port in taken:
            found[argument] = taken[port]
        elif port in contract.needs or not _gives(component, port):
            found[argument] = Missing(component.path, port, call.view)
        else:
            view = call.view if row.view is None else wiring.bound_view(component, row.view)
            found[argument] = (
                Missing(component.path, port, str(row.view)) if view is None else wiring.resolve(f"{component.slot}.{port}", view)
            )
        if isinstance(found[argument], Missing) and row.is_optional:
            del found[argument]
    return found


def _gives(component: PlannedComponent, port: str) -> bool:
    return any(spec.port == port for contract in component.calls.values() for spec in contract.gives.values())


def calls_for_rows(wiring: Wiring, calls: Iterable[Call], diagnostics: Diagnostics) -> tuple[Call, ...]:
    """A step's calls, with those that rows come from. Rows that nothing gives (MV201) or two calls name (MV209) are reported."""
    found = dict.fromkeys(calls)
    pending = list(found)
    while pending:
        call = pending.pop(0)
        for argument, key in rows_of(wiring, call).items():
            if isinstance(key, Missing):
                component = wiring.components[call.path]
                text = (
                    f"{component.label}: after names {argument}, no argument of {call.name} that is filled and no port of its own"
                )
                hint = "name an argument, or a port that the component gives; '...?' is optional"
                diagnostics.add("MV201", text, at=component.position(), hint=hint)
                continue
            for other in wiring.route([key]):
                if other not in found:
                    found[other] = None
                    pending.append(other)
    first: dict[tuple[str, str], str] = {}
    for call in found:
        component = wiring.components[call.path]
        for argument in component.calls[call.name].after:
            if (before := first.setdefault((call.path, argument), call.name)) != call.name:
                text = f"{component.label}: after_step gets {argument} from {before} and from {call.name}"
                diagnostics.add("MV209", text, at=component.position(), hint="its author must name it in one of the two contracts")
    return tuple(found)


def rows_by_component(wiring: Wiring, calls: Iterable[Call]) -> dict[str, Rows]:
    """What each component is handed after a step. Of a call that runs in several views it is the clean one's, if that runs."""
    found: dict[str, dict[str, PortKey]] = {}
    for call in sorted(calls, key=lambda call: call.view != CLEAN):
        for argument, key in rows_of(wiring, call).items():
            if isinstance(key, PortKey):
                found.setdefault(call.path, {}).setdefault(argument, key)
    return {path: tuple(rows.items()) for path, rows in found.items()}


def check_rows(wiring: Wiring, component: PlannedComponent, argument: str, key: PortKey, diagnostics: Diagnostics) -> None:
    """Rows of several micro-batches are put together: the first axis is the batch, and all others are the same in each."""
    provider = wiring.provider(key)
    axes = [wiring.symbol(provider.path, provider.call, provider.view, dim) for dim in provider.spec.dims]
    sizes = [wiring.table.size(axis) if isinstance(axis, Symbol) else axis for axis in axes]
    if not sizes or sizes[0] != BATCH:
        text = f"{component.label}: after names {argument}, and {key.name} ({provider.spec}) has no row for each record"
        diagnostics.add("MV202", text, at=component.position(), hint="its first axis must be the batch")
    for dim, size in zip(provider.spec.dims[1:], sizes[1:], strict=True):
        if isinstance(size, Axis):
            text = f"{component.label}: after names {argument}, and its axis {dim} has another length in every batch"
            diagnostics.add("MV202", text, at=component.position(), hint="hand on something of a fixed size, such as a mean")
