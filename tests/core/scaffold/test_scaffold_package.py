"""``medvlp new``: what it writes is whole and clean, what it refuses says why. That it works: tests/e2e/test_e2e_scaffold.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medvlp_core.cli import main
from medvlp_core.errors import PluginError
from medvlp_core.plugins.host import PluginHost
from medvlp_core.scaffold.package import LONGEST_NAME, NewPackage, describe, render, write
from medvlp_core.spec.roles import ROLES, Role

WRITTEN = """\
acme: a package with a fusion, acme.gated_sum
  README.md
  acme/__init__.py
  acme/fusion.py
  acme/plugin.py
  acme/presets/small.yaml
  acme/py.typed
  acme/specs.py
  pyproject.toml
  tests/test_acme.py
next:
  python -m pip install -e acme
  medvlp check acme:small
  medvlp conform acme
  medvlp pretrain acme:small --set train.steps=20
"""

SPELLING = "use lower-case letters, digits and single _ between them, a letter first: e.g."

REFUSED = {
    "acme --role fuson": (
        "[MV305] there is no role 'fuson'\n    hint: did you mean 'fusion'? other roles: alignment, data, decoder, evaluator, "
        "image_encoder, masking, part, text_encoder, tokenizer\n"
    ),
    "Acme-Fusion --role fusion": (f"[MV305] 'Acme-Fusion' cannot name a package\n    hint: {SPELLING} acme_fusion\n"),
    "acme_ --role fusion": (f"[MV305] 'acme_' cannot name a package\n    hint: {SPELLING} acme\n"),
    "mpma --role fusion": (
        "[MV305] the namespace 'mpma' belongs to medvlp-mpma\n    hint: take a name of your own, e.g. my_mpma\n"
    ),
    "class --role fusion": "[MV305] 'class' is a keyword of Python and cannot name a package\n    hint: e.g. my_class\n",
    "json --role fusion": (
        "[MV305] 'json' is a module of Python's standard library, which the package would shadow\n"
        "    hint: take a name of your own, e.g. my_json\n"
    ),
    "torch --role fusion": (
        "[MV305] there is already a package 'torch' in this environment, which the new one would shadow\n"
        "    hint: take a name of your own, e.g. my_torch\n"
    ),
    "tests --role fusion": (
        "[MV305] 'tests' is the folder of the new package's own tests\n    hint: take a name of your own, e.g. my_tests\n"
    ),
    f"{'a' * 41} --role fusion": f"[MV305] '{'a' * 41}' has 41 letters\n    hint: use at most 40\n",
    "kit --role fusion": (
        "[MV305] the namespace 'kit' belongs to the conformance kit\n    hint: take a name of your own, e.g. my_kit\n"
    ),
    "acme --role fusion --component none": (
        "[MV305] --component none makes a class None, and that is a keyword of Python\n"
        "    hint: take a more telling name, e.g. gated_sum\n"
    ),
    "acme --role fusion --component Gate": (f"[MV305] 'Gate' cannot name a component\n    hint: {SPELLING} gate\n"),
    "acme --role fusion --component fusion": (
        "[MV305] --component fusion makes a class Fusion, and the module has another one of that name\n"
        "    hint: take a more telling name, e.g. gated_sum\n"
    ),
    "acme --role image_encoder --component block": (
        "[MV305] --component block makes a class Block, and the module has another one of that name\n"
        "    hint: take a more telling name, e.g. conv_patches\n"
    ),
    "acme --role fusion --out used": (
        "[MV305] used: the folder is not empty\n    hint: name a new folder with --out; nothing is ever overwritten\n"
    ),
    "acme --role fusion --out used/file": "[MV305] used/file is a file\n    hint: name a folder with --out\n",
    "acme --role fusion --out used/file/acme": (
        "[MV305] used/file/acme cannot be written: Not a directory\n    hint: name another folder with --out\n"
    ),
    "9 --role fuson --component 8": (
        "[MV305] there is no role 'fuson'\n    hint: did you mean 'fusion'? other roles: alignment, data, decoder, evaluator, "
        "image_encoder, masking, part, text_encoder, tokenizer\n"
        f"[MV305] '9' cannot name a package\n    hint: {SPELLING} acme_fusion\n"
        f"[MV305] '8' cannot name a component\n    hint: {SPELLING} acme_fusion\n"
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty working folder with one folder in use."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    return tmp_path


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_it_writes_a_package_and_says_what_comes_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "acme", "--role", "fusion"]) == 0
    assert capsys.readouterr().out == WRITTEN
    assert [path for path in everything(folder / "acme") if (folder / "acme" / path).is_file()] == sorted(
        line.strip() for line in WRITTEN.splitlines()[1:10]
    )
    assert "MEDVLP_INTERFACE = 2\n" in (folder / "acme/acme/plugin.py").read_text()
    assert (folder / "acme/tests/test_acme.py").read_text().splitlines()[2:] == [
        "from medvlp_core.testing import conformance",
        "",
        'test_acme = conformance("acme")',
    ]


@pytest.mark.parametrize("words", REFUSED)
def test_what_it_refuses_says_why_and_leaves_nothing(words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(folder)
    assert main(["new", *words.split()]) == 1
    assert capsys.readouterr().err == REFUSED[words]
    assert everything(folder) == before
    assert (folder / "used/file").read_text() == "mine"


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "empty folder"])
def test_a_full_disk_leaves_nothing_half_written(
    there: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, host: PluginHost
) -> None:
    target = folder / "deep" / "acme"
    if there:
        target.mkdir(parents=True)
    real = Path.write_bytes

    def full(path: Path, content: Any) -> int:
        if path.name == "specs.py":
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PluginError, match="acme cannot be written: No space left on device"):
        write(render(describe("acme", "fusion", None, host)), target)
    assert everything(folder) == (["deep", "deep/acme"] if there else []) + ["used", "used/file"]


def test_an_empty_folder_is_filled(folder: Path) -> None:
    (folder / "acme").mkdir()
    assert main(["new", "acme", "--role", "masking", "--component", "by_sentence"]) == 0
    assert "class BySentence(Masking):" in (folder / "acme/acme/masking.py").read_text()


def test_every_role_has_a_template_that_is_clean_with_long_and_short_names(tmp_path: Path) -> None:
    assert set(ROLES) == set(Role)
    for role in Role:
        for name, component in (("x", "y"), ("a" * LONGEST_NAME, "b" * LONGEST_NAME)):
            write(render(NewPackage(name=name, role=role, component=component)), tmp_path / role.value / name)
    written = list(tmp_path.rglob("*.*"))
    assert len(written) > 18 * 8
    assert [path.name for path in written if path.suffix == ".tmpl" or "NAME" in str(path)] == []
    assert [path for path in written if path.suffix != ".jpg" and "$" in path.read_text()] == []
    ruff = [sys.executable, "-m", "ruff"]
    rules = "--select=E,F,W,I,B,UP,SIM,C4,RET,PIE,PT,RUF"
    for command in (["check", rules, "--output-format=concise"], ["format", "--check"]):
        done = subprocess.run([*ruff, *command, str(tmp_path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
