"""The runner: which checks run, what counts as a failure, and known failures."""

from __future__ import annotations

import types
import typing
from typing import Any

import broken_specs
import pytest

from medvlp_core.errors import PluginError
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import CHECKS, Check, CheckFailed, Group, NotApplicable, check
from medvlp_core.testing.runner import cases, check_known_failures, components_of, judge, run_check, run_conformance
from medvlp_core.testing.subject import Subject


@hookimpl
def medvlp_register_components(registry: Any) -> None:
    registry.add(broken_specs.OneExampleSpec)
    registry.add(broken_specs.EqualExamplesSpec)


def bundle(**members: Any) -> types.ModuleType:
    found = types.ModuleType("broken_plugin")
    vars(found).update({"MEDVLP_INTERFACE": 2, **members})
    return found


@pytest.fixture(scope="module")
def host() -> PluginHost:
    found = PluginHost.from_modules(
        {"broken": bundle(medvlp_register_components=medvlp_register_components), "empty": bundle(), "silly": object()}
    )
    assert [one.namespace for one in found.broken] == ["silly"]
    return found


def message(error: pytest.ExceptionInfo[PluginError]) -> str:
    return str(error.value)


def made_up(function: Any) -> Check:
    return Check(name="made_up", group="contract", roles=frozenset(Role), summary="", function=function)


def outcome(host: PluginHost, function: Any) -> tuple[str, str]:
    result = run_check(Subject(host, "broken.one_example"), made_up(function))
    assert result.key == "broken.one_example:made_up"
    return result.outcome, result.text


def test_every_component_gets_the_checks_of_its_role(host: PluginHost) -> None:
    found = cases("broken", host)
    assert list(dict.fromkeys(name for name, _ in found)) == ["broken.equal_examples", "broken.one_example"]
    names = [one.name for name, one in found if name == "broken.one_example"]
    assert {"has_two_examples", "compiles", "passes_gradients_on"} <= set(names)
    assert not {"keeps_raster_order", "masks_no_special_tokens"} & set(names)


def test_groups_run_in_their_order() -> None:
    groups = [one.group for one in CHECKS.values()]
    assert list(dict.fromkeys(groups)) == list(typing.get_args(Group))
    assert groups == sorted(groups, key=typing.get_args(Group).index)


def test_no_two_checks_have_one_name() -> None:
    with pytest.raises(ValueError, match="two conformance checks are named 'learns'"):

        @check("learning")
        def learns(subject: Any) -> None:
            """Again."""


def test_a_bundle_that_cannot_be_checked_says_why(host: PluginHost) -> None:
    with pytest.raises(PluginError) as unknown:
        components_of("brokem", host)
    assert message(unknown) == (
        "[MV301] there is no bundle 'brokem'\n    hint: did you mean 'broken'? other installed bundles: empty"
    )
    with pytest.raises(PluginError, match=r"\[MV302\] the bundle 'empty' registers no component"):
        components_of("empty", host)
    with pytest.raises(PluginError, match="'silly'"):
        components_of("silly", host)


def fails(subject: Any) -> None:
    raise CheckFailed("too wide")


def crashes(subject: Any) -> None:
    broken_specs.AlignmentSpec(dim=0)


def does_not_apply(subject: Any) -> None:
    raise NotApplicable("it has no text")


def test_outcomes(host: PluginHost) -> None:
    assert outcome(host, lambda subject: None) == ("passed", "")
    assert outcome(host, fails) == ("failed", "too wide")
    assert outcome(host, does_not_apply) == ("not applicable", "it has no text")
    kind, text = outcome(host, crashes)
    assert kind == "failed"
    line = crashes.__code__.co_firstlineno + 1
    assert text.startswith("ValueError: AlignmentSpec.dim=0 must be at least 1 (in ")
    assert text.endswith(f"(in test_testing_runner.py, line {line})")


def test_a_known_failure_is_accepted_and_one_that_passes_is_not(host: PluginHost) -> None:
    known = {"broken.one_example:made_up": "narrow on purpose"}
    subject = Subject(host, "broken.one_example")
    accepted = judge(run_check(subject, made_up(fails)), known)
    assert (accepted.outcome, accepted.text) == ("known failure", "narrow on purpose (too wide)")
    for function, what in ((lambda subject: None, "passes"), (does_not_apply, "does not apply")):
        refused = judge(run_check(subject, made_up(function)), known)
        assert refused.outcome == "failed"
        assert refused.text == f"it is listed as a known failure and {what}: take it off the list"
    other = run_check(subject, made_up(fails))
    assert judge(other, {"broken.equal_examples:made_up": "x"}) == other


def test_known_failures_must_name_a_check_and_give_a_reason(host: PluginHost) -> None:
    known = {"broken.one_example:has_two_example": "x", "has_two_examples": "x", "broken.one_example:learns": " "}
    with pytest.raises(PluginError) as refused:
        check_known_failures(known, "broken", host)
    lines = message(refused).splitlines()
    assert lines[0] == "[MV302] known_failures names 'broken.one_example:has_two_example', and there is no such check"
    assert lines[1].startswith("    hint: did you mean 'broken.one_example:has_two_examples'?")
    assert lines[2:] == [
        "[MV302] known_failures names 'has_two_examples', and there is no such check",
        "    hint: write 'component:check'; `medvlp conform --checks` lists them",
        "[MV302] known_failures: 'broken.one_example:learns' has no reason",
        "    hint: say why it is accepted",
    ]


def test_a_run_gives_what_was_wanted(host: PluginHost) -> None:
    known = {"broken.one_example:has_two_examples": "one is enough"}
    results = list(run_conformance("broken", host, known_failures=known, wanted=lambda name, one: one.name == "has_two_examples"))
    assert [(one.component, one.outcome) for one in results] == [
        ("broken.equal_examples", "failed"),
        ("broken.one_example", "known failure"),
    ]
