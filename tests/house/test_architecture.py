"""docs/architecture.md and the landing page name every folder of the core and every bundle, and which folders are torch-free."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LANDING = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[str]:
    """The folders in the first column of the table with this heading."""
    table = PAGE.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)/` \| \S", table, re.MULTILINE)


def light_folders() -> list[str]:
    """What the test of torch-free folders imports whole."""
    [path] = (ROOT / "tests" / "house").glob("test_light_*.py")
    [found] = re.findall(r"^LIGHT_FOLDERS = (\(.*?\))$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return list(ast.literal_eval(found))


def test_every_folder_of_the_core_has_a_line() -> None:
    folders = {path.parent.name for path in (ROOT / "medvlp_core").glob("*/__init__.py")}
    named = [*rows("torch-free"), *rows("with torch")]
    assert len(named) == len(set(named))
    assert set(named) == folders


def test_every_bundle_has_a_line() -> None:
    assert sorted(rows("bundle")) == sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))


def test_every_folder_of_tests_has_a_line() -> None:
    table = PAGE.partition("| folder | what it tests |")[2].partition("\n\n")[0]
    named = re.findall(r"`tests/(\w+)/`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").glob("*/**/*.py")}
    assert sorted(named) == sorted(folders)


def test_every_folder_at_the_top_has_a_line() -> None:
    table = PAGE.partition("| folder | what is in it |")[2].partition("\n\n")[0]
    named = {"medvlp_core", "plugins", *re.findall(r"^\| `([.\w]+)/` \| \S", table, re.MULTILINE)}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    folders = {path.partition("/")[0] for path in tracked if "/" in path} - {".github"}
    assert named == folders or not tracked  # a source archive has no list of files


def test_torch_free_folders_are_those_that_are_tested() -> None:
    assert rows("torch-free") == light_folders()
    [line] = re.findall(r"^\* Torch-free are whole folders: (.*)\.$", LANDING, re.MULTILINE)
    assert re.findall(r"`(\w+)`", line) == light_folders()


def test_files_that_the_landing_page_names_exist() -> None:
    named = re.findall(r"`((?:medvlp_core/|\.ci/)[\w/.]+)`", LANDING)
    assert len(named) >= 4
    assert [path for path in named if not (ROOT / path).exists()] == []
