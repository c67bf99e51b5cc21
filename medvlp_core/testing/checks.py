"""The list of conformance checks: name, group, roles, and the function that raises :class:`CheckFailed`. Light.

A check is a function of a :class:`~medvlp_core.testing.subject.Subject` (one component with its examples), or without roles of a
:class:`~medvlp_core.testing.kernel_checks.KernelSubject` (one op); it returns nothing if all is well. Names are permanent: authors
list known failures by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import attrs

from medvlp_core.spec.roles import BUILD_ORDER, Role

Group = Literal[
    "declaration", "contract", "behaviour", "learning", "masking", "alignment", "data", "tokenizer", "evaluator", "kernel"
]

F = TypeVar("F", bound=Callable[[Any], None])

#: Roles whose components are torch modules with a forward pass.
MODULE_ROLES = BUILD_ORDER


class CheckFailed(AssertionError):
    """A component does not keep what the check asks for; the message says what was found and what was expected."""


class NotApplicable(Exception):
    """The check says nothing about this component (no parameters to train, no text among its inputs); the message says why."""


@attrs.frozen(kw_only=True)
class Check:
    """One named check. ``summary`` is the docstring's first line: what holds if it passes."""

    name: str
    group: Group
    roles: frozenset[Role]
    summary: str
    function: Callable[[Any], None]


#: Every check of components by name, in the order in which they run. Filled by :func:`check` when their modules are imported.
CHECKS: dict[str, Check] = {}


def check(group: Group, *, roles: Iterable[Role] = tuple(Role)) -> Callable[[F], F]:
    """Register a function as the check of its name."""

    def register(function: F) -> F:
        name, summary = function.__name__, (function.__doc__ or "").strip().splitlines()[0]
        if name in CHECKS:
            raise ValueError(f"two conformance checks are named {name!r}")
        CHECKS[name] = Check(name=name, group=group, roles=frozenset(roles), summary=summary, function=function)
        return function

    return register


def expect(is_true: bool, text: str) -> None:
    """Fail the running check with ``text`` unless ``is_true``.

    Raises:
        CheckFailed: it is not.
    """
    if not is_true:
        raise CheckFailed(text)
