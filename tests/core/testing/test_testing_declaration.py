"""The checks of the module ``declaration``: each catches a component that breaks just this; and what holds for all modules."""

from __future__ import annotations

import broken_specs
import pytest
from broken_rows import CHECK_MODULES, HOST, ROWS, UNUSABLE, Row, checks_of, expect_caught, failures, rows_of

from medvlp_core.spec.roles import Role


@pytest.mark.parametrize("row", rows_of("declaration"), ids=lambda row: row.component)
def test_broken_is_caught_by_this_check_alone(row: Row) -> None:
    expect_caught(row)


@pytest.mark.parametrize("row", UNUSABLE, ids=lambda row: row.component)
def test_a_class_that_cannot_be_used_fails_first_where_it_is_said_why(row: Row) -> None:
    found = failures(row.component)
    assert next(iter(found)) == row.check
    assert row.text in found[row.check]
    assert {"gives_the_declared_shapes", "ignores_padding", "passes_gradients_on"} <= found.keys()


@pytest.mark.parametrize("module", CHECK_MODULES)
def test_every_check_has_a_component_that_it_catches(module: str) -> None:
    names = {one.name for role in Role for one in checks_of(role, module)}
    assert names
    assert names == {row.check for row in (*rows_of(module), *UNUSABLE) if row.check in names}


def test_every_broken_component_is_in_the_table() -> None:
    used = {f"broken.{name}" for name in [row.component for row in (*ROWS, *UNUSABLE)]}
    assert used == set(HOST.components) - set(broken_specs.GOOD)


@pytest.mark.parametrize("name", broken_specs.GOOD)
def test_an_unusual_component_raises_no_false_alarm(name: str) -> None:
    assert failures(name.removeprefix("broken."), "learns") == {}
