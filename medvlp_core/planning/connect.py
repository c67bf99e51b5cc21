"""Connects a recipe's components: ties needs to providers, unifies dimensions, checks constraints, says what fails. Light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from medvlp_core.errors import Diagnostics, did_you_mean
from medvlp_core.planning.wiring import INPUT_PORTS, INPUTS, TEXT_ENCODER, VIEWS, PlannedComponent, PortKey, Provider, Wiring
from medvlp_core.spec.contract import PORTS, AtLeast, Constraint, Dim, Divides, Equal, Symbol, TensorSpec, View
from medvlp_core.spec.roles import ROLES, Role, Stage


def connect(
    components: Mapping[str, PlannedComponent],
    broken_roles: frozenset[Role],
    heads: Iterable[PlannedComponent],
    diagnostics: Diagnostics,
) -> Wiring:
    """Tie all ports, unify all dimensions, check all constraints; every problem goes to ``diagnostics``."""
    wiring = Wiring(components, broken_roles=broken_roles)
    _register_providers(wiring, diagnostics)
    used_views = _used_views(wiring, heads)
    absent: dict[Role, list[tuple[PlannedComponent, list[str]]]] = {}
    for component in components.values():
        if component.role is Role.EVALUATOR:
            continue
        is_viewed = component.role.info.runs_in_views
        views: list[View | None] = [*sorted(used_views.get(component.path, {"clean"}))] if is_viewed else [None]
        missing = [need for view in views for need in _tie(wiring, component, view, diagnostics)]
        for role, ports in _report_missing(wiring, component, list(dict.fromkeys(missing)), diagnostics).items():
            absent.setdefault(role, []).append((component, ports))
    _report_absent(absent, diagnostics)
    for component in components.values():
        check_constraints(wiring, component, diagnostics)
    return wiring


def _register_providers(wiring: Wiring, diagnostics: Diagnostics) -> None:
    has_masking = any(one.role is Role.MASKING for one in wiring.components.values()) or Role.MASKING in wiring.broken_roles
    for port, spec in INPUT_PORTS.items():
        wiring.providers[port, None] = Provider(INPUTS, spec, "batch")
    for component in wiring.components.values():
        for spec in component.contract.gives.values():
            _register(wiring, component, spec, VIEWS if has_masking else VIEWS[:1], diagnostics)
    text, early = wiring.components.get(TEXT_ENCODER), [key for key in wiring.providers if key[0] == "fused_text_embeddings"]
    if text is not None:
        tokens = next((spec for spec in text.contract.gives.values() if spec.port == "text_tokens"), None)
        for _, view in early if tokens else ():
            assert tokens is not None
            spec = attrs.evolve(tokens, port="fused_text_tokens")
            wiring.providers["fused_text_tokens", view] = Provider(TEXT_ENCODER, spec, "encode_fused")


def _register(
    wiring: Wiring, component: PlannedComponent, spec: TensorSpec, views: tuple[View, ...], diagnostics: Diagnostics
) -> None:
    assert spec.port is not None
    stage: Stage = "static" if spec.dtype == "shape" else component.role.info.stage_of(spec.port)
    keys: list[PortKey] = [(spec.port, spec.view)]
    if component.role.info.runs_in_views and spec.dtype != "shape":
        keys = [(spec.port, view) for view in views if spec.view in (None, view)]
    for key in keys:
        known = wiring.providers.get(key)
        if known is None:
            wiring.providers[key] = Provider(component.path, spec, stage)
        elif stage != "head" and known.path != component.path:
            other = wiring.components[known.path].label if known.path in wiring.components else known.path
            text = f"{component.label}: port {spec.port} is already given by {other}"
            diagnostics.add("MV209", text, at=component.position(), hint="remove one of the two, or give the port another name")


def _used_views(wiring: Wiring, heads: Iterable[PlannedComponent]) -> dict[str, set[View]]:
    """In which views each viewed component runs: those that the heads lead to, and clean (for later use of the encoders)."""
    used: dict[str, set[View]] = {}
    for head in heads:
        try:
            steps = wiring.route(key for _, key in wiring.takes(head.path))
        except RecursionError:
            continue
        for step in steps:
            if step.view:
                used.setdefault(step.path, {"clean"}).add(step.view)
    return used


def _tie(wiring: Wiring, component: PlannedComponent, view: View | None, diagnostics: Diagnostics) -> list[tuple[str, View]]:
    """Find the provider of each need in one pass and unify the dimensions; returns the ports that nobody gives."""
    missing: list[tuple[str, View]] = []
    for argument, need in component.contract.needs.items():
        port = need.port or argument
        wanted = wiring.wanted_view(component, need, view)
        key = wiring.find(port, wanted)
        if key is None:
            if not need.is_optional:
                missing.append((port, wanted))
            continue
        provider = wiring.providers[key]
        label = wiring.components[provider.path].label if provider.path in wiring.components else provider.path
        clash = _clash(need, provider.spec)
        if clash:
            text = f"{component.label}: {port} is {need} here, and {provider.spec} from {label}: {clash}"
            diagnostics.add("MV204" if "dimensions" not in clash else "MV202", text, at=component.position())
            continue
        left = [(component.path, dim) for dim in need.dims]
        right = [(provider.path, dim) for dim in provider.spec.dims]
        if component.role.info.runs_in_views and provider.spec.layout == "dropped":
            # The number of tokens differs between the passes of one component, so it is no dimension of the component.
            del left[1], right[1]
        for conflict in wiring.table.unify_dims(left, right):
            numbers = sorted({conflict.first, conflict.second})
            text = (
                f"{component.label}: {port} is ({_row(wiring, component.path, need.dims)}) here, "
                f"and ({_row(wiring, provider.path, provider.spec.dims)}) from {label}"
            )
            facts = ((conflict.first, conflict.first_source), (conflict.second, conflict.second_source))
            details = [_origin(wiring, number, str(source)) for number, source in facts]
            hint = f"make both {numbers[0]} or both {numbers[1]}"
            diagnostics.add("MV202", text, at=component.position(), details=details, hint=hint)
    return missing


def _clash(need: TensorSpec, give: TensorSpec) -> str | None:
    if need.dtype != give.dtype:
        return f"dtype {need.dtype} against {give.dtype}"
    if need.layout and give.layout and need.layout != give.layout:
        return f"masked tokens {need.layout} against {give.layout}"
    if len(need.dims) != len(give.dims):
        return f"{len(need.dims)} against {len(give.dims)} dimensions"
    return None


def _row(wiring: Wiring, owner: str, dims: tuple[Dim, ...]) -> str:
    """``B L Dt=500``: the dims of a port with the numbers known so far."""

    def one(dim: Dim) -> str:
        number = wiring.table.value(Symbol(owner, dim)) if isinstance(dim, str) else None
        return f"{dim}={number}" if number is not None else str(dim)

    return " ".join(one(dim) for dim in dims)


def _origin(wiring: Wiring, number: int, owner: str) -> str:
    component = wiring.components.get(owner)
    return f"{number} comes from {component.name} ({component.position()})" if component else f"{number} comes from {owner}"


def _giving_role(port: str, view: View) -> Role | None:
    """The role that gives a port by convention; token ids of the masked view come from the masking."""
    roles = sorted((role for role, info in ROLES.items() if port in info.ports), key=lambda role: port in role.info.leads_to)
    if Role.MASKING in roles and view == "masked":
        return Role.MASKING
    return next(iter(roles), None)


def _report_missing(
    wiring: Wiring, component: PlannedComponent, missing: list[tuple[str, View]], diagnostics: Diagnostics
) -> dict[Role, list[str]]:
    """Report ports that are there only in the other view or not at all; returns those whose whole role is absent, by role."""
    present = {one.role for one in wiring.components.values()}
    absent: dict[Role, list[str]] = {}
    for port, view in missing:
        role = _giving_role(port, view)
        may_come = any(port in broken.info.ports for broken in wiring.broken_roles)
        if may_come or (wiring.broken_roles and role is None):
            continue
        if role is not None and role not in present:
            absent.setdefault(role, []).append(port)
        elif view == "masked" and Role.MASKING not in present:
            absent.setdefault(Role.MASKING, []).append(f"{port} in the masked view")
        elif any(name == port for name, _ in wiring.providers):
            other = "masked" if view == "clean" else "clean"
            text = f"{component.label} needs {port} in the {view} view, and the model gives it only in the {other} view"
            hint = f"another {role} may give both views" if role else None
            diagnostics.add("MV205", text, at=component.position(), hint=hint)
        else:
            hint = f"not every {role} gives it; `medvlp show NAME` tells" if role else None
            hint = hint or did_you_mean(port, {name for name, _ in wiring.providers} | set(PORTS), what="ports")
            diagnostics.add(
                "MV201", f"{component.label} needs {port}, and no component gives it", at=component.position(), hint=hint
            )
    return absent


def _report_absent(absent: dict[Role, list[tuple[PlannedComponent, list[str]]]], diagnostics: Diagnostics) -> None:
    """One message for each role that the recipe leaves empty although components need it."""
    for role, needs in absent.items():
        details = [f"{component.label} needs {', '.join(dict.fromkeys(ports))}" for component, ports in needs]
        text = f"the recipe has no {role}, and {len(needs)} component{'s need' if len(needs) > 1 else ' needs'} it"
        diagnostics.add("MV201", text, at=needs[0][0].position(), details=details, hint=f"put one at {role.info.slot}")


def check_constraints(wiring: Wiring, component: PlannedComponent, diagnostics: Diagnostics) -> None:
    """Check the constraints of one component as far as its dimensions are known (MV203)."""
    for constraint in component.contract.require:
        fault = _constraint_fault(wiring, component, constraint)
        if fault is None:
            continue
        text, symbols, hint = fault
        details = []
        for name in symbols:
            symbol = Symbol(component.path, name)
            source, number = wiring.table.source(symbol), wiring.table.value(symbol)
            provider = wiring.components.get(source or "")
            if provider is not None and provider.path != component.path:
                details.append(f"{name}={number} comes from {provider.name} ({provider.position()})")
        at = component.position(constraint.field)
        diagnostics.add("MV203", f"{component.label}: {text}", at=at, details=details, hint=hint)


def _constraint_fault(
    wiring: Wiring, component: PlannedComponent, constraint: Constraint
) -> tuple[str, list[str], str | None] | None:
    """``(text, symbols, hint)`` of a constraint that does not hold; None if it holds or is not decidable yet."""
    others = {Divides: "by", Equal: "to", AtLeast: "least"}
    other = getattr(constraint, others[type(constraint)]) if type(constraint) in others else None

    def number(dim: Dim | None) -> int | None:
        return wiring.table.value(Symbol(component.path, dim)) if isinstance(dim, str) else dim

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
