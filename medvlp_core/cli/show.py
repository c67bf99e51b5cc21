"""``medvlp show NAME``: all about one component, or the text of a preset."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from typing import Any

from medvlp_core.cli.common import columns
from medvlp_core.cli.completion_words import completes
from medvlp_core.cli.json_output import add_json_argument, print_json
from medvlp_core.describe.wording import constraint_text, default_text, range_text, recipe_text
from medvlp_core.errors import Problem, SpecError, did_you_mean
from medvlp_core.spec.component import ComponentSpec, Param, calls_of, params_of
from medvlp_core.spec.contract import Contract


def configure(parser: argparse.ArgumentParser) -> None:
    """What to show."""
    completes(
        parser.add_argument("name", metavar="NAME", help="a component such as mpma.memory_fusion, or a preset such as mpma:base"),
        "name",
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print it.

    Raises:
        SpecError: there is nothing of that name (MV101), or a preset cannot be read (MV001).
    """
    from medvlp_core.plugins.host import load_plugins

    host = load_plugins()
    name = arguments.name
    if name in host.presets and arguments.json:
        print_json("show", name=name, kind="preset", text=host.presets[name].read_text(encoding="utf-8"))
        return 0
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
    if arguments.json:
        print_json("show", name=name, kind="component", **component_data(host.components[name], host.components.distribution(name)))
        return 0
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
    for name, contract in calls_of(example).items():
        if name != "fused":  # the core's own: encode once more
            lines += [*([] if name == "forward" else [f"  {name}"]), *contract_text(contract)]
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
    rows += [("sizes", ", ".join(contract.sizes), "")] if contract.sizes else []
    rows += [("requires", constraint_text(constraint), "") for constraint in contract.require]
    rows += [("loss", term, "") for term in contract.losses]
    rows += [("after a step", name, str(spec)) for name, spec in contract.after.items()]
    return columns(rows) if rows else ["  none"]


# ---------------------------------------------------------------------------------------------------------------- as JSON


def component_data(kind: type[ComponentSpec], distribution: str) -> dict[str, Any]:
    """What :func:`component_text` says, as plain data."""
    declaration = kind.declaration
    example = next(iter(kind.examples()))
    more = getattr(kind, "about", None)
    return {
        "role": declaration.role,
        "distribution": distribution or None,
        "deprecated": declaration.deprecated or None,
        "documentation": inspect.getdoc(kind) or "",
        "install": declaration.install or None,
        "parameters": [_parameter_data(param) for param in params_of(kind)],
        "calls": {name: contract_data(contract) for name, contract in calls_of(example).items() if name != "fused"},
        "recipe": recipe_text(example),
        "about": more() if more is not None else None,
    }


def _parameter_data(param: Param) -> dict[str, Any]:
    return {
        "name": param.name,
        "type": param.type_name,
        "is_required": param.is_required,
        "default": None if param.is_required else param.default,
        "range": range_text(param) or None,
        "help": param.rules.help,
        "deprecated": param.rules.deprecated or None,
    }


def contract_data(contract: Contract) -> dict[str, Any]:
    """Needs, gives, constraints and losses; a tensor as in a contract, ``B L Dt @masked``."""
    needs = [{"argument": name, "port": spec.port or name, "tensor": str(spec)} for name, spec in contract.needs.items()]
    gives = [{"port": spec.port or name, "tensor": str(spec)} for name, spec in contract.gives.items()]
    requires = [constraint_text(constraint) for constraint in contract.require]
    return {
        "needs": needs,
        "gives": gives,
        "sizes": list(contract.sizes),
        "requires": requires,
        "losses": list(contract.losses),
        "mixes_rows": contract.mixes_rows,
        "after": {name: str(spec) for name, spec in contract.after.items()},
    }
