"""Runs the checks of a bundle, one component at a time, and says what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import attrs
import torch

from medvlp_core.errors import MedvlpError, PluginError, Problem, describe_error, did_you_mean
from medvlp_core.plugins.host import PluginHost
from medvlp_core.testing.check_modules import CHECKS
from medvlp_core.testing.checks import Check, CheckFailed, NotApplicable
from medvlp_core.testing.kernel_checks import KernelSubject
from medvlp_core.testing.subject import Subject

Outcome = Literal["passed", "failed", "known failure", "not applicable"]


@attrs.frozen(kw_only=True)
class Result:
    """One check of one component. ``text`` says why it failed or does not apply, ``error`` is what was raised."""

    component: str
    check: str
    outcome: Outcome
    text: str = ""
    seconds: float = 0.0
    error: Exception | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def key(self) -> str:
        """``acme.gate:compiles``, as known failures are listed."""
        return f"{self.component}:{self.check}"


def components_of(namespace: str, host: PluginHost) -> tuple[str, ...]:
    """The components of one bundle, then its ops.

    Raises:
        PluginError: the bundle is not installed or broken (MV301), or brings neither component nor op (MV302).
    """
    broken = [one.problem for one in host.broken if one.namespace == namespace]
    if broken:
        raise PluginError(*broken)
    loaded = {plugin.namespace: plugin for plugin in host.plugins}
    if namespace not in loaded:
        hint = did_you_mean(namespace, loaded, what="installed bundles")
        raise PluginError(Problem(code="MV301", text=f"there is no bundle {namespace!r}", hint=hint))
    names = (*loaded[namespace].components, *loaded[namespace].kernels)
    if not names:
        raise PluginError(Problem(code="MV302", text=f"the bundle {namespace!r} registers no component"))
    return names


def subject_of(name: str, host: PluginHost) -> Subject | KernelSubject:
    """What the checks of a component, or of an op, are called with."""
    return Subject(host, name) if name in host.components else KernelSubject(host, name)


def applies(name: str, one: Check, host: PluginHost) -> bool:
    """Whether a check is for components of this role, or for ops."""
    return host.components[name].declaration.role in one.roles if name in host.components else one.group == "kernel"


def cases(namespace: str, host: PluginHost) -> list[tuple[str, Check]]:
    """Every component of a bundle with every check of its role, and every op with every check of ops.

    Raises:
        PluginError: see :func:`components_of`.
    """
    names = components_of(namespace, host)
    return [(name, one) for name in names for one in CHECKS.values() if applies(name, one, host)]


def check_known_failures(known: Mapping[str, str], namespace: str, host: PluginHost) -> None:
    """Refuse known failures that name nothing or give no reason.

    Raises:
        PluginError: with every entry that is wrong (MV302).
    """
    names = {f"{name}:{one.name}" for name, one in cases(namespace, host)}
    problems = []
    for key, reason in known.items():
        if key not in names:
            text = f"known_failures names {key!r}, and there is no such check"
            problems.append(Problem(code="MV302", text=text, hint=_known_hint(key, names)))
        elif not reason.strip():
            problems.append(Problem(code="MV302", text=f"known_failures: {key!r} has no reason", hint="say why it is accepted"))
    if problems:
        raise PluginError(*problems)


def _known_hint(key: str, names: set[str]) -> str:
    component, _, _ = key.partition(":")
    same = {name for name in names if name.startswith(f"{component}:")}
    return (
        did_you_mean(key, same or names, what="checks") if same else "write 'component:check'; `medvlp conform --checks` lists them"
    )


def run_check(subject: Subject | KernelSubject, one: Check) -> Result:
    """Run one check; anything that it raises counts as its failure."""
    started = time.perf_counter()
    outcome: Outcome = "passed"
    text = ""
    raised: Exception | None = None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors are tiny: threads that wait for each other would only cost time
    try:
        one.function(subject)
    except NotApplicable as reason:
        outcome, text = "not applicable", str(reason)
    except Exception as error:
        is_plain = isinstance(error, (CheckFailed, MedvlpError))
        outcome, raised = "failed", error
        text = str(error) if is_plain else describe_error(error)
        if install := _missing_besides(subject, error):
            outcome, text, raised = "not applicable", f"what it needs besides is not here: {install}", None
    finally:
        torch.set_num_threads(threads)
    seconds = time.perf_counter() - started
    return Result(component=subject.name, check=one.name, outcome=outcome, text=text, seconds=seconds, error=raised)


def _missing_besides(subject: Subject | KernelSubject, error: Exception) -> str:
    """The command that brings the optional dependency without which a component cannot be built, if that is what is wrong."""
    install = subject.kind.declaration.install if isinstance(subject, Subject) else ""
    hints = [problem.hint for one in (error, error.__cause__) if isinstance(one, MedvlpError) for problem in one.problems]
    return install if install in hints else ""


def judge(result: Result, known: Mapping[str, str]) -> Result:
    """A failure that is known is accepted; a known failure that passes is a failure, so that lists do not rot."""
    if result.key not in known:
        return result
    if result.outcome == "failed":
        return attrs.evolve(result, outcome="known failure", text=f"{known[result.key]} ({result.text})")
    text = (
        f"it is listed as a known failure and {'passes' if result.outcome == 'passed' else 'does not apply'}: take it off the list"
    )
    return attrs.evolve(result, outcome="failed", text=text)


def run_conformance(
    namespace: str,
    host: PluginHost,
    *,
    known_failures: Mapping[str, str] | None = None,
    wanted: Callable[[str, Check], bool] | None = None,
) -> Iterator[Result]:
    """Run the checks of a bundle, those that ``wanted`` (component, check) accepts, and give each result as it comes.

    Raises:
        PluginError: the bundle cannot be checked (MV301), or ``known_failures`` names nothing (MV302).
    """
    known = known_failures or {}
    check_known_failures(known, namespace, host)
    subjects = {name: subject_of(name, host) for name in components_of(namespace, host)}
    for name, one in cases(namespace, host):
        if wanted is None or wanted(name, one):
            yield judge(run_check(subjects[name], one), known)
