"""Says what a recipe lacks: ports that nobody gives, views that nobody opens, names with two meanings. Light."""

from __future__ import annotations

from collections.abc import Iterable

from medvlp_core.errors import Diagnostics, did_you_mean
from medvlp_core.planning.wiring import Missing, PlannedComponent, PortKey, Wiring
from medvlp_core.spec.contract import (
    CLEAN,
    PORTS,
)
from medvlp_core.spec.roles import ROLES, Role


def _named_views(component: PlannedComponent) -> dict[str, str]:
    """The views that a block of the recipe names, by where it does: ``views.masked``, ``needs.image_tokens``."""
    of_needs = {f"needs.{argument}": reference.partition("@")[2] for argument, reference in component.needs.items()}
    named = {**{f"views.{formal}": name for formal, name in component.views.items()}, **of_needs}
    return {place: component.views.get(name, name) for place, name in named.items() if name}


def check_named_views(wiring: Wiring, diagnostics: Diagnostics) -> None:
    """Complain of views that a recipe names and no masking opens (MV205)."""
    for component in wiring.components.values() if Role.MASKING not in wiring.broken_roles else ():
        for place, name in _named_views(component).items():
            if name not in wiring.views and wiring.bound_view(component, name) is None:
                hint = f"views of this recipe: {', '.join(wiring.views)}"
                diagnostics.add(
                    "MV205", f"{component.label}: {place}: there is no view {name!r}", at=component.position(place), hint=hint
                )


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
