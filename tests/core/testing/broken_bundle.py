"""A bundle of components that are wrong in one way each. Modules beside this one fill it with :func:`broken`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import attrs

from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.host import PluginHost
from medvlp_core.plugins.registry import PluginComponents
from medvlp_core.spec.component import ComponentSpec, component
from medvlp_core.testing.checks import CHECKS
from medvlp_core.testing.runner import Result, run_check
from medvlp_core.testing.subject import Subject

MEDVLP_INTERFACE = 2
K = TypeVar("K", bound=type)


@attrs.frozen
class Fault:
    """A wrong component: its name, the checks that must catch it, and a part of what they say."""

    name: str
    caught_by: frozenset[str]
    says: str


SPECS: list[type[ComponentSpec]] = []
FAULTS: dict[str, list[Fault]] = {}


def broken(base: type[ComponentSpec], *, caught_by: str | Iterable[str] = (), says: str = "") -> Callable[[K], K]:
    """Register a module class as a component with the parameters of ``base``; as a fault if anything must catch it."""

    def declare(kind: K) -> K:
        noun = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
        names = {"__doc__": kind.__doc__, "__module__": kind.__module__, "__qualname__": f"{kind.__name__}Spec"}
        spec: Any = attrs.frozen(kw_only=True)(type(f"{kind.__name__}Spec", (base,), names))
        build = f"{kind.__module__}:{kind.__name__}"
        SPECS.append(component(f"broken.{noun}", role=base.declaration.role, build=build)(spec))
        setattr(sys.modules[kind.__module__], spec.__name__, spec)
        checks = frozenset({caught_by} if isinstance(caught_by, str) else caught_by)
        if checks:
            FAULTS.setdefault(kind.__module__, []).append(Fault(f"broken.{noun}", checks, says))
        return kind

    return declare


def check_fault(fault: Fault, *groups: str) -> None:
    """Exactly the named checks catch a component, of those in some groups or with these names."""
    subject = Subject(host(), fault.name)
    checks = [one for one in CHECKS.values() if subject.role in one.roles and {one.group, one.name} & set(groups)]
    results = [run_check(subject, one) for one in checks]
    failed = {one.check: one.text for one in results if one.outcome == "failed"}
    assert set(failed) == fault.caught_by, failed
    assert any(fault.says in text for text in failed.values()), failed


def host() -> PluginHost:
    """A host of this bundle alone."""
    found = PluginHost.from_modules({"broken": sys.modules[__name__]})
    assert not found.broken, found.broken
    return found


def result(name: str, check: str) -> Result:
    """What one check says of one component of this bundle."""
    return run_check(Subject(host(), name), CHECKS[check])


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    for spec in SPECS:
        registry.add(spec)
