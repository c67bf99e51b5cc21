"""Runs that are killed or whose checkpoints are damaged resume to the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import killing
import pytest
from forked import Forked
from running import resume_run

import medvlp_core
from medvlp_core.errors import DataError
from medvlp_core.training.checkpoint import list_checkpoints, load_run
from medvlp_core.training.init_from import starting_vocabulary
from medvlp_core.training.resume import read_resume, set_aside_later


def killed(*words: str) -> str:
    """What ``killing.py`` prints."""
    process = Forked("killing", *words)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def test_runs_that_are_killed_end_with_the_same_bits() -> None:
    """With loader processes, with shares of unequal size, and with statistics that each process has of its own."""
    kinds = ["num_workers", "ddp3", "norms"]
    lines = killed(*kinds, "--kills", "1", "--steps", "8").splitlines()
    assert [line.partition(" kills of ")[0] for line in lines] == [f"{kind}: 1" for kind in kinds]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["one", "num_workers", "ddp", "ddp3", "norms"])
def test_runs_that_are_killed_many_times_end_with_the_same_bits(kind: str) -> None:
    assert killed(kind, "--kills", "20").startswith(f"{kind}: 20 kills of ")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (Path.unlink, "the file is missing"),
    (cut, "bytes, and"),
    (flip, "hash differs"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "progress.json"])
def test_a_damaged_file_is_named_with_the_checkpoint_before_it(
    run: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(run / "checkpoints/step-0000014" / name)
    with pytest.raises(DataError) as caught:
        read_resume(run)
    text = str(caught.value)
    assert text.startswith(f"[MV507] {run}/checkpoints/step-0000014/{name}: ")
    assert message in text
    hint = f"resume from an earlier checkpoint: medvlp pretrain --resume {run}/checkpoints/step-0000012"
    assert text.endswith(f"    hint: {hint}")
    assert read_resume(run / "checkpoints/step-0000012").step == 12


def test_a_checkpoint_that_is_damaged_too_is_not_proposed(run: Path) -> None:
    for path in list_checkpoints(run):
        cut(path / "model.safetensors")
    with pytest.raises(DataError) as caught:
        read_resume(run)
    assert str(caught.value).endswith("    hint: no earlier checkpoint of this run can be read: start a new run")


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
def test_damaged_metadata_is_named(run: Path, damage: Callable[[Path], None]) -> None:
    damage(run / "checkpoints/step-0000014/checkpoint.json")
    with pytest.raises(DataError, match=r"MV507.*step-0000014/checkpoint.json: [\s\S]*--resume .*step-0000012"):
        read_resume(run)


def test_the_checkpoint_before_a_damaged_one_leads_to_the_same_end(
    run: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = run / "checkpoints/step-0000014"
    flip(newest / "model.safetensors")
    torn = run / "checkpoints/.step-0000013.partial"
    shutil.copytree(newest, torn)
    (torn / "checkpoint.json").unlink()
    assert resume_run(run / "checkpoints/step-0000012", capsys)[0] == 0
    assert killing.content(run) == killing.content(whole)
    assert not torn.exists(), "left-overs are cleared away"


def test_loading_a_model_finds_damaged_weights_and_vocabularies(run: Path, tmp_path: Path) -> None:
    """Not what only resuming needs; the recipe may be edited."""
    checkpoint = run / "checkpoints/step-0000014"
    flip(checkpoint / "optimizer.safetensors")
    flip(checkpoint / "progress.json")
    load_run(run)
    for path in [checkpoint / "model.safetensors", checkpoint / "ema.safetensors", *(checkpoint / "tokenizer").iterdir()]:
        flip(path)
        with pytest.raises(DataError) as caught:
            load_run(run)
        assert f"[MV507] {path}: the file is not what was written: its hash differs\n" in str(caught.value)
        flip(path)
    flip(next((checkpoint / "tokenizer").iterdir()))
    begun = tmp_path / "begun.yaml"
    begun.write_text(killing.RECIPE + f"init_from: {{path: {run}}}\n")
    with pytest.raises(DataError, match=r"MV507.*tokenizer/.*hash differs"):
        starting_vocabulary(medvlp_core.plan(begun))


def test_a_checkpoint_may_be_named_from_inside_or_be_a_copy(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is newer than it is set aside."""
    shutil.copytree(run / "checkpoints/step-0000012", run / "checkpoints/best")
    monkeypatch.chdir(run / "checkpoints/step-0000012")
    for given in (Path("."), run / "checkpoints/best"):
        resume = read_resume(given)
        assert (resume.step, resume.folder.resolve()) == (12, run)
        before = {path.name for path in list_checkpoints(run)}
        set_aside_later(resume)
        assert before - {path.name for path in list_checkpoints(run)} == ({"step-0000014"} if given == Path(".") else set())


def test_a_torn_checkpoint_is_never_picked_up(run: Path) -> None:
    shutil.copytree(run / "checkpoints/step-0000014", run / "checkpoints/.step-0000099.partial")
    assert read_resume(run).step == 14
    shutil.rmtree(run / "checkpoints")
    assert read_resume(run).checkpoint is None, "killed before the first one: from the start"
