"""How problems are collected and shown."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import pytest
import torch

from medvlp_core.errors import DataError, Diagnostics, Position, Problem, SpecError, describe_error, did_you_mean


def test_anatomy_of_a_message() -> None:
    problem = Problem(
        code="MV203",
        text="model.fusion (mpma.memory_fusion): heads=8 must divide Dt, and Dt is 500",
        position=Position("configs/mixed.yaml", 14, 12),
        details=("Dt=500 comes from standard.hf_text (configs/mixed.yaml:9:19)",),
        hint="4, 5 or 10 heads divide 500",
    )
    assert str(problem) == (
        "configs/mixed.yaml:14:12 [MV203] model.fusion (mpma.memory_fusion): heads=8 must divide Dt, and Dt is 500\n"
        "    Dt=500 comes from standard.hf_text (configs/mixed.yaml:9:19)\n"
        "    hint: 4, 5 or 10 heads divide 500"
    )


def test_codes_are_a_closed_list() -> None:
    with pytest.raises(ValueError, match="unknown message code 'MV999'"):
        Problem(code="MV999", text="?")


def test_a_report_raises_all_errors_in_file_order_and_keeps_warnings_apart() -> None:
    diagnostics = Diagnostics()
    diagnostics.add("MV102", "second", at=Position("b.yaml", 7, 1))
    diagnostics.add("MV101", "first", at=Position("b.yaml", 2, 1))
    diagnostics.add("MV102", "second", at=Position("b.yaml", 7, 1))  # the same again is kept once
    diagnostics.add("MV208", "unused", is_warning=True)
    with pytest.raises(SpecError) as caught:
        diagnostics.raise_errors()
    assert [problem.text for problem in caught.value.problems] == ["first", "second"]
    assert [problem.text for problem in diagnostics.warnings] == ["unused"]
    assert str(diagnostics.warnings[0]) == "[MV208] warning: unused"


def test_warnings_alone_do_not_raise() -> None:
    diagnostics = Diagnostics()
    diagnostics.add("MV208", "unused", is_warning=True)
    diagnostics.raise_errors()
    assert not diagnostics.has_errors


def test_errors_survive_pickling() -> None:
    error = DataError(Problem(code="MV501", text="a.png: cut off"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("heds", ("heads", "slots"), "did you mean 'heads'? other parameters: slots"),
        ("heads", ("heads",), "did you mean 'heads'?"),
        ("zzz", ("heads", "slots"), "parameters: heads, slots"),
        ("zzz", (), "there are no parameters"),
    ],
)
def test_hints(name: str, known: tuple[str, ...], hint: str) -> None:
    assert did_you_mean(name, known, what="parameters") == hint


def test_the_place_of_an_error_is_the_authors_line_and_not_the_librarys() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(3, 4)(torch.zeros(2, 5))
    line = Path(__file__).read_text().splitlines().index("        torch.nn.Linear(3, 4)(torch.zeros(2, 5))") + 1
    assert describe_error(caught.value).endswith(f"(in test_errors.py, line {line})")


def test_the_place_of_an_error_in_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    for name, text in {
        "placed_author": "import placed_library\ndef forward():\n    placed_library.read()",
        "placed_library": "def read():\n    raise KeyError('width')",
    }.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    forward = importlib.import_module("placed_author").forward
    with pytest.raises(KeyError) as caught:
        forward()
    as_the_core_catches_it = caught.value.with_traceback(caught.tb.tb_next)  # without the line of this test
    assert describe_error(as_the_core_catches_it) == "KeyError: 'width' (in __init__.py, line 3)"
