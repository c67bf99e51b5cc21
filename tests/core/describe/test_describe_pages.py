"""Reference pages: complete, up to date, the same for anybody's bundle."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from medvlp_core.cli import main
from medvlp_core.describe.pages import components_text
from medvlp_core.planning.wiring import INPUT_PORTS
from medvlp_core.plugins.host import KNOWN_BUNDLES, PluginHost
from medvlp_core.spec.component import params_of
from medvlp_core.spec.contract import PORTS, Contract
from medvlp_core.spec.roles import Role

DOCS = Path(__file__).parents[3] / "docs"
COMMAND = "MEDVLP_WRITE_DOCS=1 pytest tests/core/describe/test_describe_pages.py"
MADE = f"<!-- made by {COMMAND} -->\n"
END = "<!-- end -->\n"


def ours(host: PluginHost) -> list[str]:
    """The components of the bundles of this repository; others may be installed beside them."""
    return [name for name in host.components if name.partition(".")[0] in KNOWN_BUNDLES]


def declared(host: PluginHost, name: str) -> list[Contract]:
    """The contracts of all calls of all examples of a component."""
    return [contract for example in host.components[name].examples() for contract in example.calls().values()]


def pages(host: PluginHost) -> dict[str, str]:
    """What stands between the two marks of each page."""
    return {"components.md": components_text(host.components, ours(host)), "ports.md": f"\n{port_table(host)}\n\n"}


def port_table(host: PluginHost) -> str:
    """Who gives and who needs each port."""
    contracts = {name: declared(host, name) for name in ours(host)}
    lines = ["| port | given by | needed by |", "| --- | --- | --- |"]
    for port in PORTS:
        providers, takers = ["inputs"] if port in INPUT_PORTS else [], []
        for name, found in contracts.items():
            link = f"[{name}](components.md#{name.replace('.', '')})"
            providers += [link] if any(port in (spec.port or key for key, spec in one.gives.items()) for one in found) else []
            takers += [link] if any(port in (spec.port or key for key, spec in one.needs.items()) for one in found) else []
        lines.append(f"| `{port}` | {', '.join(providers) or 'nobody here'} | {', '.join(takers) or 'nobody here'} |")
    return "\n".join(lines)


@pytest.mark.parametrize("page", ["components.md", "ports.md"])
def test_committed_pages_are_up_to_date(page: str, host: PluginHost) -> None:
    path = DOCS / page
    before, mark, rest = path.read_text(encoding="utf-8").partition(MADE)
    shown, end, after = rest.partition(END)
    assert mark, f"{page} has lost its line {MADE}"
    assert end, f"{page} has lost its line {END}"
    made = pages(host)[page]
    if os.environ.get("MEDVLP_WRITE_DOCS"):
        path.write_text(before + mark + made + end + after, encoding="utf-8")
    assert shown == made, f"docs/{page} is stale; `{COMMAND}` makes it anew"


def test_every_component_stands_there_with_all_that_it_declares(host: PluginHost) -> None:
    text = components_text(host.components, ours(host))
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == [
        role.value for role in Role if any(host.components[name].declaration.role is role for name in ours(host))
    ]
    for name in ours(host):
        section = text.partition(f"\n### {name}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
        assert [one.name for one in params_of(host.components[name]) if f"\n| `{one.name}` | " not in section] == []
        for call, contract in (
            (call, one) for example in host.components[name].examples() for call, one in example.calls().items()
        ):
            of = "" if call == "forward" else f"`{call}` "
            ports = [("needs", spec) for spec in contract.needs.values()] + [("gives", spec) for spec in contract.gives.values()]
            assert [str(spec) for way, spec in ports if f"\n| {of}{way} | `{spec.port}` | " not in section] == []
            assert [term for term in contract.losses if f"`{term}`" not in section.partition("* Losses: ")[2]] == []


def test_numbers_stand_as_the_parameters_that_set_them(host: PluginHost) -> None:
    text = components_text(host.components, ["standard.bert", "mpma.image_decoder", "mpma.memory_fusion"])
    assert "| `encode` gives | `text_tokens` | `B L width` |" in text
    assert "* Requires: heads divides Dt.\n" in text
    assert "* Requires: GH divides target_size.\n" in text


def test_every_cell_of_a_table_stays_in_it(host: PluginHost) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", components_text(host.components, ours(host)), re.MULTILINE)
    assert len(tables) > 50
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_a_bundle_prints_its_own_page(host: PluginHost, capsys: Any) -> None:
    assert main(["docs", "mpma"]) == 0
    out = capsys.readouterr().out
    assert out == components_text(host.components, [name for name in host.components if name.startswith("mpma.")])
    assert re.findall(r"^### (\w+)\.", out, re.MULTILINE) == ["mpma"] * 5


@pytest.mark.parametrize(
    ("space", "hint"), [("mmpa", "did you mean 'mpma'? other bundles with components: gallery, open_cxr, standard")]
)
def test_an_unknown_bundle_is_named(space: str, hint: str, capsys: Any) -> None:
    assert main(["docs", space]) == 1
    assert capsys.readouterr().err == f"[MV101] no component of the namespace {space!r} is installed\n    hint: {hint}\n"
