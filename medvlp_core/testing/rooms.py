"""Imports every room of checks, which fills :data:`CHECKS`, and puts them in the order in which they run. Imports torch."""

from __future__ import annotations

import typing

from medvlp_core.testing import (
    alignment,
    behaviour,
    contract,
    data,
    declaration,
    encoders,
    evaluator,
    kernel,
    learning,
    masking,
    model_checks,
    tokenizer,
)
from medvlp_core.testing.checks import CHECKS, Group

__all__ = ["CHECKS", "ROOMS"]

ROOMS = (
    declaration,
    contract,
    encoders,
    behaviour,
    learning,
    masking,
    alignment,
    model_checks,
    data,
    tokenizer,
    evaluator,
    kernel,
)

#: Cheap and telling ones first: who fails to keep its contract need not be asked whether it learns.
for _one in sorted(CHECKS.values(), key=lambda one: typing.get_args(Group).index(one.group)):
    CHECKS[_one.name] = CHECKS.pop(_one.name)
