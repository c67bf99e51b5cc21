"""Checks of evaluators: each catches what it is for, and nothing else does."""

from __future__ import annotations

import attrs
import broken_evaluators
import pytest
from broken_bundle import FAULTS, SPECS, Fault, check_fault, result

from medvlp_core.spec.component import component
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.roles import Role
from medvlp_core.testing.check_modules import CHECKS
from medvlp_core.testing.stub_components.specs import EvaluatorSpec

GROUP = {name for name, one in CHECKS.items() if one.group == "evaluator"} | {"trains_in_a_model"}


@pytest.mark.parametrize("fault", FAULTS[broken_evaluators.__name__], ids=lambda fault: fault.name)
def test_each_fault_is_caught(fault: Fault) -> None:
    check_fault(fault, *GROUP)


def test_every_check_catches_something() -> None:
    assert frozenset(GROUP) == frozenset().union(*(fault.caught_by for fault in FAULTS[broken_evaluators.__name__]))


@component("broken.of_strange_ports", role=Role.EVALUATOR, build="medvlp_core.testing.stub_components.evaluator:NearestText")
@attrs.frozen(kw_only=True)
class OfStrangePortsSpec(EvaluatorSpec):
    """Needs what no stub component gives."""

    def contract(self) -> Contract:
        return Contract(needs={"fused_image_tokens": "B N D"})


SPECS.append(OfStrangePortsSpec)


@pytest.mark.parametrize("check", ["gives_sound_rows", "trains_in_a_model"])
def test_a_model_that_it_cannot_look_at_says_nothing_about_it(check: str) -> None:
    found = result("broken.of_strange_ports", check)
    assert found.outcome == "not applicable"
    assert found.text.endswith("needs fused_image_tokens, which this model does not give")
