"""``medvlp conform``: what it prints and what it returns."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from broken_packages import PLUGIN
from laid_out import lay_out

from medvlp_core.cli import main
from medvlp_core.testing.check_modules import CHECKS
from medvlp_core.testing.checks import Group

Run = tuple[int, str, str]


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "good_gate")
    lay_out(tmp_path, "cut_gate", returns="FusedFeatures(fused_text_tokens=text_tokens.detach())")
    lay_out(tmp_path, "lost_gate", returns="FusedFeatures(fused_text_tokens=text_token)")
    lay_out(tmp_path, "bad_gate", plugin=PLUGIN + "raise RuntimeError('no licence file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MEDVLP_PLUGINS", "good_gate,cut_gate,lost_gate,bad_gate")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Run:
    code = main(["conform", *arguments])
    captured = capsys.readouterr()
    return code, re.sub(r"\(\d+(\.\d+)? s\)", "(... s)", captured.out), captured.err


def test_what_passes_is_quiet_and_counted(capsys: pytest.CaptureFixture[str], bundles: None) -> None:
    code, out, error = run(capsys, "good_gate", "--check", "ignores_padding")
    assert (code, out, error) == (0, "good_gate.gate\ngood_gate: 1 passed (... s)\n", "")


def test_what_fails_is_said(capsys: pytest.CaptureFixture[str], bundles: None) -> None:
    code, out, error = run(capsys, "cut_gate", "--check", "passes_gradients_on")
    assert code == 1
    assert error == ""
    assert out == (
        "cut_gate.gate\n"
        "  FAILED passes_gradients_on\n"
        "    example 1 of cut_gate.gate: no gradient reaches text_tokens; is there a detach() or a no_grad()?\n"
        "cut_gate: 1 failed (... s)\n"
    )


def test_one_fault_that_many_checks_meet_is_said_once(capsys: pytest.CaptureFixture[str], bundles: None) -> None:
    code, out, _ = run(capsys, "lost_gate", "--component", "lost_gate.gate")
    assert code == 1
    assert out.count("NameError: name 'text_token' is not defined (in modules.py, line 9)\n") == 1
    assert re.search(r"^  \d+ more checks fail as \w+: gives_the_declared_shapes, ", out, flags=re.MULTILINE)
    assert out.count("FAILED") < 4
    assert re.fullmatch(r"lost_gate: \d+ passed, \d+ failed, \d+ not applicable \(\.\.\. s\)", out.splitlines()[-1])


def test_verbose_shows_what_passed_and_what_does_not_apply(capsys: pytest.CaptureFixture[str], bundles: None) -> None:
    shown = [run(capsys, "good_gate", "--verbose", "--check", one)[1] for one in ("ignores_padding", "reports_the_declared_sizes")]
    assert shown == [
        "good_gate.gate\n  passed ignores_padding (... s)\ngood_gate: 1 passed (... s)\n",
        "good_gate.gate\n  not applicable reports_the_declared_sizes: it has no dims()\ngood_gate: 1 not applicable (... s)\n",
    ]


def test_a_check_of_another_role_says_so(capsys: pytest.CaptureFixture[str], bundles: None) -> None:
    hint = "    hint: `medvlp conform --checks` says for which roles each check is\n"
    text = "medvlp conform: keeps_raster_order is not for any component of good_gate\n"
    assert run(capsys, "good_gate", "--check", "keeps_raster_order") == (2, "", text + hint)
    *_, error = run(capsys, "good_gate", "--component", "good_gate.gate", "--check", "keeps_raster_order")
    assert error == "medvlp conform: keeps_raster_order is not for good_gate.gate\n" + hint


def test_wrong_names_are_answered_with_the_nearest(capsys: pytest.CaptureFixture[str], bundles: None) -> None:
    assert run(capsys, "good_gat") == (
        2,
        "",
        "[MV301] there is no bundle 'good_gat'\n    hint: did you mean 'good_gate'? other installed bundles: cut_gate, lost_gate\n",
    )
    code, out, error = run(capsys, "good_gate", "--component", "good_gate.gates")
    assert (code, out) == (2, "")
    assert error == "medvlp conform: good_gate has no component 'good_gate.gates'\n    hint: did you mean 'good_gate.gate'?\n"
    code, out, error = run(capsys, "good_gate", "--check", "ignore_padding")
    assert (code, out) == (2, "")
    told = "`medvlp conform --checks` lists them\n"
    text = "medvlp conform: there is no check 'ignore_padding'\n    hint: did you mean 'ignores_padding'? "
    assert error == text + told
    assert run(capsys, "good_gate", "--check", "xyz")[2] == f"medvlp conform: there is no check 'xyz'\n    hint: {told}"
    code, out, error = run(capsys)
    assert (code, out, error.splitlines()[0]) == (2, "", "medvlp conform: which bundle?")


def test_a_broken_bundle_says_what_keeps_it_from_being_loaded(capsys: pytest.CaptureFixture[str], bundles: None) -> None:
    code, out, error = run(capsys, "bad_gate")
    assert (code, out) == (1, "")
    assert error.splitlines()[:2] == [
        "[MV301] plugin 'bad_gate' (bad_gate 1.2): it could not be loaded",
        "    RuntimeError: no licence file (in plugin.py, line 10)",
    ]


def test_the_list_of_checks(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--checks")
    assert code == 0
    lines = out.splitlines()
    assert [line.removesuffix(":") for line in lines if not line.startswith(" ")] == list(typing.get_args(Group))
    assert [line.split()[0] for line in lines if line.startswith(" ")] == list(CHECKS)
    (line,) = [line for line in lines if line.startswith("  gives_the_declared_losses ")]
    assert line.endswith("A call returns exactly the loss terms of its contract, each a finite scalar. [alignment, decoder]")
