"""Connects a recipe's components: ties needs to calls, unifies dimensions, checks constraints, says what fails. Light."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs

from medvlp_core.errors import Diagnostics, did_you_mean
from medvlp_core.planning.after import calls_for_rows, check_rows, rows_of
from medvlp_core.planning.fields import check_absence, check_sizes_of_fields, register_fields
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
    PORTS,
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
from medvlp_core.spec.roles import ROLES, Role


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
    _check_named_views(wiring, diagnostics)
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
        _tie(wiring, call, diagnostics)
        _check_masked(wiring, call, diagnostics)
    for call in calls:
        _tie_rows(wiring, call, diagnostics)
    for component, need, key in _evaluator_needs(wiring):
        _tie_need(wiring, component, "forward", CLEAN, need, key, diagnostics)
    for call in dict.fromkeys((*calls, *others)):
        _tie_sizes(wiring, call, diagnostics)
    check_absence(wiring, calls, diagnostics)
    check_sight(wiring, dict.fromkeys((*calls, *others)), diagnostics)
    if not diagnostics.has_errors:
        _check_sizes(wiring, diagnostics)
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


def _named_views(component: PlannedComponent) -> dict[str, str]:
    """The views that a block of the recipe names, by where it does: ``views.masked``, ``needs.image_tokens``."""
    of_needs = {f"needs.{argument}": reference.partition("@")[2] for argument, reference in component.needs.items()}
    named = {**{f"views.{formal}": name for formal, name in component.views.items()}, **of_needs}
    return {place: component.views.get(name, name) for place, name in named.items() if name}


def _check_named_views(wiring: Wiring, diagnostics: Diagnostics) -> None:
    """Complain of views that a recipe names and no masking opens (MV205)."""
    for component in wiring.components.values() if Role.MASKING not in wiring.broken_roles else ():
        for place, name in _named_views(component).items():
            if name not in wiring.views and wiring.bound_view(component, name) is None:
                hint = f"views of this recipe: {', '.join(wiring.views)}"
                diagnostics.add(
                    "MV205", f"{component.label}: {place}: there is no view {name!r}", at=component.position(place), hint=hint
                )


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


# --------------------------------------------------------------------------------------------------------------- dimensions


def _tie(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
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
            _tie_need(wiring, component, call.name, call.view, folded, key, diagnostics)
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


def _check_masked(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
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


def _tie_rows(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
    """The same for what the component gets after a step. Later, when it is known which axes are the batch."""
    component = wiring.components[call.path]
    for argument, key in rows_of(wiring, call).items():
        if isinstance(key, PortKey):
            row = component.calls[call.name].after[argument]
            _tie_need(wiring, component, call.name, call.view, row, key, diagnostics)
            check_rows(wiring, component, argument, key, diagnostics)


def _tie_need(
    wiring: Wiring, component: PlannedComponent, call: str, view: str, need: TensorSpec, key: PortKey, diagnostics: Diagnostics
) -> None:
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


def _tie_sizes(wiring: Wiring, call: Call, diagnostics: Diagnostics) -> None:
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


def _check_sizes(wiring: Wiring, diagnostics: Diagnostics) -> None:
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


# ---------------------------------------------------------------------------------------------------------------- what lacks


def _giving_role(port: str, view: str) -> Role | None:
    """The role that gives a port by convention; token ids of a masked view come from the masking."""
    roles = sorted((role for role, info in ROLES.items() if port in info.ports), key=lambda role: port in role.info.leads_to)
    if Role.MASKING in roles and view != CLEAN:
        return Role.MASKING
    return next(iter(roles), None)


def report_missing(wiring: Wiring, missing: Iterable[Missing], diagnostics: Diagnostics) -> None:
    """Report every need at the bottom of what is missing, once; those whose whole role is absent in one message for the role."""
    absent: dict[Role, dict[str, list[str]]] = {}
    unopened: dict[tuple[str, str], list[str]] = {}
    opened = [view.name for view in wiring.views.values() if view.opener is not None]
    present = {one.role for one in wiring.components.values()}
    roots = dict.fromkeys(root for one in missing for root in one.roots())
    for one in sorted(roots, key=lambda root: list(wiring.components).index(root.path)):
        port, role = one.port.rpartition(".")[2], _giving_role(one.port.rpartition(".")[2], one.view)
        component = wiring.components[one.path]
        may_come = any(port in broken.info.ports for broken in wiring.broken_roles)
        if may_come or (wiring.broken_roles and role is None):
            continue
        if one.candidates:
            text = f"{component.label} needs {one.port}, and several components give it: {', '.join(one.candidates)}"
            argument = next((key for key, need in component.needs_by_argument.items() if (need.port or key) == one.port), port)
            hint = f"say which one it means: `needs: {{{argument}: {one.candidates[0]}}}`"
            diagnostics.add("MV209", text, at=component.position(), hint=hint)
        elif one.view not in wiring.views and one.view in _named_views(component).values():
            continue  # reported where it is named
        elif one.view not in wiring.views and opened:
            unopened.setdefault((one.path, one.view), []).append(port)
        elif one.view not in wiring.views:
            where = "" if role is Role.MASKING and port not in Role.TOKENIZER.info.ports else f" in the {one.view} view"
            absent.setdefault(Role.MASKING, {}).setdefault(one.path, []).append(port + where)
        elif "." in one.port:
            names = [f"{path.rpartition('.')[2]}.{name}" for name, calls in wiring.declared.items() for path, _ in calls]
            text = f"{component.label} needs {one.port}, and no component gives it"
            place = next((key for key, found in component.needs.items() if found.partition("@")[0] == one.port), None)
            at = component.position(None if place is None else f"needs.{place}")
            diagnostics.add("MV201", text, at=at, hint=did_you_mean(one.port, names, what="full names"))
        elif role is not None and role not in present:
            absent.setdefault(role, {}).setdefault(one.path, []).append(port)
        elif others := [key.view for key in wiring.batch if key.name == port]:
            text = f"{component.label} needs {port} in the {one.view} view, and the model gives it only in the {others[0]} view"
            diagnostics.add("MV205", text, at=component.position(), hint=f"another {role} may give both views" if role else None)
        else:
            near = f"not every {role} gives it; `medvlp show NAME` tells" if role else None
            known = {key.name for key in (*wiring.batch, *wiring.shapes)} | set(wiring.declared) | set(PORTS)
            near = near or did_you_mean(port, known, what="ports")
            text = f"{component.label} needs {port}, and no component gives it"
            diagnostics.add("MV201", text, at=component.position(), hint=near)
    for (path, view), ports in unopened.items():
        component = wiring.components[path]
        text = f"{component.label} needs {', '.join(dict.fromkeys(ports))} in the {view} view, and no masking here opens it"
        hint = f"say which view it means: `views: {{{view}: {opened[0]}}}`; views of this recipe: {', '.join(wiring.views)}"
        diagnostics.add("MV205", text, at=component.position(), hint=hint)
    for role, needs in absent.items():
        details = [f"{wiring.components[path].label} needs {', '.join(dict.fromkeys(ports))}" for path, ports in needs.items()]
        text = f"the recipe has no {role}, and {len(needs)} component{'s need' if len(needs) > 1 else ' needs'} it"
        at = wiring.components[next(iter(needs))].position()
        diagnostics.add("MV201", text, at=at, details=details, hint=f"put one at {role.info.slot}")


def why_missing(wiring: Wiring, missing: Iterable[Missing]) -> str:
    """``word_logits``, or ``word_logits (text_is_masked @masked of model.decoders.mlm is missing)``: for one line."""
    parts = []
    for one in missing:
        if one.candidates:
            parts.append(f"{one.port}, which several components give ({', '.join(one.candidates)})")
            continue
        roots = [root for root in one.roots() if root is not one]
        why = ", ".join(f"{wiring.components[root.path].label} lacks {PortKey(root.port, root.view)}" for root in roots)
        parts.append(str(PortKey(one.port, one.view)) + (f" ({why})" if why else ""))
    return ", ".join(dict.fromkeys(parts))


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
