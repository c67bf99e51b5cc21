"""Connects a recipe's components: who gives what in which view, and the calls of a training step. Light."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.after import calls_for_rows
from medvlp_core.planning.dimensions import check_constraints, check_masked, check_sizes, tie, tie_need, tie_rows, tie_sizes
from medvlp_core.planning.fields import check_absence, check_sizes_of_fields, register_fields
from medvlp_core.planning.missing import check_named_views, report_missing
from medvlp_core.planning.sees import check_sight
from medvlp_core.planning.wiring import (
    BATCH,
    TEXT_LENGTH,
    Call,
    Circle,
    Missing,
    PlannedComponent,
    PortKey,
    Provider,
    View,
    Wiring,
)
from medvlp_core.recipe.load import Node
from medvlp_core.spec.blocks import InputSpec
from medvlp_core.spec.contract import (
    CLEAN,
    Axis,
    Symbol,
    TensorSpec,
)
from medvlp_core.spec.roles import Role


def connect(
    components: Mapping[str, PlannedComponent],
    broken_roles: frozenset[Role],
    inputs: InputSpec | None,
    recipe: Node,
    diagnostics: Diagnostics,
) -> tuple[Wiring, tuple[Call, ...]]:
    """Tie all ports, unify all dimensions, check all constraints; every problem goes to ``diagnostics``.

    Returns the wiring and the calls of a training step: first what the heads need, then the heads themselves.
    """
    wiring = Wiring(components, _views(components, broken_roles, inputs, diagnostics), broken_roles=broken_roles)
    check_named_views(wiring, diagnostics)
    register_fields(wiring, inputs, recipe, diagnostics)
    _register(wiring, diagnostics)
    try:
        needed, missing = _training_calls(wiring)
        calls = calls_for_rows(wiring, needed, diagnostics)
        offers, lacking = _offers(wiring)
        report_missing(wiring, (*missing, *lacking), diagnostics)
        others = (*offers, *wiring.route(key for _, _, key in _evaluator_needs(wiring)))
    except Circle as circle:
        within = [components[path] for path, _ in circle.calls]
        at = next((one for one in within if one.needs), within[0])
        hint = "re-point one of their needs: `needs: {ARGUMENT: SLOT.PORT}`"
        diagnostics.add("MV201", f"components wait for each other: {circle}", at=at.position("needs"), hint=hint)
        return wiring, ()
    for call in dict.fromkeys((*calls, *others)):
        tie(wiring, call, diagnostics)
        check_masked(wiring, call, diagnostics)
    for call in calls:
        tie_rows(wiring, call, diagnostics)
    for component, need, key in _evaluator_needs(wiring):
        tie_need(wiring, component, "forward", CLEAN, need, key, diagnostics)
    for call in dict.fromkeys((*calls, *others)):
        tie_sizes(wiring, call, diagnostics)
    check_absence(wiring, calls, diagnostics)
    check_sight(wiring, dict.fromkeys((*calls, *others)), diagnostics)
    if not diagnostics.has_errors:
        check_sizes(wiring, diagnostics)
        check_sizes_of_fields(wiring, (key for call in calls for _, key in call.takes), diagnostics)
    for component in components.values():
        check_constraints(wiring, component, diagnostics)
    return wiring, calls


# ------------------------------------------------------------------------------------------------------------- who gives what


def _views(
    components: Mapping[str, PlannedComponent], broken_roles: frozenset[Role], inputs: InputSpec | None, diagnostics: Diagnostics
) -> dict[str, View]:
    """The views by name, parents first. A view that is made from none that exists is reported, and made from the clean one."""
    further = inputs.views if inputs is not None and inputs.views is not None else {}
    views = {CLEAN: View(CLEAN)} | {name: View(name, CLEAN) for name in further}
    openers = {one.opens: one for one in components.values() if one.opens is not None}
    pending = dict(openers)
    while pending:
        ready = {name: one for name, one in pending.items() if one.of in views}
        for name, one in ready.items():
            views[name] = View(name, one.of, one.path)
            del pending[name]
        if not ready:
            for name, one in pending.items():
                text = f"{one.label}: of: there is no view {one.of!r}"
                if one.of in pending:
                    text = f"{one.label}: of: the views {' and '.join(map(repr, pending))} are made from each other"
                hint = f"views of this recipe: {', '.join((*views, *pending))}"
                diagnostics.add("MV205", text, at=one.position("of"), hint=hint)
                views[name] = View(name, CLEAN, one.path)
            break
    if Role.MASKING in broken_roles:
        views.setdefault("masked", View("masked", CLEAN))
    return views


def _register(wiring: Wiring, diagnostics: Diagnostics) -> None:
    contracts = [contract for component in wiring.components.values() for contract in component.calls.values()]
    has_early_fusion = any(spec.port == "fused_text_embeddings" for one in contracts for spec in one.gives.values())
    for component in wiring.components.values():
        for name, contract in component.calls.items() if component.role is not Role.DATA else ():
            if name == "fused" and not has_early_fusion:  # the core's own offer: nobody should read that it lacks something
                continue
            for spec in contract.gives.values():
                _register_port(wiring, component, name, spec, diagnostics)


def _register_port(wiring: Wiring, component: PlannedComponent, call: str, spec: TensorSpec, diagnostics: Diagnostics) -> None:
    port = str(spec.port)
    if component.role is Role.DATA:  # records hold an image and a text; the input pipeline makes nothing else of them
        return
    if component.role is Role.TOKENIZER and spec.dtype != "shape" and len(spec.dims) > 1 and isinstance(spec.dims[1], int):
        # the length of a batch's texts is no number: it is as long as the longest, and at most this
        wiring.table.bind(Symbol(component.path, TEXT_LENGTH), Axis("text", spec.dims[1]), component.path)
        spec = attrs.evolve(spec, dims=(spec.dims[0], TEXT_LENGTH, *spec.dims[2:]))
    key = PortKey(port, component.opens or CLEAN)
    if spec.dtype == "shape":
        wiring.shapes[PortKey(f"{component.slot}.{port}")] = Provider(component.path, call, spec)
    elif component.role.info.is_module and component.opens is None:
        if known := wiring.batch.get(PortKey(port)):
            _complain_of_two(wiring, component, port, known.path, diagnostics)
        elif (component.path, call) not in (declared := wiring.declared.setdefault(port, [])):
            declared.append((component.path, call))
    elif known := wiring.batch.get(key):
        _complain_of_two(wiring, component, port, known.path, diagnostics)
    else:
        wiring.batch[key] = Provider(component.path, call, spec, key.view)
        if component.opens is None:
            symbol = wiring.symbol(component.path, call, CLEAN, spec.dims[0]) if spec.dims else None
            if isinstance(symbol, Symbol):
                wiring.table.bind(symbol, BATCH, component.path)


def _complain_of_two(wiring: Wiring, component: PlannedComponent, port: str, path: str, diagnostics: Diagnostics) -> None:
    other = wiring.components[path].label if path in wiring.components else path
    text = f"{component.label}: port {port} is already given by {other}"
    diagnostics.add("MV209", text, at=component.position(), hint="remove one of the two, or give the port another name")


def _training_calls(wiring: Wiring) -> tuple[tuple[Call, ...], list[Missing]]:
    """The calls that losses lead to, then the calls that give them; and what they lack."""
    heads: list[Call] = []
    missing: list[Missing] = []
    for component in wiring.components.values():
        for name, contract in component.calls.items():
            if contract.losses:
                found = wiring.call(component.path, name)
                if isinstance(found, Call):
                    heads.append(found)
                else:
                    missing += found
    before = wiring.route(key for head in heads for _, key in head.takes)
    return tuple(dict.fromkeys((*before, *heads))), missing


def _offers(wiring: Wiring) -> tuple[list[Call], list[Missing]]:
    """Every offer that can be fed with whole inputs: what a trained model is used for; and what a component without any lacks."""
    offers: list[Call] = []
    missing: list[Missing] = []
    for component in wiring.components.values():
        if not component.role.info.is_module:
            continue
        calls = {name: wiring.call(component.path, name) for name in component.calls}
        found = [call for call in calls.values() if isinstance(call, Call)]
        offers += [one for call in found for one in (*wiring.route(key for _, key in call.takes), call)]
        # nobody has asked for `fused`, the core's own, so that nobody should read that it lacks something
        lacking = [one for name, call in calls.items() if name != "fused" and not isinstance(call, Call) for one in call]
        # what losses lack is reported already, and an encoder that needs a mask is offered in views with one alone
        if not found and not component.losses and not _runs_in_a_view(wiring, component):
            missing += lacking
        # an offer that cannot be fed does not exist; but a name with two meanings is a slip, wherever it stands
        missing += [root for one in lacking for root in one.roots() if root.candidates]
    return offers, missing


def _runs_in_a_view(wiring: Wiring, component: PlannedComponent) -> bool:
    return any(isinstance(wiring.call(component.path, name, view), Call) for name in component.calls for view in wiring.views)


def _evaluator_needs(wiring: Wiring) -> Iterable[tuple[PlannedComponent, TensorSpec, PortKey]]:
    """What evaluators look at, as far as this model gives it."""
    for component in wiring.components.values():
        for contract in component.calls.values() if component.role is Role.EVALUATOR else ():
            for argument, need in contract.needs.items():
                key = wiring.source(component, argument, need, CLEAN)
                if isinstance(key, PortKey):
                    yield component, need, key
