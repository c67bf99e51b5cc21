"""docs/commands.md names every command, every exit code and the shape of every JSON document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medvlp_core.cli import COMMANDS, CommandParser, built_in, main, parser_of, plugin_commands

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)[^`]*` \| [^|]* \| (.*?) ?\|$", PAGE, re.MULTILINE))


def options(parser: CommandParser) -> set[str]:
    """Its long options."""
    return {option for action in parser._actions for option in action.option_strings if option.startswith("--")}


def test_every_command_has_a_row() -> None:
    assert set(COMMANDS) <= set(ROWS)
    assert set(ROWS) <= {*COMMANDS, *plugin_commands()}


@pytest.mark.parametrize("command", COMMANDS)
def test_options_in_a_row_exist(command: str) -> None:
    parser = parser_of(built_in(command))
    assert set(re.findall(r"`(--[\w-]+)", ROWS[command])) <= options(parser)
    assert ("--json" in options(parser)) == ("`--json`" in ROWS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_document_is_shown(command: str) -> None:
    section = PAGE.partition(f"\n## JSON of {command}\n")[2].partition("\n## ")[0]
    assert ("--json" in options(parser_of(built_in(command)))) == bool(section)
    assert not section or f"$ medvlp {command} " in section


def test_exit_codes_are_those_of_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    found = {main(["list"]), main(["show", "nothing"]), main(["chekc"]), main(["diff", "mpma:small", "nothing.yaml"])}

    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("medvlp_core.cli.fill.run", interrupt)
    assert sorted({*found, main(["fill", "mpma:small"]), 128 + 15}) == codes
    capsys.readouterr()
