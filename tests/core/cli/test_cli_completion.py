"""What a shell offers on Tab: the words, and the script of bash in a bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medvlp_core.cli import BUNDLE_COMMANDS, COMMANDS, main
from medvlp_core.cli.completion import SCRIPTS
from medvlp_core.cli.completion_words import split_line
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.roles import Role

Output = Any


def words_for(capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    """The words that are offered at the end of a line."""
    assert main(["completion", "bash", "--line", line]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_a_line_is_cut_into_words() -> None:
    assert split_line("medvlp ") == [""]
    assert split_line("A=1 B=2 medvlp check 'a b' --us") == ["check", "a b", "--us"]
    assert split_line("medvlp check 'open") == ["check", "'open"]
    assert split_line("medvlp") == []


def test_commands(capsys: Output) -> None:
    assert [word for word in words_for(capsys, "medvlp ") if not word.startswith("-")] == sorted([*COMMANDS, *BUNDLE_COMMANDS])
    assert words_for(capsys, "medvlp ch") == ["check"]
    assert words_for(capsys, "medvlp nothing ") == []


def test_presets_and_recipe_files(capsys: Output, host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for name in ("mine.yaml", "mine.txt", "configs/one.yml"):
        (tmp_path / name).touch()
    assert words_for(capsys, "medvlp check ") == [*sorted(host.presets), "configs/", "mine.yaml"]
    assert words_for(capsys, "medvlp diff mpma:small configs/") == ["configs/one.yml"]
    assert words_for(capsys, "medvlp pretrain gone/") == []
    assert words_for(capsys, "medvlp pretrain mpma:small --out ") == []  # the shell offers its files


def test_options_and_choices(capsys: Output) -> None:
    assert words_for(capsys, "medvlp check --u") == ["--unset", "--use"]
    assert words_for(capsys, "medvlp list --role ") == [str(role) for role in Role]
    assert words_for(capsys, "medvlp list --role=fu") == ["--role=fusion"]
    assert words_for(capsys, "medvlp bench k") == ["kernels"]
    assert "--dtype" in words_for(capsys, "medvlp bench kernels --")
    assert words_for(capsys, "medvlp completion ") == list(SCRIPTS)


def test_names_of_components_and_bundles(capsys: Output, host: PluginHost) -> None:
    assert words_for(capsys, "medvlp show mpma.memory") == ["mpma.memory_fusion"]
    assert words_for(capsys, "medvlp show mpma:") == ["mpma:base", "mpma:small"]
    assert words_for(capsys, "medvlp conform ") == [plugin.namespace for plugin in host.plugins]


def test_overrides(capsys: Output, host: PluginHost) -> None:
    assert words_for(capsys, "medvlp check mpma:small --use model.fu") == ["model.fusion="]
    assert words_for(capsys, "medvlp check mpma:small --use model.fusion=standard.c") == [
        "model.fusion=standard.concat_attention",
        "model.fusion=standard.cross_attention",
    ]
    decoders = [f"model.decoders.new={name}" for name in host.components.of_role(Role.DECODER)]
    assert words_for(capsys, "medvlp check mpma:small --use model.decoders.new=") == decoders
    assert words_for(capsys, "medvlp check mpma:small --use model.al") == ["model.alignments.gla=", "model.alignments."]
    assert words_for(capsys, "medvlp check mpma:small --set model.fusion.he") == ["model.fusion.heads="]
    assert words_for(capsys, "medvlp check --set train.batch") == ["train.batch_size="]
    assert words_for(capsys, "medvlp check mpma:small --json --unset model.alignments.gla.lo") != []
    assert words_for(capsys, "medvlp check gone.yaml --unset model") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("medvlp ch", ["check"]),
        ("medvlp check mpma:s", ["small"]),
        ("medvlp check mpma:small --use model.fusion=standard.cr", ["standard.cross_attention"]),
        ("medvlp check mpma:small --use=model.fusion=standard.cr", ["standard.cross_attention"]),
        ("medvlp check --un", ["--unset"]),
        ("medvlp check mpma:small --set train.batch", ["train.batch_size="]),
        ("medvlp pretrain mpma:small --out ", []),
    ],
)
def test_the_script_in_bash(line: str, reply: list[str], tmp_path: Path) -> None:
    command = tmp_path / "medvlp"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m medvlp_core.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    script = f'{SCRIPTS["bash"]}\nCOMP_LINE={line!r}\nCOMP_POINT=${{#COMP_LINE}}\n_medvlp\nprintf "%s\\n" "${{COMPREPLY[@]}}"\n'
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    # An interactive bash has COMP_WORDBREAKS; here it is given its usual value.
    breaks = "COMP_WORDBREAKS=$' \\t\\n\"\\'><=;|&(:'\n"
    done = subprocess.run(["bash", "-c", breaks + script], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    assert done.stdout.split() == reply


def test_the_scripts_are_printed(capsys: Output) -> None:
    for shell, script in SCRIPTS.items():
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == script
