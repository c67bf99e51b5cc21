"""The checks of the module ``behaviour``: each catches a component that breaks just this."""

from __future__ import annotations

import pytest
from broken_rows import Row, expect_caught, rows_of


@pytest.mark.parametrize("row", rows_of("behaviour"), ids=lambda row: row.component)
def test_broken_is_caught_by_this_check_alone(row: Row) -> None:
    expect_caught(row)
