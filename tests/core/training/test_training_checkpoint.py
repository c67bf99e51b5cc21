"""Checkpoint folders: which one is taken, and what a user hears about a broken one."""

import json
from pathlib import Path

import pytest

from medvlp_core.errors import DataError
from medvlp_core.training.checkpoint import FORMAT, find_checkpoint, list_checkpoints, load_run, prune_checkpoints
from medvlp_core.training.run_folder import check_run_folder, make_run_folder


def make(folder: Path, **metadata: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(json.dumps({"format": FORMAT, **metadata}))
    return folder


def test_a_run_folder_means_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (200, 1000, 999):
        make(tmp_path / "checkpoints" / f"step-{step:07d}")
    make(tmp_path / "checkpoints" / ".step-0009999.partial")
    assert find_checkpoint(tmp_path).name == "step-0001000"
    chosen = tmp_path / "checkpoints" / "step-0000200"
    assert find_checkpoint(chosen) == chosen


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no checkpoint"),
        ("{", "cannot be read"),
        ("[]", f"checkpoint format {FORMAT} is supported, found None"),
        ('{"format": 2}', f"checkpoint format {FORMAT} is supported, found 2"),
        (f'{{"format": {FORMAT}}}', "checkpoint.json: the file is not what was written: its hash differs"),
    ],
)
def test_a_broken_checkpoint_is_an_error_with_a_hint(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(DataError) as caught:
        load_run(tmp_path)
    text = str(caught.value)
    assert "[MV507]" in text
    assert message in text
    assert "hint: give a run folder" in text


def test_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [make_run_folder(None, "mpma_small") for _ in range(3)]
    assert len(set(made)) == 3, "two runs in the same second do not share a folder"
    assert all(path.is_dir() and path.parent == Path("runs") for path in made)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert make_run_folder(empty, "x") == empty
    (empty / "start.json").write_text("{}")
    assert make_run_folder(empty, "x") == empty, "killed before the recipe was there: there is no run to resume"
    (empty / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"MV508.*not empty"):
        make_run_folder(empty, "x")
    with pytest.raises(DataError, match=r"MV508.*cannot be made"):
        make_run_folder(empty / "notes.txt" / "run", "x")


def test_a_run_folder_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    for out, message in (
        ("", "name is empty"),
        (".", "not empty"),
        ("notes.txt", r"cannot be made \(Not a directory\)"),
        ("notes.txt/run", r"cannot be made \(.*notes.txt is not a folder\)"),
        ("x" * 300, "cannot be made"),
    ):
        with pytest.raises(DataError, match=f"MV508.*{message}"):
            check_run_folder(out)
    for good in (None, "new", Path("a/b/c")):
        check_run_folder(good)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(DataError, match=r"MV508.*may not be written"):
        check_run_folder("a/b")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_newest_and_the_best_checkpoints_stay(tmp_path: Path) -> None:
    losses = {100: 2.0, 200: 0.5, 300: None, 400: 0.7, 500: 0.6}
    for step, loss in losses.items():
        make(tmp_path / "checkpoints" / f"step-{step:07d}", validation=loss)
    make(tmp_path / "checkpoints" / ".step-0000450.partial")
    make(tmp_path / "checkpoints" / ".step-0000600.partial")
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        ".step-0000600.partial",  # maybe somebody writes it now
        "step-0000200",
        "step-0000400",
        "step-0000500",
    ]
    make(tmp_path / "checkpoints" / "step-0000600", validation=0.4)
    prune_checkpoints(tmp_path, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000600"], "a better one was found"


def test_without_losses_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make(tmp_path / "checkpoints" / f"step-{step:07d}")
    (tmp_path / "checkpoints/step-0000001/checkpoint.json").write_text("{")
    prune_checkpoints(tmp_path, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000003"]
