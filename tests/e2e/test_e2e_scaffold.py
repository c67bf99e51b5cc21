"""What ``medvlp new`` writes works, and so does the tutorial's bundle: both are installed and used as a third party would do it.

One package of every role and examples/acme_fusion are installed with one pip command, without a network, into a fresh virtual
environment beside the framework; everything below runs there, in processes of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from medvlp_core.spec.roles import ROLES, Role

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "acme_fusion"
NAMES = {f"my_{role}": role for role in Role}
Run = Callable[..., subprocess.CompletedProcess[str]]

#: Every new component in one model; what else it needs comes from mpma:small.
RECIPE = """\
medvlp: 1
extends: mpma:small
requires: [{names}]
data: {{use: my_data.folder_pairs, text_kind: qa}}
tokenizer: {{use: my_tokenizer.word_table, vocab_size: 300}}
model:
  masking: {{use: my_masking.block_and_words}}
  image_encoder: {{use: my_image_encoder.conv_patches, width: 32}}
  text_encoder: {{use: my_text_encoder.plain_transformer, width: 32}}
  fusion: {{use: my_fusion.gated_sum}}
  parts: {{pool: {{use: my_part.attention_pool}}}}
  alignments: {{gla: null, pairs: {{use: my_alignment.triplet_margin, needs: {{image_tokens: pool.pooled_tokens}}}}}}
  decoders: {{image: null, words: {{use: my_decoder.bag_of_words}}}}
evaluators:
  choice: {{use: my_evaluator.pair_choice}}
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages, and the environment ``venv`` where they are installed."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, role in NAMES.items():
        command = [sys.executable, "-m", "medvlp_core.cli", "new", name, "--role", role]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(EXAMPLE, folder / EXAMPLE.name, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    # pip, torch and the framework are seen through a line in a .pth file; what is installed goes into the new environment.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "venv"], cwd=folder, check=True)
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "framework.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*pip, *(f"./{name}" for name in (*NAMES, EXAMPLE.name))], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(workshop: Path) -> Run:
    """Run Python in that environment: ``run("-m", "pytest")``; ``run("check", "acme:small")`` is the command ``medvlp``.

    Names in capitals set environment variables.
    """
    unset = ("MEDVLP_PLUGINS", "PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(workshop / "venv/bin/python"), *(() if words[0] == "-m" else ("-m", "medvlp_core.cli")), *words]
        environ = environment | variables
        return subprocess.run(command, cwd=workshop, env=environ, capture_output=True, text=True, timeout=300, check=False)

    return run


def test_they_are_listed(run: Run) -> None:
    done = run("list")
    assert done.stderr == ""
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    assert {f"{name}.{ROLES[role].template}" for name, role in NAMES.items()} | {"acme_fusion.gated_attention"} <= listed
    assert {f"{name}:small" for name in (*NAMES, "acme_fusion")} <= listed


@pytest.mark.parametrize("name", [*NAMES, "acme_fusion"])
def test_their_presets_can_be_planned_without_a_warning(name: str, run: Run) -> None:
    done = run("check", f"{name}:small")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"{name}:small: ok, ")


def test_they_conform(workshop: Path, run: Run) -> None:
    """The two lines that each package has, in one process. Without a known failure."""
    tests = sorted(str(path.relative_to(workshop)) for path in workshop.glob("*/tests/test_*.py"))
    assert len(tests) == len(Role) + 1
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", f"--rootdir={workshop}", *tests)
    assert done.returncode == 0, done.stdout
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert counts["passed"] > 10 * len(tests)
    assert "xfailed" not in counts


def test_they_train_together_from_yaml(workshop: Path, run: Run) -> None:
    (workshop / "all.yaml").write_text(RECIPE.format(names=", ".join(NAMES)))
    assert [name for name, role in NAMES.items() if f"{name}.{ROLES[role].template}" not in RECIPE] == []
    changes = ["--set", "train={steps: 4, batch_size: 4, log_every_steps: 1}"]
    for name in ("reconstruction", "zero_shot", "linear_probe", "loss_curves", "reconstruction_pictures", "report_pictures"):
        changes += ["--unset", f"evaluators.{name}"]
    done = run("pretrain", "all.yaml", *changes, "--out", "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (workshop / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert set(lines[0]["losses"]) == {"pairs.triplet", "words.words", "report.mlm"}
    cards = {card["evaluator"]: card for card in json.loads((workshop / "run/evaluation.json").read_text())["results"]}
    assert cards["choice"]["problem"] is None
    assert set(cards["choice"]["rows"][0]["baselines"]) == {"chance", "random weights"}


# ------------------------------------------------------------------------------------------------------------------ tutorial


def steady(text: str) -> str:
    """Without what changes with every comment in a preset, every new check and every machine."""
    text = re.sub(r"(mpma:\w+):\d+:\d+", r"\1", text)
    return re.sub(r"\d+ (passed|not applicable|s\))", r"N \1", text).strip()


def test_the_tutorial_shows_what_its_commands_print(workshop: Path, run: Run, tmp_path: Path) -> None:
    """Its commands in their order; after the mistake, one block runs with the broken module in front of the installed one."""
    parts = re.split(r"^## ", (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    page = "".join(part for part in parts if "acme_fusion" in part)
    variables = {"MEDVLP_PLUGINS": "standard,mpma,open_cxr,acme_fusion"}
    count = 0
    for language, text in re.findall(r"^```(diff|console)[^\n]*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        if language == "diff":
            [old], [new] = (re.findall(rf"^{re.escape(sign)}(.*)$", text, re.MULTILINE) for sign in "-+")
            shutil.copytree(workshop / "acme_fusion" / "acme_fusion", tmp_path / "acme_fusion")
            variables["PYTHONPATH"], module = str(tmp_path), tmp_path / "acme_fusion" / "fusion.py"
            module.write_text(module.read_text().replace(f"\n{old}\n", f"\n{new}\n"))
            continue
        printed = ""
        for line in re.findall(r"^\$ medvlp (.*)$", text, re.MULTILINE):
            new_package = line.startswith("new ")  # that name is installed already in the workshop
            done = framework(line, tmp_path) if new_package else run(*line.split(), **variables)
            printed += f"$ medvlp {line}\n{done.stdout}{done.stderr}"
            count += 1
        variables.pop("PYTHONPATH", None)
        pattern = ".*".join(re.escape(part) for part in steady(text).split("..."))
        assert re.fullmatch(pattern, steady(printed), re.DOTALL), f"shown:\n{steady(text)}\nprinted:\n{steady(printed)}"
    assert count >= 9


def framework(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A ``medvlp`` command in the environment of the tests, in an empty folder."""
    (folder / "new").mkdir()
    command = [sys.executable, "-m", "medvlp_core.cli", *line.split()]
    return subprocess.run(command, cwd=folder / "new", capture_output=True, text=True, check=False)
