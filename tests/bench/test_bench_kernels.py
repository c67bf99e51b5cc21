"""`medvlp bench kernels` on a toy op: what it writes, what it refuses, its exit codes, and how it does a first run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_op import install, new_space, write_toy

from medvlp_core.cli import main
from medvlp_core.kernels.benchmark_report import CSV_COLUMNS


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace that nobody has used, with the toy's module importable; only it is loaded beside the commands."""
    name = new_space()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MEDVLP_PLUGINS", f"bench,{name}")
    write_toy(tmp_path, name)
    return name


@pytest.fixture
def toy(space: str) -> Any:
    """The toy's module."""
    __import__(f"{space}_toy")
    return sys.modules[f"{space}_toy"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["bench", "kernels", "--device", "cpu", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_writes_what_it_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any) -> None:
    install(tmp_path, space, "GOOD")
    out = tmp_path / "result"
    code, printed, err = run(capsys, "--scale", "0.001", "--repeats", "2", "--out", str(out))
    assert code == 0
    assert "the batch is shrunk (--scale 1 takes all): A 4 of 4000, B 4 of 4000" in printed
    assert f"{space}.gate, forward + backward, against plain" in printed
    assert "  not timed: absent (A, B): far away" in printed
    assert "  not timed: failing (A, B): wrong or failed in the check: RuntimeError: no such unit" in printed
    assert "wrong or failed in the check: output" in printed
    assert "timing shape A (B=4 N=8) ..." in err
    assert sorted(path.name for path in out.iterdir()) == ["kernels.csv", "roofline.png", "summary.md"]
    assert ("wrong", 4) not in toy.CALLS

    with (out / "kernels.csv").open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        lines = list(reader)
        assert tuple(reader.fieldnames or ()) == CSV_COLUMNS
    assert len(lines) == 2 * (5 * 3 + 1)
    ours = next(line for line in lines if (line["contender"], line["direction"], line["shape"]) == ("ours", "both", "B"))
    assert (ours["dtype"], ours["sizes"], ours["rounds"], ours["baseline"]) == ("float32", "B=4 N=16", "2", "plain")
    assert float(ours["p20_ms"]) <= float(ours["median_ms"]) <= float(ours["p80_ms"])
    assert float(ours["share_of_floor"]) == pytest.approx(float(ours["floor_ms"]) / float(ours["median_ms"]), rel=1e-3)
    assert ours["peak_bytes"] == ""
    absent = next(line for line in lines if line["contender"] == "absent")
    assert (absent["reason"], absent["median_ms"], absent["ratio"], absent["rounds"]) == ("far away", "", "", "0")

    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "    medvlp bench kernels --device cpu --scale 0.001 --repeats 2\n" in summary
    assert "### Times, forward + backward" in summary
    assert str(tmp_path) not in summary
    with Image.open(out / "roofline.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_nothing_is_timed_while_ours_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any) -> None:
    install(tmp_path, space, "RED")
    out = tmp_path / "result"
    code, printed, err = run(capsys, "--out", str(out))
    assert code == 1
    assert "nothing is timed: what is ours gives wrong numbers\n" in err
    assert f"    {space}.gate, shape A, small: detached: gradient of w 1.0e+00 (at most 1e-04)\n" in err
    assert "rates of the device" not in printed
    assert {batch for _, batch in toy.CALLS} == {3}  # only the check called anything
    assert not out.exists()


def test_one_op_shape_and_direction(capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str) -> None:
    install(tmp_path, space, "GOOD")
    out = tmp_path / "result"
    wanted = ["--op", f"{space}.gate", "--shape", "B", "--direction", "forward"]
    code, printed, _ = run(capsys, *wanted, "--scale", "0.001", "--repeats", "1", "--out", str(out))
    assert code == 0
    assert "backward" not in printed.partition("rates")[2]
    with (out / "kernels.csv").open(encoding="utf-8", newline="") as stream:
        assert {(line["shape"], line["direction"]) for line in csv.DictReader(stream)} == {("B", "forward")}


def test_without_matplotlib_there_is_no_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    install(tmp_path, space, "GOOD")
    code, printed, err = run(capsys, "--scale", "0.001", "--repeats", "1", "--out", str(tmp_path / "result"))
    assert code == 0
    assert "roofline.png is skipped: matplotlib is not installed (pip install matplotlib)" in err
    assert printed.rstrip().endswith("kernels.csv, summary.md")


def test_wrong_names_are_found_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any
) -> None:
    install(tmp_path, space, "GOOD")
    code, _, err = run(capsys, "--op", f"{space}.gat")
    assert (code, err) == (2, f"medvlp bench: there is no op '{space}.gat'\n    hint: did you mean '{space}.gate'?\n")
    assert run(capsys, "--op", f"{space}.bare")[0] == 2
    code, _, err = run(capsys, "--shape", "Z")
    assert (code, err) == (2, "medvlp bench: there is no shape 'Z'\n    hint: shapes: A, B\n")
    assert main(["bench", "engines"]) == 2
    assert run(capsys, "--scale", "2")[0] == 2
    assert run(capsys, "--repeats", "0")[0] == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    assert run(capsys, "--out", str(tmp_path / "full"))[0] == 1
    assert toy.CALLS == []


def test_without_any_benchmark(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLP_PLUGINS", "bench")
    code, _, err = run(capsys)
    assert (code, err) == (2, "medvlp bench: no plugin registers a kernel that has a benchmark\n")


# ------------------------------------------------------------------------------------------------------------------- first run


def first_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["bench", "kernels", "--first-run", *arguments])
    return code, capsys.readouterr().err


def test_a_first_run_is_what_the_op_names(capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any) -> None:
    install(tmp_path, space, "GOOD")
    out = tmp_path / "result"
    assert first_run(capsys, "--rehearse", "--minutes", "3", "--steps", "check", "--out", str(out)) == (0, "")
    assert toy.RUNS == [(3.0, ["check"], True)]
    assert [path.name for path in out.iterdir()] == ["summary.md"]
    assert first_run(capsys, "--rehearse", "--out", str(tmp_path / "again"))[0] == 1, "what is red is an error"
    assert toy.RUNS[1:] == [(9.0, ["check", "red"], True)]
    assert first_run(capsys, "--rehearse", "--out", str(out))[0] == 1, "the folder is not empty"
    assert len(toy.RUNS) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--first-run", "--steps", "chek"], "a first run has no step 'chek'\n    hint: did you mean 'check'?"),
        (["--first-run", "--op", "{space}.bare"], "the op '{space}.bare' has no first run\n    hint: did you mean"),
        (["--first-run", "--shape", "A", "--direction", "both"], "--first-run chooses devices, shapes and rounds itself: leave "),
        (["--rehearse"], "--rehearse belongs to a first run\n    hint: medvlp bench kernels --first-run --rehearse ..."),
        (["--minutes", "3"], "--minutes belongs to a first run"),
    ],
)
def test_impossible_options_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any, options: list[str], message: str
) -> None:
    install(tmp_path, space, "GOOD")
    out = tmp_path / "result"
    assert main(["bench", "kernels", "--out", str(out), *(one.replace("{space}", space) for one in options)]) == 2
    assert capsys.readouterr().err.startswith("medvlp bench: " + message.replace("{space}", space))
    assert (toy.RUNS, out.exists()) == ([], False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_rehearsed_or_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any) -> None:
    install(tmp_path, space, "GOOD")
    out = tmp_path / "result"
    message = "medvlp bench: torch finds no GPU here (--rehearse tries the first run without one)\n"
    assert first_run(capsys, "--out", str(out)) == (2, message)
    assert (toy.RUNS, out.exists()) == ([], False)
