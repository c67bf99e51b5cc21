"""Checks of ops: each catches what it is for, and nothing else does."""

from __future__ import annotations

import broken_kernels
import pytest

from medvlp_core.plugins.host import PluginHost
from medvlp_core.testing.check_modules import CHECKS
from medvlp_core.testing.kernel_checks import KernelSubject
from medvlp_core.testing.runner import Result, cases, run_check, run_conformance

GROUP = tuple(one for one in CHECKS.values() if one.group == "kernel")
HOST = PluginHost.from_modules({"broken": broken_kernels})

FAULTS = {
    "wrong": ("agrees_with_its_definition", "the path 'composite' is wrong in float32 on cpu, odd: gradient of w 1.0e-01 (at most"),
    "no_gradient": ("agrees_with_its_definition", "the path 'composite' is wrong in float32 on cpu, odd: gradient of w 1.0e+00"),
    "unnamed": ("agrees_with_its_definition", "the benchmark has no contender named composite, after the path of the op"),
    "undefined": ("has_a_definition", "the backends are composite: 'reference', the definition, is missing"),
    "at_a_loss": ("says_why_a_path_cannot_serve", "'auto' has no backend that can serve this call"),
    "blind": ("says_why_a_path_cannot_serve", "asking for 'composite' with float32 on cpu gave 'composite' and no error"),
    "other_name": ("loads_its_kernel", "broken_kernels:OTHER_NAME is the kernel of 'broken.another'"),
}


def results(name: str) -> dict[str, Result]:
    return {one.name: run_check(KernelSubject(HOST, f"broken.{name}"), one) for one in GROUP}


def test_the_bundle_loads() -> None:
    assert not HOST.broken


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_caught(name: str) -> None:
    check, says = FAULTS[name]
    failed = {one.check: one.text for one in results(name).values() if one.outcome == "failed"}
    assert set(failed) == {check}, failed
    assert says in failed[check]


def test_every_check_catches_something() -> None:
    assert {check for check, _ in FAULTS.values()} == {one.name for one in GROUP}


def test_a_right_op_passes() -> None:
    assert {one.outcome for one in results("right").values()} == {"passed"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("only_defined", "it has no backend but 'reference'"),
        ("at_a_loss", "it declares no benchmark, and only that says how the op is called"),
        ("other_name", "the kernel cannot be loaded; loads_its_kernel says why"),
    ],
)
def test_what_cannot_be_compared_says_why(name: str, why: str) -> None:
    found = results(name)["agrees_with_its_definition"]
    assert (found.outcome, found.text) == ("not applicable", why)


def test_the_runner_checks_the_ops_of_a_bundle() -> None:
    found = cases("broken", HOST)
    assert len(found) == len(HOST.kernels) * len(GROUP)
    (one,) = run_conformance("broken", HOST, wanted=lambda name, check: (name, check.name) == ("broken.right", "has_a_definition"))
    assert one.outcome == "passed"
