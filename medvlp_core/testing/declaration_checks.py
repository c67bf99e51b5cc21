"""Conformance: what a component says of itself, before anything is built."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
from typing import Any

from medvlp_core.errors import Diagnostics, MedvlpError, SpecError
from medvlp_core.model.build import interface_of
from medvlp_core.planning.parameters import read_block
from medvlp_core.planning.plan import plain
from medvlp_core.plugins.import_string import load_object
from medvlp_core.recipe.load import dump_yaml, parse_yaml
from medvlp_core.spec.component import ComponentSpec, calls_of, params_of
from medvlp_core.testing.checks import MODULE_ROLES, CheckFailed, check, expect
from medvlp_core.testing.subject import Subject

#: Heavy libraries that declaring a component must not import.
HEAVY = ("torch", "transformers", "timm", "numpy", "PIL")


@check("declaration")
def has_two_examples(subject: Subject) -> None:
    """``examples()`` gives at least two different small instances of the spec itself."""
    specs = [example.spec for example in subject.examples]
    expect(len(specs) >= 2, f"examples() gives {len(specs)}, expected at least two: the kit tries what one alone cannot show")
    others = [type(spec).__name__ for spec in specs if type(spec) is not subject.kind]
    expect(not others, f"examples() gives {', '.join(others)}, expected instances of {subject.kind.__name__}")
    expect(
        not params_of(subject.kind) or any(spec != specs[0] for spec in specs),
        "all examples are equal, expected different parameters",
    )


@check("declaration")
def has_sound_parameters(subject: Subject) -> None:
    """``problems()`` finds nothing wrong with any example."""
    for example in subject.examples:
        found = list(example.spec.problems())
        said = f"{found[0][0]}: {found[0][1]}" if found else ""
        expect(not found, f"{example}: problems() says {said}; choose parameters for examples() that it accepts")


@check("declaration")
def declares_the_same_each_time(subject: Subject) -> None:
    """``contract()`` (or ``calls()``) and ``examples()`` are pure: asked twice, they say the same."""
    again = list(subject.kind.examples())
    before = len(subject.examples)
    expect(len(again) == before, f"examples() gave {before} instances, and {len(again)} when it was asked again")
    for example, spec in zip(subject.examples, again, strict=True):
        expect(example.spec == spec, f"{example}: examples() gave {plain(spec)}, and {plain(example.spec)} before")
        expect(
            calls_of(spec) == calls_of(spec),
            f"{example}: {_says(subject.kind)} gave two different contracts for the same parameters",
        )


def _says(kind: type[ComponentSpec]) -> str:
    return "contract()" if kind.calls is ComponentSpec.calls else "calls()"


@check("declaration")
def has_sound_calls(subject: Subject) -> None:
    """A model can make every call: the first of its role is there, ports are given in no view, ``when`` names a need."""
    for example in subject.examples:
        first = subject.role.info.calls[0]
        names = ", ".join(example.contracts)
        expect(first in example.contracts, f"{example}: calls() declares {names}, and every {subject.role} has the call {first}")
        for call in example.calls:
            contract, needs = call.contract, call.contract.needs
            is_tuple = isinstance(contract.sizes, tuple)
            expect(is_tuple, f"{call}: sizes={contract.sizes!r} is {type(contract.sizes).__name__}, expected a tuple of symbols")
            for name, spec in contract.gives.items():
                text = f"{call}: it gives {name} in the {spec.view} view, and a port is given in the view that the call is made for"
                expect(spec.view is None, f"{text}: leave @{spec.view} out")
                text = f"{call}: {name} holds when={spec.when!r}, expected the name of a need: {', '.join(needs)}"
                expect(spec.when is None or spec.when in needs, text)


@check("declaration")
def gives_what_its_role_gives(subject: Subject) -> None:
    """The contract gives the ports and loss terms that components of the role are used for."""
    for example in subject.examples:
        given = {spec.port for contract in example.contracts.values() for spec in contract.gives.values()}
        losses = [term for contract in example.contracts.values() for term in contract.losses]
        every, some = subject.role.info.gives, subject.role.info.gives_one_of
        missing = sorted(every - given)
        expect(not missing, f"{example}: the contract does not give {', '.join(missing)}, which every {subject.role} gives")
        expect(not some or bool(some & given), f"{example}: the contract gives none of {', '.join(sorted(some))}")
        if subject.role.info.emits_losses:
            expect(bool(losses), f"{example}: the contract declares no loss; name them: Contract(..., losses=(...))")
        else:
            expect(not losses, f"{example}: the contract declares {', '.join(losses)}, and no {subject.role} has losses")


@check("declaration")
def survives_a_recipe(subject: Subject) -> None:
    """The examples, written as YAML and read again, are equal."""
    for example in subject.examples:
        diagnostics = Diagnostics()
        node = parse_yaml(dump_yaml(plain(example.spec)), file="example.yaml", diagnostics=diagnostics)
        again = read_block(subject.kind, node, path=subject.name, diagnostics=diagnostics) if node is not None else None
        expect(not diagnostics.has_errors, f"{example}: {next(iter(diagnostics.errors), '')}")
        expect(again == example.spec, f"{example}: {example.spec}, written as YAML and read again, is {again}")


@check("declaration")
def implements_its_role(subject: Subject) -> None:
    """``build`` names a class of its role that overrides nothing final and takes spec, dims and what the contract needs."""
    declaration = subject.kind.declaration
    try:
        kind = load_object(declaration.build, owner=subject.name, install=declaration.install)
    except MedvlpError as error:
        raise CheckFailed(str(error)) from error
    role = interface_of(subject.role)
    is_class = inspect.isclass(kind) and issubclass(kind, role)
    expect(is_class, f"{declaration.build} is not a class that derives from medvlp_core.nn.interfaces.{role.__name__}")
    left = sorted(getattr(kind, "__abstractmethods__", ()))
    expect(not left, f"{declaration.build} does not define {', '.join(left)}")
    final = [name for name, member in vars(role).items() if inspect.isfunction(member) and not _is_abstract(member)]
    broken = [name for name in final if getattr(kind, name) is not getattr(role, name)]
    expect(not broken, f"{declaration.build} overrides {', '.join(broken)}, which is final in {role.__name__}")
    _expect_two_arguments(kind, f"{declaration.build}.__init__")
    for call in subject.each_call() if subject.role in MODULE_ROLES else ():
        method = getattr(kind, call.name, None)
        text = f"{declaration.build} has no method {call.name}, which {_says(subject.kind)} declares"
        expect(callable(method), f"{text}; define it, or leave the call out")
        wanted = [name for name, need in call.contract.needs.items() if need.dtype != "shape"]
        _expect_keywords(method, wanted, f"{declaration.build}.{call.name}")


@check("declaration", roles=MODULE_ROLES)
def is_built_from_its_sizes(subject: Subject) -> None:
    """Its builder asks for no dimension but those that a call lists under ``sizes``: only these are one number in all views."""
    for example in subject.examples:
        try:
            example.build()
        except SpecError as error:
            wrong = next((one for one in error.problems if one.code == "MV206"), None)
            if wrong is None:
                raise
            raise CheckFailed(f"{example}: {wrong.text}; {wrong.hint}") from error


def _is_abstract(member: Any) -> bool:
    return getattr(member, "__isabstractmethod__", False)


def _expect_two_arguments(kind: type, who: str) -> None:
    """It is built as ``kind(spec, dims)``, whatever it calls the two."""
    signature = inspect.signature(kind)
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise CheckFailed(f"{who} takes ({', '.join(signature.parameters)}), expected (spec, dims): {error}") from error


def _expect_keywords(function: Any, wanted: list[str], who: str) -> None:
    """Every need must be accepted as a keyword; parameters without default must be among the needs."""
    parameters = dict(list(inspect.signature(function).parameters.items())[1:])
    has_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    named = {name for name, one in parameters.items() if one.kind is not inspect.Parameter.POSITIONAL_ONLY}
    unknown = [name for name in wanted if name not in named]
    told = ", ".join(unknown)
    expect(has_any or not unknown, f"{who} does not take {told}, which the contract needs: it is called with keywords")
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    required = [name for name, one in parameters.items() if one.default is one.empty and one.kind not in kinds]
    extra = [name for name in required if name not in wanted]
    expect(not extra, f"{who} wants {', '.join(extra)}, which the contract does not need")


@check("declaration")
def declares_without_torch(subject: Subject) -> None:
    """Importing the spec's module and asking for contracts imports no heavy library, so that ``medvlp check`` stays quick."""
    module = subject.kind.__module__
    for who, found in _heavy_imports(module, tuple(sys.path)):
        text = f"imports {found}, and every command would wait for it; import it in the module that `build` names"
        expect(who != module, f"importing {module} {text}")
        expect(who != subject.kind.__qualname__, f"examples() or contract() of {who} {text}")


#: Prints what is imported after the module itself and after each of its specs has been asked.
_ASK = """
import contextlib, importlib, sys
def tell(who):
    print(who, *[name for name in {heavy!r} if name in sys.modules])
module = importlib.import_module({module!r})
tell({module!r})
for name, kind in vars(module).items():
    if isinstance(kind, type) and kind.__module__ == {module!r} and "declaration" in vars(kind):
        with contextlib.suppress(Exception), contextlib.redirect_stdout(None):  # other checks say what is wrong with it
            for one in kind.examples():
                one.calls()
        tell(name)
"""


@functools.cache
def _heavy_imports(module: str, path: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Who, the module itself or a spec in it, imports which heavy libraries in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in path if part)}
    command = [sys.executable, "-c", _ASK.format(heavy=HEAVY, module=module)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise CheckFailed(f"{module} cannot be imported on its own: {(done.stderr.splitlines() or ['?'])[-1]}")
    found, seen = [], ""
    for line in done.stdout.splitlines():
        who, _, libraries = line.partition(" ")
        if libraries != seen:
            found.append((who, libraries.replace(" ", ", ")))
        seen = libraries
    return tuple(found)
