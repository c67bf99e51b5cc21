"""``medvlp show NAME``: all about one component, or the text of a preset."""

from __future__ import annotations

import argparse
import inspect
import textwrap

from medvlp_core.cli.common import columns
from medvlp_core.describe.wording import constraint_text, default_text, range_text, recipe_text
from medvlp_core.errors import Problem, SpecError, did_you_mean
from medvlp_core.spec.component import ComponentSpec, params_of
from medvlp_core.spec.contract import Contract


def configure(parser: argparse.ArgumentParser) -> None:
    """What to show."""
    parser.add_argument("name", metavar="NAME", help="a component such as mpma.memory_fusion, or a preset such as mpma:base")


def run(arguments: argparse.Namespace) -> int:
    """Print it.

    Raises:
        SpecError: there is nothing of that name (MV101), or a preset cannot be read (MV001).
    """
    from medvlp_core.plugins.host import load_plugins

    host = load_plugins()
    name = arguments.name
    if name in host.presets:
        print(host.presets[name].read_text(encoding="utf-8"), end="")
        return 0
    if name not in host.components:
        if ":" not in name:
            raise SpecError(host.unknown_component(name))
        space = name.partition(":")[0]
        is_loaded = any(plugin.namespace == space for plugin in host.plugins)
        hint = (not is_loaded and host.install_hint(space)) or did_you_mean(name, host.presets, what="presets")
        raise SpecError(Problem(code="MV101", text=f"there is no preset {name!r}", hint=hint))
    print("\n".join(component_text(host.components[name], host.components.distribution(name))))
    return 0


def component_text(kind: type[ComponentSpec], distribution: str) -> list[str]:
    """The lines about one component."""
    declaration = kind.declaration
    lines = [f"{declaration.name}: {declaration.role}, from {distribution or 'no distribution'}", ""]
    if declaration.deprecated:
        lines += [f"  deprecated: {declaration.deprecated}", ""]
    lines += textwrap.indent(inspect.getdoc(kind) or "", "  ").splitlines()
    if declaration.install:
        lines += ["", f"  needs: {declaration.install}"]
    params = params_of(kind)
    lines += ["", "parameters" if params else "no parameters"]
    heads = columns([(param.name, param.type_name, default_text(param), range_text(param)) for param in params])
    for head, param in zip(heads, params, strict=True):
        about = f"deprecated: {param.rules.deprecated}. {param.rules.help}" if param.rules.deprecated else param.rules.help
        lines += [head, *textwrap.wrap(about, width=100, initial_indent="      ", subsequent_indent="      ")]
    example = next(iter(kind.examples()))
    lines += ["", "ports with the parameters of its first example"]
    lines += contract_text(example.contract())
    lines += ["", "in a recipe"]
    lines += textwrap.indent(recipe_text(example), "  ").splitlines()
    more = getattr(kind, "about", None)
    if more is not None:
        lines += ["", "about", *textwrap.indent(more(), "  ").splitlines()]
    return lines


def contract_text(contract: Contract) -> list[str]:
    """Needs, gives, constraints and losses, one a line."""
    rows = [("needs", name if name == spec.port else f"{name} ({spec.port})", str(spec)) for name, spec in contract.needs.items()]
    rows += [("gives", spec.port or name, str(spec)) for name, spec in contract.gives.items()]
    rows += [("requires", constraint_text(constraint), "") for constraint in contract.require]
    rows += [("loss", term, "") for term in contract.losses]
    return columns(rows) if rows else ["  none"]
