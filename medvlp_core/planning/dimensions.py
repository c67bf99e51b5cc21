"""Ties the dimensions of ports to those of the calls that take them, and checks the constraints on them. Light."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.after import check_rows, rows_of
from medvlp_core.planning.wiring import Call, PlannedComponent, PortKey, Wiring
from medvlp_core.spec.contract import (
    CLEAN,
    AtLeast,
    Axis,
    Constraint,
    Contract,
    Dim,
    Divides,
    Equal,
    Size,
    Symbol,
    TensorSpec,
)
from medvlp_core.spec.roles import Role


def tie(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
    """Unify the dimensions of every need of a call with those of the port that fills it."""
    component = wiring.components[call.path]
    contract = component.calls[call.name]
    view = call.view if component.opens is None else wiring.views[call.view].parent or CLEAN
    for argument, need in contract.needs.items():
        key = wiring.source(component, argument, need, view)
        if isinstance(key, PortKey):
            folded = (
                attrs.evolve(need, dims=(need.dims[0], str(component.each), *need.dims[1:])) if argument in call.folds else need
            )
            tie_need(wiring, component, call.name, call.view, folded, key, diagnostics)
    if component.each is not None and not call.folds and call.takes:
        text = f"{component.label}: each: {component.each}: nothing that {call} takes has a further axis behind the batch"
        diagnostics.add("MV202", text, at=component.position("each"), hint="re-point one of its needs, or take `each` out")
    for key in call.gives:
        provider = wiring.provider(key)
        place = 2 if call.folds else 1
        if provider.spec.layout == "dropped" and isinstance(
            symbol := wiring.symbol(call.path, call.name, call.view, provider.spec.dims[place]), Symbol
        ):
            wiring.table.bind(symbol, Axis(f"visible {key}", is_padded=False), call.path)


def check_masked(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
    """Whoever asks for an image encoder's tokens of a view with masked patches must not get those of the whole image (MV205)."""
    component = wiring.components[call.path]
    ports: dict[tuple[str, str, str], list[str]] = {}
    for argument, key in call.takes:
        at = wiring.asked_view(component, argument, component.calls[call.name].needs[argument])
        between = list(wiring.chain(at))[: list(wiring.chain(at)).index(key.view)] if at else ()
        if any(PortKey("image_is_masked", view) in wiring.batch for view in between):
            encoder = wiring.components.get(wiring.provider(key).path)
            if encoder is not None and encoder.role is Role.IMAGE_ENCODER:
                ports.setdefault((str(at), key.view, encoder.label), []).append(key.name)
    for (view, other, label), names in ports.items():
        text = f"{component.label} needs {', '.join(names)} in the {view} view, and {label} gives {'them' if names[1:] else 'it'}"
        text += f" only in the {other} view: it masks no patches"
        diagnostics.add("MV205", text, at=component.position(), hint="another image_encoder may give both views")


