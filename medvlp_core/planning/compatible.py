"""Which installed components fit a slot of a recipe, and why the others do not. Light.

Nothing is guessed: each component is put into the slot as ``--use SLOT=NAME`` does, and the recipe is planned with it.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from medvlp_core.errors import Diagnostics, Position, Problem
from medvlp_core.planning.compose import compose
from medvlp_core.recipe.load import Node, Override, load_recipe
from medvlp_core.spec.component import ComponentSpec, params_of
from medvlp_core.spec.host import Host
from medvlp_core.spec.roles import HEADS, Role

#: No component can have this name. In a slot it makes what the slot gives unknown, so that only other slots are judged.
NOBODY = "?"


@attrs.frozen(kw_only=True)
class Fit:
    """What planning a recipe with one component in one slot says.

    ``path`` is the slot that was tried, ``present`` the slot in which the recipe has the component already, if any. ``needs`` are
    the parameters that have no default and are not given. ``errors`` are all errors, ``warnings`` those that the recipe does not
    have without the component.
    """

    name: str
    path: str
    present: str | None
    needs: tuple[str, ...]
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    @property
    def is_good(self) -> bool:
        """Whether the recipe can be planned with it."""
        return not self.errors


def compatible(source: str | Path, role: Role, host: Host, diagnostics: Diagnostics) -> list[Fit]:
    """Try every installed component of a role in its slot: instead of what is there, or added where a model has several.

    Errors of the recipe that have nothing to do with the slot go to ``diagnostics``; then nothing can be said, and the list is
    empty.

    Example:
        >>> from medvlp_core.plugins.host import load_plugins
        >>> found = compatible("mpma:small", Role.FUSION, load_plugins(), Diagnostics())
        >>> "standard.no_fusion" in [fit.name for fit in found if fit.is_good]
        True
    """
    recipe, plain = _plan(source, host)
    base, is_many = role.info.base, role.info.is_many
    fits = []
    for name, kind in host.components.of_role(role).items():
        path = f"{base}.{_free_name(recipe, role, name)}" if is_many else base
        fits.append(_try(source, path, name, kind, host, plain, _present(recipe, base, name, is_many=is_many)))
    if is_many:
        others = [fit.errors for fit in fits if not _is_broken(fit)]
    else:
        others = [tuple(_plan(source, host, _use(base, NOBODY))[1].errors)]
    for problem in plain.errors:
        if all(_place(problem) in map(_place, errors) for errors in others):
            diagnostics.problems.append(problem)
    return [] if diagnostics.has_errors else fits


def _is_broken(fit: Fit) -> bool:
    """Whether its parameters are wrong: then some of what concerns others is left unsaid, and missing complaints say nothing."""
    at = Position(_use(fit.path, fit.name).text)
    return any(problem.position == at and problem.code.startswith("MV1") for problem in fit.errors)


def _try(
    source: str | Path, path: str, name: str, kind: type[ComponentSpec], host: Host, plain: Diagnostics, present: str | None
) -> Fit:
    diagnostics = _plan(source, host, _use(path, name))[1]
    needs = [] if present == path else [param.name for param in params_of(kind) if param.is_required]
    return Fit(
        name=name,
        path=path,
        present=present,
        needs=tuple(needs),
        errors=tuple(diagnostics.errors),
        warnings=tuple(problem for problem in diagnostics.warnings if problem not in plain.warnings),
    )


def _plan(source: str | Path, host: Host, *overrides: Override) -> tuple[Node, Diagnostics]:
    diagnostics = Diagnostics()
    recipe = load_recipe(source, presets=host.presets, overrides=overrides, diagnostics=diagnostics, install_hint=host.install_hint)
    compose(recipe, host, diagnostics)
    return recipe, diagnostics


def _use(path: str, name: str) -> Override:
    return Override("use", path, name, f"--use {path}={name}")


def _place(problem: Problem) -> tuple[str, Position | None]:
    """What makes a problem the same one in another plan; its text may count components."""
    return problem.code, problem.position


def _children(recipe: Node, base: str) -> dict[str, Node]:
    node = recipe.get(base)
    return node.value if node is not None and isinstance(node.value, dict) else {}


def _free_name(recipe: Node, role: Role, name: str) -> str:
    """A slot name for an added component: its noun phrase, with a number if that is taken."""
    bases = [one.info.base for one in (HEADS if role in HEADS else (role,))]
    taken = {key for base in bases for key in _children(recipe, base)}
    noun = name.partition(".")[2]
    numbered = (f"{noun}_{number}" for number in range(2, len(taken) + 3))
    return noun if noun not in taken else next(one for one in numbered if one not in taken)


def _present(recipe: Node, base: str, name: str, *, is_many: bool) -> str | None:
    """The slot in which the recipe has a component already, or None."""
    paths = [f"{base}.{key}" for key in _children(recipe, base)] if is_many else [base]
    uses = {path: recipe.get(f"{path}.use") for path in paths}
    return next((path for path, use in uses.items() if use is not None and use.value == name), None)
