"""The documentation says what the program does: examples run, tables and lists are complete, links lead somewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from doc_examples import Section, matches, run_section, sections

from medvlp_core.describe.wording import yaml_value
from medvlp_core.errors import CODES
from medvlp_core.planning.plan import FORMAT_VERSION
from medvlp_core.plugins.candidate import hook_arguments
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.blocks import InitSpec, InputSpec, TrainSpec
from medvlp_core.spec.component import INTERFACE_VERSION, params_of
from medvlp_core.spec.contract import PORTS, TensorSpec
from medvlp_core.spec.roles import ROLES, Role
from medvlp_core.training import StepDone
from medvlp_core.training.metrics_file import MetricsFile, read_metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUNNABLE = (
    "../README.md",
    "README.md",
    "ablations.md",
    "commands.md",
    "concepts.md",
    "errors.md",
    "estimate.md",
    "evaluation.md",
    "export.md",
    "hooks.md",
    "kernels.md",
    "ports.md",
    "quickstart.md",
    "training.md",
    "versioning.md",
    "which-opening.md",
    "write-a-plugin.md",
    "yaml.md",
)
#: The tutorial's own package is tried in tests/e2e/test_e2e_scaffold.py.
EXAMPLES = [
    (page, section)
    for page in RUNNABLE
    for section in sections(DOCS / page)
    if section.blocks and "acme_fusion" not in section.text
]


def steady(text: str) -> str:
    """Without line numbers of presets, which move with every comment there, and without the numbers of an estimate.

    These follow torch's operations, which another torch counts otherwise; tests/bench/estimate/test_estimate_page.py does the sums.
    """
    text = re.sub(r"(mpma:\w+):\d+:\d+", r"\1", text)
    if text.startswith("$ medvlp estimate"):
        text = re.sub(r" +", " ", re.sub(r"[-+]?\d[\d,]*(\.\d+)?", "N", text))
    return text


def test_estimates_are_compared_without_their_numbers() -> None:
    shown = "$ medvlp estimate x\n  forward   6.0  +0.01%\n  issuing 2,390 operations\n"
    assert steady(shown) == steady(shown.replace("6.0  +0.01", "16.1 -3").replace("2,390", "527"))
    assert steady(shown) != steady(shown.replace("forward", "backward"))
    assert steady(shown[1:]) == shown[1:]


# ---------------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(("page", "section"), EXAMPLES, ids=[f"{page}-{section.title[:30]}" for page, section in EXAMPLES])
def test_examples_do_what_the_page_shows(page: str, section: Section, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = run_section(section, monkeypatch, tmp_path)
    wrong = [(block, found) for block, found in shown if not matches(steady(block.text), steady(found))]
    if wrong and os.environ.get("MEDVLP_WRITE_DOCS"):
        path = DOCS / page
        whole = path.read_text(encoding="utf-8")
        offset = whole.index("## " + section.text) + 3
        for block, found in reversed(wrong):
            start = offset + block.start
            whole = whole[:start] + found.rstrip() + "\n" + whole[start + len(block.text) :]
        path.write_text(whole, encoding="utf-8")
    for block, found in wrong:
        assert found.strip() == block.text.strip()


@pytest.mark.parametrize("page", RUNNABLE)
def test_no_recipe_on_a_page_escapes_the_test(page: str) -> None:
    blocks = [block for section in sections(DOCS / page) for block in section.blocks]
    nameless = [block.text for block in blocks if block.language == "yaml" and not block.name]
    assert nameless == []
    assert sum(page == name for name, _ in EXAMPLES) > 0


def test_an_example_that_lies_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "x\n```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n"
    [(block, found)] = run_section(Section("x", text), monkeypatch, tmp_path)
    assert (block.text, found) == ("3\n", "2\n")
    assert not matches(block.text, found)
    assert matches("a ... c", "a b c")
    assert not matches("a ... c", "a b d")


# -------------------------------------------------------------------------------------------------------- complete and true


def test_every_code_has_an_entry_and_no_other() -> None:
    titles = re.findall(r"^## (MV\d{3}): (.*)$", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [code for code, _ in titles] == list(CODES)
    plain = {code: title.replace("`", "") for code, title in titles}
    assert {code: plain[code] for code in CODES if not CODES[code].replace("`", "").startswith(plain[code])} == {}


def test_every_entry_shows_a_message_with_its_code() -> None:
    shown = {section.title[:5]: "".join(block.text for block in section.blocks) for section in sections(DOCS / "errors.md")}
    assert not {code for code, text in shown.items() if f"[{code}]" not in text}


def test_every_code_is_raised_somewhere() -> None:
    files = [path for folder in ("medvlp_core", "plugins") for path in (ROOT / folder).rglob("*.py") if path.name != "errors.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert not {code for code in CODES if f'"{code}"' not in text}
    assert set(re.findall(r"MV\d{3}", text)) <= set(CODES)


def test_every_hook_is_documented_with_its_arguments() -> None:
    text = (DOCS / "hooks.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (medvlp_\w+)\((.*)\)$", text, re.MULTILINE)
    assert {name: tuple(arguments.split(", ")) for name, arguments in titles} == hook_arguments()
    for section in sections(DOCS / "hooks.md")[1:]:
        rows = re.findall(r"^\| (called|forbidden|if it raises) \|", section.text, re.MULTILINE)
        assert (section.title, rows) == (section.title, ["called", "forbidden", "if it raises"])
        assert f"\ndef {section.title.partition('(')[0]}(" in section.text


def test_versions_on_the_page_are_those_of_the_core() -> None:
    text = (DOCS / "versioning.md").read_text(encoding="utf-8")
    assert f"| recipe format | `medvlp: {FORMAT_VERSION}` at the top of a recipe | {FORMAT_VERSION} |" in text
    assert f"| plug-in interface | `MEDVLP_INTERFACE = {INTERFACE_VERSION}` in a plug-in's module | {INTERFACE_VERSION} |" in text


def test_pages_name_no_unknown_code() -> None:
    named = {code for page in PAGES for code in re.findall(r"\bMV\d{3}\b", page.read_text(encoding="utf-8"))}
    assert named <= set(CODES)


def test_golden_messages_are_quoted_exactly() -> None:
    blocks = [block for section in sections(DOCS / "errors.md") for block in section.blocks if block.name.startswith("golden:")]
    assert blocks
    for block in blocks:
        case = ROOT / "tests" / "messages" / "cases" / f"{block.name.removeprefix('golden:')}.txt"
        assert block.text == case.read_text(encoding="utf-8")


def declared_tensors(host: PluginHost) -> list[TensorSpec]:
    """What the components here need and give, with the parameters of their examples."""
    examples = [example for name in host.components for example in host.components[name].examples()]
    contracts = [contract for example in examples for contract in example.calls().values()]
    return [spec for one in contracts for spec in (*one.needs.values(), *one.gives.values())]


def test_every_standard_port_is_in_the_table(host: PluginHost) -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \| ([^|]*?) \|", (DOCS / "ports.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [port for port, _, _ in rows] == list(PORTS)
    given: dict[str, set[int]] = {}
    for spec in declared_tensors(host):
        assert spec.port is not None
        given.setdefault(spec.port, set()).add(len(spec.dims))
    for port, dims, _ in rows:
        written = dims.partition(":")[0].split()
        assert len(written) in given.get(port, {len(written)}), port  # beside it, volumes and the axis of each sentence
        if match := re.search(r"\((B, [^)]*)\)", PORTS[port]):
            assert match.group(1).replace(",", "").split() == written, port


def test_every_evaluator_is_described(host: PluginHost) -> None:
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in host.components.of_role(Role.EVALUATOR) if f"`{name}`" not in text] == []


def test_tables_of_inputs_and_training_are_complete() -> None:
    text = (DOCS / "yaml.md").read_text(encoding="utf-8")
    for kind in (InputSpec, InitSpec, TrainSpec):
        rows = [f"| `{one.name}` | `{yaml_value(one.default)}` | {one.rules.help} |" for one in params_of(kind)]
        assert [row for row in rows if row not in text] == []


def test_the_table_of_metrics_has_every_key(tmp_path: Path) -> None:
    numbers = {"epoch": 1, "total": 0.5, "learning_rate": 0.1, "grad_norm": 1.0, "pairs": 4, "seconds": 1.0}
    with MetricsFile(tmp_path / "metrics.jsonl", log_every_steps=1) as metrics:
        metrics(StepDone(step=1, steps=1, losses={"gla.global": 0.5}, **numbers))
    [line] = read_metrics(tmp_path / "metrics.jsonl")
    table = (
        (DOCS / "training.md")
        .read_text(encoding="utf-8")
        .partition("The keys of a line of `metrics.jsonl`:")[2]
        .partition("\n\nWhat")[0]
    )
    assert [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)] == list(line)


def test_tables_of_roles_and_symbols_are_complete(host: PluginHost) -> None:
    concepts, glossary = ((DOCS / name).read_text(encoding="utf-8") for name in ("concepts.md", "glossary.md"))
    assert [role for role, info in ROLES.items() if f"| `{role}` | `{info.slot}` |" not in concepts] == []
    rows = re.findall(r"^\| ([A-Z][\w, ]*) \|", glossary.partition("## Names")[0], re.MULTILINE)
    described = {symbol for row in rows for symbol in row.split(", ")}
    used = {symbol for spec in declared_tensors(host) for symbol in spec.dims if isinstance(symbol, str)}
    assert used <= described


# ------------------------------------------------------------------------------------------------------------------- links


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = [link.partition("#")[0] for link in links(page) if not re.match(r"https?:", link)]
    assert [link for link in targets if link and not (page.parent / link).exists()] == []


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, unread = set(), [DOCS / "README.md"]
    while unread:
        page = unread.pop()
        seen.add(page)
        found = {(page.parent / link.partition("#")[0]).resolve() for link in links(page) if not re.match(r"https?:", link)}
        unread += [one for one in found if one.suffix == ".md" and one.exists() and one not in seen]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page.resolve() not in seen] == []


def test_files_that_pages_name_exist() -> None:
    named = {
        path
        for page in PAGES
        for path in re.findall(r"`((?:medvlp_core|plugins|examples|tests)/[\w/.]+)`", page.read_text("utf-8"))
    }
    assert len(named) > 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_no_page_knows_this_machine() -> None:
    machine = re.compile(r"/(work|tmp|home|root)/")
    assert [str(page) for page in [ROOT / "README.md", *PAGES] if machine.search(page.read_text(encoding="utf-8"))] == []
