"""The two lines of an author, in a pytest of their own, for a distribution that is really laid out."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from broken_packages import PLUGIN
from laid_out import lay_out

from medvlp_core.testing import conformance

TWO_LINES = """\
from medvlp_core.testing import conformance

test_good = conformance("good_kit")
test_cut = conformance("cut_kit", known_failures={
    "cut_kit.gate:passes_gradients_on": "the encoder learns elsewhere",
    "cut_kit.gate:ignores_padding": "it passes",
})
test_bad = conformance("bad_kit")
test_missing = conformance("goot_kit")
test_wrong = conformance("good_kit", known_failures={"good_kit.gate:ignore_padding": "why"})
test_crash = conformance("crash_kit")
"""
CHECKS = "has_two or sound or padding or gradients or optional or bad or missing or wrong"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kit")
    lay_out(folder, "good_kit")
    lay_out(folder, "cut_kit", returns="FusedFeatures(fused_text_tokens=text_tokens.detach())")
    lay_out(folder, "crash_kit", returns="FusedFeatures(fused_text_tokens=text_token)")
    lay_out(folder, "bad_kit", plugin=PLUGIN + "raise RuntimeError('no licence file')\n")
    (folder / "test_two_lines.py").write_text(TWO_LINES, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    environment["MEDVLP_PLUGINS"] = "good_kit,cut_kit,bad_kit,crash_kit"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-vv",
        "-rA",
        "-p",
        "no:cacheprovider",
        "-k",
        CHECKS,
        "--rootdir",
        str(folder),
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def outcome(shown: str, case: str) -> str:
    (line,) = [line for line in shown.splitlines() if line.startswith(f"test_two_lines.py::{case} ")]
    found = re.search(r" (PASSED|FAILED|SKIPPED|XFAIL|ERROR)\b", line)
    assert found
    return found.group(1)


def test_one_case_for_each_check_of_each_component(shown: str) -> None:
    assert outcome(shown, "test_good[good_kit.gate-has_two_examples]") == "PASSED"
    assert outcome(shown, "test_good[good_kit.gate-passes_gradients_on]") == "PASSED"
    assert outcome(shown, "test_good[good_kit.gate-works_without_optional_inputs]") == "SKIPPED"
    assert "nothing that it needs is optional" in shown


def test_known_failures_are_expected_and_those_that_pass_fail(shown: str) -> None:
    assert outcome(shown, "test_cut[cut_kit.gate-passes_gradients_on]") == "XFAIL"
    assert "the encoder learns elsewhere (example 1 of cut_kit.gate: no gradient reaches text_tokens" in shown
    assert outcome(shown, "test_cut[cut_kit.gate-ignores_padding]") == "FAILED"
    assert "cut_kit.gate:ignores_padding: it is listed as a known failure and passes: take it off the list" in shown


def test_a_bundle_that_cannot_be_checked_is_one_failing_case_with_the_reason(shown: str) -> None:
    assert [outcome(shown, f"test_{name}") for name in ("bad", "missing", "wrong")] == ["FAILED"] * 3
    assert "[MV301] plugin 'bad_kit' (bad_kit 1.2): it could not be loaded\n    RuntimeError: no licence file" in shown
    assert "[MV301] there is no bundle 'goot_kit'\n    hint: did you mean 'good_kit'?" in shown
    assert "[MV302] known_failures names 'good_kit.gate:ignore_padding', and there is no such check" in shown
    assert "did you mean 'good_kit.gate:ignores_padding'?" in shown


def test_what_an_author_wrote_wrong_comes_with_its_traceback(shown: str) -> None:
    assert outcome(shown, "test_crash[crash_kit.gate-ignores_padding]") == "FAILED"
    assert "crash_kit/modules.py:9: NameError" in shown


def test_the_case_has_a_name_and_no_torch_is_needed_to_import_it() -> None:
    assert conformance("no_such_bundle").__name__ == "broken"
    code = "import sys, medvlp_core.testing\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
