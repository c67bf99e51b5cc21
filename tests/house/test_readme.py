"""The README's two commands are what CI runs, and they install everything that is here."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import medvlp_core
from medvlp_core.errors import Diagnostics
from medvlp_core.recipe.load import parse_override

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
BUNDLES = sorted(path.parent.parent.name for path in ROOT.glob("plugins/*/*/plugin.py"))


def test_there_are_two_commands_of_one_line() -> None:
    assert len(COMMANDS) == 2
    assert [command.count("\n") for command in COMMANDS] == [1, 1]
    assert README.count("```sh") == 2


def test_ci_runs_exactly_these() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    [awk] = re.findall(r"awk '([^']*)' README\.md", script)
    done = subprocess.run(["awk", awk, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [command.removesuffix("\n") for command in COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_both_install_the_core_and_every_bundle(command: str) -> None:
    assert len(BUNDLES) >= 3
    assert sorted(re.findall(r"-e plugins/(\w+)", command)) == BUNDLES
    assert re.search(r"-e (\.|\"\.\[tests\]\") ", command)
    assert command.startswith("python3 -m venv .venv && ")


@pytest.mark.parametrize("command", COMMANDS)
def test_both_install_the_tested_versions_and_build_with_one_of_them(command: str) -> None:
    installs = re.findall(r"pip install (.*?) &&", command)
    assert len(installs) >= 2
    assert all(install.startswith("-c constraints.txt ") for install in installs)
    assert installs[0].endswith(" setuptools")
    assert all("--no-build-isolation" in install for install in installs if " -e " in install)


def test_the_commands_name_files_and_extras_that_exist() -> None:
    first, second = COMMANDS
    assert (ROOT / first.split()[-1]).is_file()
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]\n")[2]
    [wanted] = re.findall(r"\.\[(\w+)\]", second)
    assert re.search(rf"^{wanted} = \[", extras, re.MULTILINE)
    assert second.rstrip().endswith("-m pytest -n 2 --dist worksteal")


ABLATIONS = re.findall(r"^python examples/pretrain_mpma\.py (.*)$", README, re.MULTILINE)


@pytest.mark.parametrize("words", ABLATIONS)
def test_the_ablations_can_be_planned_as_they_stand(words: str) -> None:
    parts = shlex.split(words)
    diagnostics = Diagnostics()
    changes = [(kind.removeprefix("--"), text) for kind, text in zip(parts[::2], parts[1::2], strict=True)]
    overrides = [parse_override(kind, text, diagnostics) for kind, text in changes]  # type: ignore[arg-type]
    plan = medvlp_core.plan(ROOT / "examples" / "configs" / "mpma_small.yaml", [one for one in overrides if one is not None])
    assert len(ABLATIONS) >= 4
    assert plan.calls


@pytest.mark.parametrize("change", ["model.fusion=standard.cross_attention", "model.masking=standard.random"])
def test_swaps_need_no_further_parameter(change: str) -> None:
    override = parse_override("use", change, Diagnostics())
    assert override is not None
    assert not medvlp_core.plan("mpma:small", [override]).warnings
