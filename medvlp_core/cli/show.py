"""``medvlp show NAME``: all about one component, or the text of a preset."""

from __future__ import annotations

import argparse
import inspect
import os
import textwrap
from typing import Any

from medvlp_core.cli.common import columns
from medvlp_core.components import SLOTS, ComponentSpec, Param, params_of
from medvlp_core.contract import Constraint, Contract
from medvlp_core.errors import Problem, SpecError, did_you_mean
from medvlp_core.plan import plain
from medvlp_core.yamlio import dump_yaml


def configure(parser: argparse.ArgumentParser) -> None:
    """What to show."""
    parser.add_argument("name", metavar="NAME", help="a component such as mpma.memory_fusion, or a preset such as mpma:base")


def run(arguments: argparse.Namespace) -> int:
    """Print it.

    Raises:
        SpecError: there is nothing of that name (MV101), or a preset cannot be read (MV001).
    """
    from medvlp_core.plugins import load_plugins

    host = load_plugins()
    name = arguments.name
    if name in host.presets:
        print(host.presets[name].read_text(encoding="utf-8"), end="")
        return 0
    if name not in host.components:
        known = [*host.components, *host.presets]
        hint = host.install_hint(name.replace(":", ".").partition(".")[0]) or ""
        is_loaded = any(plugin.namespace == name.replace(":", ".").partition(".")[0] for plugin in host.plugins)
        hint = hint if hint and not is_loaded else did_you_mean(name, known, what="components")
        raise SpecError(Problem(code="MV101", text=f"there is no component or preset {name!r}", hint=hint))
    print("\n".join(component_text(host.components[name], host.components.distribution(name))))
    return 0


def component_text(kind: type[ComponentSpec], distribution: str) -> list[str]:
    """The lines about one component."""
    declaration = kind.declaration
    lines = [f"{declaration.name}: {declaration.role}, from {distribution or 'no distribution'}", ""]
    lines += textwrap.indent(inspect.getdoc(kind) or "", "  ").splitlines()
    params = params_of(kind)
    lines += ["", "parameters" if params else "no parameters"]
    heads = columns([(param.name, param.type_name, default_text(param), range_text(param)) for param in params])
    for head, param in zip(heads, params, strict=True):
        lines += [head, *textwrap.wrap(param.rules.help, width=100, initial_indent="      ", subsequent_indent="      ")]
    example = next(iter(kind.examples()))
    lines += ["", "ports with the parameters of its first example"]
    lines += contract_text(example.contract())
    lines += ["", "in a recipe"]
    lines += textwrap.indent(recipe_text(example), "  ").splitlines()
    about = getattr(kind, "about", None)
    if about is not None:
        lines += ["", "about", *textwrap.indent(about(), "  ").splitlines()]
    return lines


def default_text(param: Param) -> str:
    """``required``, or ``= default`` as YAML."""
    return "required" if param.is_required else f"= {yaml_value(param.default)}"


def yaml_value(value: Any) -> str:
    """A value as it stands in a recipe, on one line."""
    text = dump_yaml({"value": list(value) if isinstance(value, tuple) else value}).removeprefix("value:")
    return " ".join(line.strip() for line in text.strip().splitlines())


def range_text(param: Param) -> str:
    """``at least 0, below 1`` or ``a | b``; empty if everything goes."""
    rules = param.rules
    if rules.one_of is not None:
        return " | ".join(map(str, rules.one_of))
    parts = [
        f"at least {rules.at_least}" if rules.at_least is not None else "",
        f"above {rules.above}" if rules.above is not None else "",
        f"at most {rules.at_most}" if rules.at_most is not None else "",
        f"below {rules.below}" if rules.below is not None else "",
    ]
    return ", ".join(filter(None, parts))


def contract_text(contract: Contract) -> list[str]:
    """Needs, gives, constraints and losses, one a line."""
    rows = [("needs", name if name == spec.port else f"{name} ({spec.port})", str(spec)) for name, spec in contract.needs.items()]
    rows += [("gives", spec.port or name, str(spec)) for name, spec in contract.gives.items()]
    rows += [("requires", constraint_text(constraint), "") for constraint in contract.require]
    rows += [("loss", term, "") for term in contract.losses]
    return columns(rows) if rows else ["  none"]


def constraint_text(constraint: Constraint) -> str:
    """A constraint in words: ``12 (heads) divides Dt``."""
    names = {"Divides": "by", "Equal": "to", "AtLeast": "least", "OneOf": "values"}
    kind = type(constraint).__name__
    other = getattr(constraint, names[kind])
    other = f"{other} ({constraint.field})" if constraint.field and other != constraint.field else str(other)
    words = {
        "Divides": f"{other} divides {constraint.dim}",
        "Equal": f"{constraint.dim} equals {other}",
        "AtLeast": f"{constraint.dim} is at least {other}",
        "OneOf": f"{constraint.dim} is one of {other}",
    }
    return words[kind]


def recipe_text(example: ComponentSpec) -> str:
    """The block of a recipe that makes this example; parameters with their default value are left out."""
    declaration = type(example).declaration
    defaults = {param.name: param.default for param in params_of(type(example))}
    given = {name: _portable(value) for name, value in plain(example).items() if getattr(example, name) != defaults[name]}
    document: dict[str, Any] = {"use": declaration.name, **given}
    for part in reversed(SLOTS[declaration.role].replace("*", "my_name").split(".")):
        document = {part: document}
    return dump_yaml(document)


def _portable(value: Any) -> Any:
    """A path of this machine (examples may use files that ship with their package) as a path to fill in."""
    is_path = isinstance(value, str) and os.path.isabs(value)
    return f"/path/to/{os.path.basename(value)}" if is_path else value