def tie_rows(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
    """The same for what the component gets after a step. Later, when it is known which axes are the batch."""
    component = wiring.components[call.path]
    for argument, key in rows_of(wiring, call).items():
        if isinstance(key, PortKey):
            row = component.calls[call.name].after[argument]
            tie_need(wiring, component, call.name, call.view, row, key, diagnostics)
            check_rows(wiring, component, argument, key, diagnostics)


def tie_need(
    wiring: Wiring, component: PlannedComponent, call: str, view: str, need: TensorSpec, key: PortKey, diagnostics: Diagnostics
) -> None:
    """Unify the dimensions of one need with those of the port that fills it; what cannot be equal is reported (MV202, MV204)."""
    provider = wiring.provider(key)
    label = wiring.components[provider.path].label if provider.path in wiring.components else provider.path
    if clash := _clash(need, provider.spec):
        text = f"{component.label}: {key.name} is {need} here, and {provider.spec} from {label}: {clash}"
        diagnostics.add("MV204" if "dimensions" not in clash else "MV202", text, at=component.position())
        return
    here = [wiring.symbol(component.path, call, view, dim) for dim in need.dims]
    there = [wiring.symbol(provider.path, provider.call, provider.view, dim) for dim in provider.spec.dims]
    left, right = [(component.path, dim) for dim in here], [(provider.path, dim) for dim in there]
    for conflict in wiring.table.unify_dims(left, right):
        text = (
            f"{component.label}: {key.name} is ({_row(wiring, need.dims, here)}) here, "
            f"and ({_row(wiring, provider.spec.dims, there)}) from {label}"
        )
        sizes = ((conflict.first, conflict.first_source), (conflict.second, conflict.second_source))
        details = [_origin(wiring, size, source) for size, source in sizes]
        hint = None
        if isinstance(conflict.first, int) and isinstance(conflict.second, int):
            low, high = sorted((conflict.first, conflict.second))
            hint = f"make both {low} or both {high}"
        diagnostics.add("MV202", text, at=component.position(), details=details, hint=hint)


def tie_sizes(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
    """What weights depend on is one number over all calls and views, and over all that share or follow them."""
    component = wiring.components[call.path]
    for name in sorted(component.calls[call.name].symbols() & set(component.sizes)):
        local, common = Symbol(call.path, name, f"{call.name}@{call.view}"), Symbol(component.like, name)
        size = wiring.table.size(local)
        if isinstance(size, Axis):
            # texts are as long as the longest of a batch; weights depend on the most that there may be
            source = wiring.table.source(local) or call.path
            conflict = None if size.bound is None else wiring.table.bind(common, size.bound, source)
        else:
            conflict = wiring.table.unify(common, local)
        if conflict:
            first, second = conflict.first, conflict.second
            text = f"{component.label}: its weights depend on {name}, which is {second} in {call} and {first} elsewhere"
            details = [_origin(wiring, first, conflict.first_source), _origin(wiring, second, conflict.second_source)]
            diagnostics.add("MV202", text, at=component.position(), details=details)


def check_sizes(wiring: Wiring, diagnostics: Diagnostics) -> None:
    """Every size that a builder gets is known, or will be told by the built component that gives the port (``dims()``)."""
    for component in wiring.components.values():
        if not component.role.info.is_module or component.like != component.path:
            continue
        named = {name for contract in component.calls.values() for name in contract.symbols()}
        for name in component.sizes:
            symbol = Symbol(component.path, name)
            if name not in named or wiring.table.value(symbol) is not None:
                continue
            if not any(_may_tell(wiring, one) for one in wiring.table.equal(symbol)):
                text = f"{component.label}: its weights depend on {name}, and nothing in this recipe fixes it"
                hint = "a component that gives a port with this dimension must be used, and declare it as a number or as a size"
                diagnostics.add("MV206", text, at=component.position(), hint=hint)


def _may_tell(wiring: Wiring, symbol: Symbol) -> bool:
    """Whether a symbol is a size of a component that gives a port with it: such a component tells the number once it is built."""
    component = wiring.components.get(symbol.owner)
    if component is None or (symbol.name not in component.sizes and component.role.info.is_module):
        return False
    contracts = [contract for name, contract in component.calls.items() if name != "fused"]
    gives = {spec.port: spec for contract in contracts for spec in contract.gives.values()}
    needs = [spec for contract in contracts for spec in contract.needs.values() if spec.port not in gives]  # not its own embeddings
    return any(symbol.name in spec.dims for spec in gives.values()) and not any(symbol.name in spec.dims for spec in needs)


def _clash(need: TensorSpec, give: TensorSpec) -> str | None:
    if need.dtype != give.dtype:
        return f"dtype {need.dtype} against {give.dtype}"
    if need.layout and give.layout and need.layout != give.layout:
        return f"masked tokens {need.layout} against {give.layout}"
    if len(need.dims) != len(give.dims):
        return f"{len(need.dims)} against {len(give.dims)} dimensions"
    return None


def _row(wiring: Wiring, dims: tuple[Dim, ...], symbols: Iterable[Symbol | int]) -> str:
    """``B L Dt=500``: the dims of a port with the numbers known so far."""

    def one(dim: Dim, symbol: Symbol | int) -> str:
        number = wiring.table.value(symbol) if isinstance(symbol, Symbol) else None
        return f"{dim}={number}" if number is not None else str(dim)

    return " ".join(one(dim, symbol) for dim, symbol in zip(dims, symbols, strict=True))


def _origin(wiring: Wiring, size: Size, owner: str) -> str:
    component = wiring.components.get(owner)
    what = f"the length of {size}" if isinstance(size, Axis) else str(size)
    return f"{what} comes from {component.name} ({component.position()})" if component else f"{what} comes from {owner}"


# --------------------------------------------------------------------------------------------------------------- constraints


def check_constraints(wiring: Wiring, component: PlannedComponent, diagnostics: Diagnostics) -> None:
    """Check the constraints of one component as far as its dimensions are known (MV203)."""
    for name, contract in component.calls.items():
        for view in wiring.views:
            for constraint in contract.require:
                _check_constraint(wiring, component, name, view, constraint, contract, diagnostics)


def _check_constraint(
    wiring: Wiring,
    component: PlannedComponent,
    call: str,
    view: str,
    constraint: Constraint,
    contract: Contract,
    diagnostics: Diagnostics,
) -> None:
    def symbol(dim: Dim) -> Symbol | int:
        return wiring.symbol(component.path, call, view, dim)

    fault = _constraint_fault(wiring, component, constraint, symbol)
    if fault is None:
        return
    text, names, hint = fault
    details = []
    for name in names:
        at = symbol(name)
        assert isinstance(at, Symbol)
        source, number = wiring.table.source(at), wiring.table.value(at)
        provider = wiring.components.get(source or "")
        if provider is not None and provider.path != component.path:
            details.append(f"{name}={number} comes from {provider.name} ({provider.position()})")
    position = component.position(constraint.field)
    if not any(one.text == f"{component.label}: {text}" and one.position == position for one in diagnostics.problems):
        diagnostics.add("MV203", f"{component.label}: {text}", at=position, details=details, hint=hint)


def _constraint_fault(
    wiring: Wiring, component: PlannedComponent, constraint: Constraint, symbol: Callable[[Dim], Symbol | int]
) -> tuple[str, list[str], str | None] | None:
    """``(text, symbols, hint)`` of a constraint that does not hold; None if it holds or is not decidable yet."""
    others = {Divides: "by", Equal: "to", AtLeast: "least"}
    other = getattr(constraint, others[type(constraint)]) if type(constraint) in others else None

    def number(dim: Dim | None) -> int | None:
        at = None if dim is None else symbol(dim)
        return wiring.table.value(at) if isinstance(at, Symbol) else at

    def is_field(dim: Dim | None) -> bool:
        return constraint.field is not None and getattr(component.spec, constraint.field, None) == dim

    def name(dim: Dim) -> str:
        return f"{constraint.field}={dim}" if is_field(dim) else str(dim)

    left, right = number(constraint.dim), number(other)
    if left is None or (other is not None and right is None):
        return None
    symbols = [dim for dim in (constraint.dim, other) if isinstance(dim, str)]
    known = " and ".join(f"{dim} is {number(dim)}" for dim in symbols)
    if isinstance(constraint, Divides):
        assert right is not None
        if left % right == 0:
            return None
        near = sorted(sorted((d for d in range(1, left + 1) if left % d == 0), key=lambda d: abs(d - right))[:3])
        choices = f"{', '.join(map(str, near[:-1]))} or {near[-1]}" if len(near) > 1 else str(near[0])
        what = f" {constraint.field}" if is_field(constraint.by) else ""
        hint = f"{choices}{what} divide{'s' if len(near) == 1 else ''} {left}"
        if isinstance(constraint.by, str):
            hint = f"{constraint.by} would have to be {choices}"
        return f"{name(constraint.by)} must divide {constraint.dim}, and {known}", symbols, hint
    if isinstance(constraint, Equal):
        return None if left == right else (f"{name(constraint.dim)} must equal {name(constraint.to)}, and {known}", symbols, None)
    if isinstance(constraint, AtLeast):
        assert right is not None
        if left >= right:
            return None
        larger = f"{constraint.what} ({constraint.dim})" if constraint.what else name(constraint.dim)
        return f"{larger} must be at least {name(constraint.least)}, and {known}", symbols, None
    if left in constraint.values:
        return None
    return f"{name(constraint.dim)} must be one of {', '.join(map(str, constraint.values))}, and {known}", symbols, None
