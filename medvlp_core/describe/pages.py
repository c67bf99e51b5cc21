"""Reference pages in Markdown, made from what is registered: components with their parameters and ports. Light.

``docs/components.md`` comes from here (a test compares); ``medvlp docs`` prints it for any bundle.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Sequence

import attrs

from medvlp_core.describe.wording import constraint_text, default_text, range_text
from medvlp_core.plugins.registry import ComponentRegistry
from medvlp_core.spec.component import ComponentSpec, Param, calls_of, params_of
from medvlp_core.spec.contract import Constraint, Contract, Dim, TensorSpec
from medvlp_core.spec.roles import Role


def components_text(registry: ComponentRegistry, names: Collection[str]) -> str:
    """A section for each role with an overview, and one for each component.

    Example:
        >>> components_text(ComponentRegistry(), ())
        ''
    """
    parts = []
    for role in Role:
        found = {name: kind for name, kind in registry.of_role(role).items() if name in names}
        if not found:
            continue
        rows = [(_link(name), _source(registry, name), _first_line(kind)) for name, kind in found.items()]
        parts += [f"## {role}", f"In a recipe: `{role.info.slot.replace('*', 'NAME')}`.", _table(("component", "from", ""), rows)]
        for name, kind in found.items():
            parts += _component(registry, name, kind)
    return "\n\n".join(parts) + "\n" if parts else ""


# ----------------------------------------------------------------------------------------------------------------- components


def _component(registry: ComponentRegistry, name: str, kind: type[ComponentSpec]) -> list[str]:
    params = params_of(kind)
    parts = [f"### {name}", inspect.cleandoc(kind.__doc__ or "")]
    if kind.declaration.deprecated:
        parts.append(f"**Deprecated**: {kind.declaration.deprecated}.")
    if params:
        rows = [(f"`{param.name}`", param.type_name, _default(param), range_text(param), _help(param)) for param in params]
        parts.append(_table(("parameter", "type", "default", "range", ""), rows))
    else:
        parts.append("No parameters.")
    used = _contract(kind)
    if used:
        parts.append(_table(("", "port", "shape", ""), [(one.way, f"`{one.port}`", f"`{one.shape}`", one.note) for one in used]))
    facts = [f"* Requires: {text}." for text in _constraints(kind)]
    if losses := dict.fromkeys(
        f"`{term}`" for example in kind.examples() for one in _calls(example).values() for term in one.losses
    ):
        facts.append(f"* Losses: {', '.join(losses)}.")
    return [*parts, "\n".join(facts)] if facts else parts


def _default(param: Param) -> str:
    return "required" if param.is_required else f"`{default_text(param).removeprefix('= ')}`"


def _help(param: Param) -> str:
    return f"{param.rules.help} (deprecated: {param.rules.deprecated})" if param.rules.deprecated else param.rules.help


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0]


def _source(registry: ComponentRegistry, name: str) -> str:
    """The distribution without its version: a page does not change with every release."""
    return registry.distribution(name).partition(" ")[0]


# ------------------------------------------------------------------------------------------------------------------ contracts


@attrs.frozen
class _Use:
    """One port of a component, over all its examples."""

    way: str
    port: str
    shape: str
    note: str


def _contract(kind: type[ComponentSpec]) -> list[_Use]:
    """The ports that the examples of a component need and give; a number that a parameter sets stands as its name."""
    examples = list(kind.examples())
    found: dict[tuple[str, str, str, str], list[tuple[ComponentSpec, TensorSpec]]] = {}
    for example in examples:
        for call, contract in _calls(example).items():
            for way, ports in (("needs", contract.needs), ("gives", contract.gives)):
                for argument, spec in ports.items():
                    found.setdefault((call, way, argument, spec.port or argument), []).append((example, spec))
    uses = []
    calls = list(dict.fromkeys(call for call, *_ in found))
    for (call, way, argument, port), given in found.items():
        notes = [f"as `{argument}`"] if way == "needs" and argument != port else []
        notes += ["with some parameters only"] if len({id(example) for example, _ in given}) < len(examples) else []
        name = way if call == "forward" else f"`{call}` {way}"
        uses.append((calls.index(call), _Use(name, port, " or ".join(_shape(given)), ", ".join(notes))))
    return [use for _, use in sorted(uses, key=lambda one: (one[0], one[1].way.endswith("gives")))]


def _calls(example: ComponentSpec) -> dict[str, Contract]:
    """The calls that the component itself declares."""
    return {name: contract for name, contract in calls_of(example).items() if name != "fused"}


def _shape(given: Sequence[tuple[ComponentSpec, TensorSpec]]) -> list[str]:
    """The short forms of one port, sorted, with names for numbers."""
    shapes = set()
    for _, spec in given:
        alike = [(example, other.dims) for example, other in given if len(other.dims) == len(spec.dims)]
        named = [_named(dim, [(example, dims[place]) for example, dims in alike]) for place, dim in enumerate(spec.dims)]
        shapes.add(str(attrs.evolve(spec, dims=tuple(named))))
    return sorted(shapes)


def _named(dim: Dim, alike: Sequence[tuple[ComponentSpec, Dim]], field: str | None = None) -> Dim:
    """A symbol as it is; a number as the parameter that has it in every example, as ``field``, or as ``n``: it is computed."""
    if isinstance(dim, str):
        return dim
    numbers = [(example, other) for example, other in alike if isinstance(other, int)]
    names = [
        param.name for param in params_of(type(alike[0][0])) if all(_is(example, param.name, other) for example, other in numbers)
    ]
    return names[0] if len(names) == 1 else field or "n"


def _is(example: ComponentSpec, name: str, number: int) -> bool:
    value = getattr(example, name)
    return type(value) is int and value == number


def _constraints(kind: type[ComponentSpec]) -> list[str]:
    """What the examples require, with names for numbers."""
    found: dict[str, None] = {}
    for example in kind.examples():
        for one in (one for contract in _calls(example).values() for one in contract.require):
            field = getattr(one, "what", None) or one.field
            numbers = {part: getattr(one, part) for part in ("dim", "by", "to", "least") if hasattr(one, part)}
            names = {part: _named(number, [(example, number)], field) for part, number in numbers.items()}
            generic: Constraint = attrs.evolve(one, **names, field=None)  # type: ignore[arg-type]
            found[constraint_text(generic)] = None
    return list(found)


# ------------------------------------------------------------------------------------------------------------------- Markdown


def _link(name: str) -> str:
    return f"[{name}](#{name.replace('.', '')})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines)
