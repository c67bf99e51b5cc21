"""The conformance kit as one pytest function: ``test_acme = conformance("acme")``. Torch is imported when it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from medvlp_core.errors import MedvlpError, PluginError
from medvlp_core.plugins.host import load_plugins


def conformance(namespace: str, *, known_failures: Mapping[str, str] | None = None) -> Callable[..., None]:
    """A test function with one case for each check of each component (and kernel) of an installed bundle.

    ``known_failures`` maps ``component:check`` to the reason why this failure is accepted. Such a case is an expected failure;
    if it passes one day the test fails, so that the list stays true. A bundle that cannot be loaded gives one failing case.

    Example:
        >>> test_mpma = conformance("mpma")
    """
    import pytest

    from medvlp_core.testing.check_modules import CHECKS
    from medvlp_core.testing.checks import CheckFailed
    from medvlp_core.testing.runner import cases, check_known_failures, judge, run_check, subject_of

    known = known_failures or {}
    host = load_plugins()
    try:
        found = cases(namespace, host)
        check_known_failures(known, namespace, host)
    except PluginError as error:
        message = str(error)

        def broken() -> None:
            pytest.fail(message, pytrace=False)

        return broken

    subjects = {name: subject_of(name, host) for name, _ in found}

    @pytest.mark.parametrize(("component", "check"), [(name, one.name) for name, one in found])
    def conforms(component: str, check: str) -> None:
        """One check of one component."""
        result = judge(run_check(subjects[component], CHECKS[check]), known)
        if result.outcome == "not applicable":
            pytest.skip(result.text)
        if result.outcome == "known failure":
            pytest.xfail(result.text)
        if result.outcome == "failed":
            if result.error is not None and not isinstance(result.error, (CheckFailed, MedvlpError)):
                raise result.error  # with the author's traceback
            pytest.fail(f"{result.key}: {result.text}", pytrace=False)

    return conforms
