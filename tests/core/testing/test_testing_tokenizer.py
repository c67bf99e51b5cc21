"""Checks of tokenizers: each catches what it is for, and as a rule nothing else does."""

from __future__ import annotations

import broken_tokenizers
import pytest
from broken_bundle import FAULTS, Fault, check_fault

from medvlp_core.testing.check_modules import CHECKS

GROUP = {name for name, one in CHECKS.items() if one.group == "tokenizer"}


@pytest.mark.parametrize("fault", FAULTS[broken_tokenizers.__name__], ids=lambda fault: fault.name)
def test_each_fault_is_caught(fault: Fault) -> None:
    check_fault(fault, "tokenizer")


def test_every_check_catches_something() -> None:
    assert frozenset(GROUP) == frozenset().union(*(fault.caught_by for fault in FAULTS[broken_tokenizers.__name__]))
