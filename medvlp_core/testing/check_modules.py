"""Imports every module of checks, which fills :data:`CHECKS`, and puts them in the order in which they run. Imports torch."""

from __future__ import annotations

import typing

from medvlp_core.testing import (
    alignment_checks,
    behaviour_checks,
    contract_checks,
    data_checks,
    declaration_checks,
    encoder_checks,
    evaluator_checks,
    kernel_checks,
    learning_checks,
    masking_checks,
    model_checks,
    tokenizer_checks,
)
from medvlp_core.testing.checks import CHECKS, Group

__all__ = ["CHECKS", "CHECK_MODULES"]

CHECK_MODULES = (
    declaration_checks,
    contract_checks,
    encoder_checks,
    behaviour_checks,
    learning_checks,
    masking_checks,
    alignment_checks,
    model_checks,
    data_checks,
    tokenizer_checks,
    evaluator_checks,
    kernel_checks,
)

#: Cheap and telling ones first: who fails to keep its contract need not be asked whether it learns.
for _one in sorted(CHECKS.values(), key=lambda one: typing.get_args(Group).index(one.group)):
    CHECKS[_one.name] = CHECKS.pop(_one.name)
