"""What may be another when a run is resumed, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import killing
import pytest
from running import recipe_over, resume_run, write_manifest

import medvlp_core
from medvlp_core.cli import main
from medvlp_core.errors import DataError
from medvlp_core.training.resume import read_resume


def test_what_cannot_be_resumed_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume_run(whole, capsys) == (
        1,
        f"[MV508] {whole}: the run is finished\n"
        "    hint: to train longer, start a new run with init_from; to repeat the end, give one of its checkpoints\n",
    )
    assert resume_run(tmp_path, capsys) == (
        1,
        f"[MV508] {tmp_path}: there is no run to resume with: resolved.yaml is missing\n"
        "    hint: give the folder of a run, such as runs/mpma_small-20260101-120000\n",
    )


def test_a_changed_recipe_is_refused_with_every_change(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = run / "resolved.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    code, err = resume_run(
        run, capsys, "--set", "model.alignments.gla.dim=4", "--set", "train.num_workers=1", "--unset", "evaluators"
    )
    assert code == 1
    lines = err.splitlines()
    assert lines[0] == f"[MV508] {run}: the recipe is not that of the run"
    assert sorted(lines[1:3]) == [
        "    model.alignments.gla.dim: 8 in the run, 4 now",
        "    train.learning_rate: 0.001 in the run, 0.002 now",
    ]
    assert lines[3].startswith(
        "    hint: a resumed run may change data, evaluators, train.activation_checkpointing, train.num_workers, "
    )


def test_what_changes_nothing_that_is_learned_may_change(run: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = (
        "train.num_workers=2",
        "train.activation_checkpointing=true",
        "train.keep_checkpoints=7",
        "train.log_every_steps=3",
        "train.checkpoint_every_steps=5",
        "evaluators=null",
        "train.max_bad_steps=20",
        "train.trackers=[tensorboard]",
    )
    changes = [word for change in free for word in ("--set", change)]
    code, err = resume_run(run / "checkpoints/step-0000012", capsys, *changes)
    assert code == 0, err
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        last = f"checkpoints/step-0000014/{name}"
        assert (run / last).read_bytes() == (whole / last).read_bytes()
    assert medvlp_core.plan(run / "resolved.yaml").train.keep_checkpoints == 7, "the next start resumes with it"
    assert list((run / "tensorboard").iterdir())


def test_data_may_move(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    rows = write_manifest(here)
    write_manifest(there)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(recipe_over(here).replace("steps: 14", "steps: 4"))
    assert main(["pretrain", str(recipe), "--out", str(run), "--device", "cpu"]) == 0
    expected = killing.content(run)
    (run / "evaluation.json").unlink()
    shutil.rmtree(here)
    code, err = resume_run(run / "checkpoints/step-0000003", capsys)
    assert code == 1
    assert "here/pairs.jsonl" in err
    change = f"data.path={there}/pairs.jsonl"
    assert main(["pretrain", "--resume", str(run / "checkpoints/step-0000003"), "--device", "cpu", "--set", change]) == 0
    warning = f'warning: data.path was "{here}/pairs.jsonl" and is "{there}/pairs.jsonl": the pixels of the images are not compared'
    assert f"{warning}\n" in capsys.readouterr().out
    found = killing.content(run)
    assert {name for name in expected if found[name] != expected[name]} == {
        "resolved.yaml",
        "checkpoints/step-0000004/resolved.yaml",
    }
    (run / "evaluation.json").unlink()
    moved = there / "pairs.jsonl"
    moved.write_text(moved.read_text().replace(json.dumps(rows[20]["text"]), '"another text"'))
    code, err = resume_run(run, capsys)
    assert code == 1
    assert err.startswith(f"[MV508] {run}: the data are not those of the run: ids, texts, labels or splits have changed\n")


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_other_data_and_processes_are_refused(run: Path, has_checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_checkpoint:
        shutil.rmtree(run / "checkpoints")
    resume = read_resume(run)
    assert resume.step == (14 if has_checkpoint else 0)
    pipeline = type("Pipeline", (), {"source": type("Source", (), {"fingerprint": lambda self: "other"})()})()
    monkeypatch.setattr("medvlp_core.training.resume.launched_processes", lambda: 3)
    with pytest.raises(DataError) as caught:
        resume.check_compatible(pipeline)  # type: ignore[arg-type]
    text = str(caught.value)
    assert f"[MV508] {run}: the data are not those of the run: ids, texts, labels or splits have changed\n" in text
    assert f"[MV508] {run}: the run has 1 training process, and 3 would resume it\n" in text
    assert f"    hint: resume with: medvlp pretrain --resume {run}" in text


def test_without_a_checkpoint_and_metadata_of_the_start_nothing_can_be_resumed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "start.json").write_text('{"name": "recipe"}')
    assert resume_run(run, capsys) == (
        1,
        f"[MV508] {run}/start.json: how the run began cannot be read (other metadata than a run writes)\n"
        "    hint: the run has no checkpoint yet: start a new one\n",
    )


def test_a_folder_that_may_not_be_written_is_said_before_anything_is_built(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medvlp_core.training.resume.os.access", lambda *_: False)  # root may write everywhere
    code, err = resume_run(run, capsys)
    assert code == 1
    assert err.startswith(f"[MV508] {run}: the run folder may not be written\n")


def test_another_machine_is_a_warning(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine = read_resume(run).metadata["machine"]
    assert list(read_resume(run).environment_changes(machine)) == []
    other = {**machine, "threads": 64, "versions": {**machine["versions"], "torch": "9.9"}}
    assert list(read_resume(run).environment_changes(other)) == [
        f"threads was {machine['threads']} and is 64",
        f'versions.torch was "{machine["versions"]["torch"]}" and is "9.9"',
    ]
    monkeypatch.setattr("medvlp_core.training.describe_run.torch.get_num_threads", lambda: 64)
    assert main(["pretrain", "--resume", str(run), "--device", "cpu"]) == 0
    assert f"warning: threads was {machine['threads']} and is 64: the last digits may differ\n" in capsys.readouterr().out


def test_options_that_make_a_new_run_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "mpma:small", "--resume", "run", "--out", "x"]) == 2
    assert "--resume takes no RECIPE and no --out" in capsys.readouterr().err


def test_a_change_with_which_the_recipe_does_not_fit_together_is_a_change(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = resume_run(run, capsys, "--unset", "model.alignments.gla")
    assert code == 1
    assert err.splitlines()[:2] == [
        f"[MV508] {run}: the recipe is not that of the run",
        "    model.alignments.gla: as it is in the run, unset now",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("run/checkpoints", "this is the folder of all checkpoints\n    hint: give the run, run, or one of its checkpoints"),
        ("run/resolved.yaml", "this is a file, and no run to resume\n    hint: give the folder of a run"),
        ("lonely", "this checkpoint lies in no run folder\n    hint: begin a new run from it, with init_from"),
        ("nowhere", "there is no run to resume with: resolved.yaml is missing\n    hint: give the folder of a run"),
    ],
)
def test_what_is_nearly_a_run(
    run: Path, given: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    shutil.copytree(run / "checkpoints/step-0000012", "lonely")
    code, err = resume_run(Path(given), capsys)
    assert code == 1
    assert err.startswith(f"[MV508] {given}: {message}")


def test_what_was_lost_is_said_and_metadata_of_the_start_come_back(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = (run / "start.json").read_text()
    (run / "start.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:1]))
    assert main(["pretrain", "--resume", str(run / "checkpoints/step-0000012"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "step-0000014 is set aside, and deleted when it is written anew\n" in out
    assert f"warning: {len(lines) - 2} lines of metrics.jsonl are not there any more\n" in out
    assert (run / "start.json").read_text() == start


def test_one_command_at_a_time_works_in_a_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hold = "import sys, time\nfrom pathlib import Path\nfrom medvlp_core.training.lock import locked\n"
    hold += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    process = subprocess.Popen([sys.executable, "-c", hold, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    code, err = resume_run(run, capsys)
    assert code == 1
    assert err.startswith(f"[MV508] {run}: process {process.pid} on ")
    assert " works in this run folder\n    hint: wait for it or end it; " in err
    process.kill()
    process.wait()
    assert (run / ".lock").exists(), "what a killed process leaves is not in the way"
    assert resume_run(run, capsys)[0] == 0
    assert not (run / ".lock").exists()
