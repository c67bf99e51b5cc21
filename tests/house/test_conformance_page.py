"""docs/conformance.md lists every check of the kit, as it is."""

from __future__ import annotations

import os
from pathlib import Path

from medvlp_core.spec.roles import Role
from medvlp_core.testing.check_modules import CHECKS
from medvlp_core.testing.checks import MODULE_ROLES, Check

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
MADE = "<!-- made by MEDVLP_WRITE_DOCS=1 pytest tests/house/test_conformance_page.py -->\n"
END = "<!-- end -->\n"


def roles(one: Check) -> str:
    if one.group == "kernel":
        return "ops"
    if one.roles == frozenset(Role):
        return "all"
    modules = frozenset(MODULE_ROLES)
    if one.roles == modules:
        return "modules"
    if one.roles == modules - {Role.MASKING}:
        return "modules but maskings"
    return ", ".join(f"`{role}`" for role in Role if role in one.roles)


def table() -> str:
    lines = ["", "| check | what holds if it passes | for |", "| --- | --- | --- |"]
    for group in dict.fromkeys(one.group for one in CHECKS.values()):
        lines.append(f"| **{group}** | | |")
        for one in CHECKS.values():
            if one.group == group:
                lines.append(f"| `{one.name}` | {one.summary.replace('``', '`')} | {roles(one)} |")
    return "\n".join([*lines, "", ""])


def test_the_table_of_checks_is_up_to_date() -> None:
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(MADE)
    shown, end, after = rest.partition(END)
    assert mark
    assert end
    made = table()
    if shown != made and os.environ.get("MEDVLP_WRITE_DOCS"):
        PAGE.write_text(before + mark + made + end + after, encoding="utf-8")
    assert shown == made


def test_every_summary_is_one_line_of_a_table() -> None:
    assert len(CHECKS) > 40
    assert [one.name for one in CHECKS.values() if "|" in one.summary or not one.summary.endswith(".")] == []
