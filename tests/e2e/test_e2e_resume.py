"""Runs that are killed, stopped or cheated of their disk go on to the same bits."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import killing
import pytest
import safetensors.torch
from medvlp_open_cxr.manifest import DATA, read_rows

from medvlp_core.cli import main
from medvlp_core.compose import plan_recipe
from medvlp_core.errors import DataError
from medvlp_core.train.checkpoint import list_checkpoints, load_run
from medvlp_core.train.init_from import starting_vocabulary
from medvlp_core.train.resume import read_resume, set_aside_later
from medvlp_core.train.run import pretrain

#: For each kind. ``MEDVLP_KILLS=40 pytest tests/e2e/test_e2e_resume.py -k killed`` kills dozens of times.
KILLS = os.environ.get("MEDVLP_KILLS", "3")


@pytest.mark.parametrize("kind", ["one", "workers", "ddp"])
def test_a_run_that_is_killed_ends_with_the_same_bits(kind: str) -> None:
    command = [sys.executable, killing.__file__, "--kind", kind, "--kills", KILLS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{kind}: {KILLS} kills of ")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(killing.RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["pretrain", str(recipe), "--out", str(run), "--device", "cpu"]) == 0
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it whose evaluation did not begin; the checkpoints of steps 12 and 14 are there, and maybe the best one."""
    copy = shutil.copytree(whole, tmp_path / "run")
    (copy / "evaluation.json").unlink()
    assert {"step-0000012", "step-0000014"} <= {path.name for path in list_checkpoints(copy)}
    return copy


def go_on(run: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> tuple[int, str]:
    code = main(["pretrain", "--resume", str(run), "--device", "cpu", *changes])
    return code, capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ a damaged checkpoint


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
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "average.safetensors", "progress.json"])
def test_a_damaged_file_is_named_with_the_checkpoint_before_it(
    run: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(run / "checkpoints/step-0000014" / name)
    with pytest.raises(DataError) as caught:
        read_resume(run)
    text = str(caught.value)
    assert text.startswith(f"[MV507] {run}/checkpoints/step-0000014/{name}: ")
    assert message in text
    hint = f"go on from the checkpoint before it: medvlp pretrain --resume {run}/checkpoints/step-0000012"
    assert text.endswith(f"    hint: {hint}")
    assert read_resume(run / "checkpoints/step-0000012").step == 12


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
def test_damaged_facts_are_named(run: Path, damage: Callable[[Path], None]) -> None:
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
    assert go_on(run / "checkpoints/step-0000012", capsys)[0] == 0
    assert killing.content(run) == killing.content(whole)
    assert not torn.exists(), "left-overs are cleared away"


def test_loading_a_model_finds_damaged_weights_and_vocabularies(run: Path, tmp_path: Path) -> None:
    """Not what only going on needs; the recipe may be edited."""
    checkpoint = run / "checkpoints/step-0000014"
    flip(checkpoint / "optimizer.safetensors")
    flip(checkpoint / "progress.json")
    load_run(run)
    for path in [checkpoint / "model.safetensors", checkpoint / "average.safetensors", *(checkpoint / "tokenizer").iterdir()]:
        flip(path)
        with pytest.raises(DataError) as caught:
            load_run(run)
        assert f"[MV507] {path}: the file is not what was written: its hash differs\n" in str(caught.value)
        flip(path)
    flip(next((checkpoint / "tokenizer").iterdir()))
    begun = tmp_path / "begun.yaml"
    begun.write_text(killing.RECIPE + f"init_from: {{path: {run}}}\n")
    with pytest.raises(DataError, match=r"MV507.*tokenizer/.*hash differs"):
        starting_vocabulary(plan_recipe(begun))


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


# ------------------------------------------------------------------------------------------------------------ refused


def test_what_cannot_go_on_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go_on(whole, capsys) == (
        1,
        f"[MV508] {whole}: the run is finished\n"
        "    hint: to train longer, start a new run with init_from; to repeat the end, give one of its checkpoints\n",
    )
    assert go_on(tmp_path, capsys) == (
        1,
        f"[MV508] {tmp_path}: there is no run to go on with: resolved.yaml is missing\n"
        "    hint: give the folder of a run, such as runs/mpma_small-20260101-120000\n",
    )


def test_a_changed_recipe_is_refused_with_every_change(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = run / "resolved.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    code, err = go_on(run, capsys, "--set", "model.alignments.gla.dim=4", "--set", "train.workers=1", "--unset", "evaluators")
    assert code == 1
    lines = err.splitlines()
    assert lines[0] == f"[MV508] {run}: the recipe is not that of the run"
    assert sorted(lines[1:3]) == [
        "    model.alignments.gla.dim: 8 in the run, 4 now",
        "    train.learning_rate: 0.001 in the run, 0.002 now",
    ]
    assert lines[3].startswith("    hint: a run that goes on may change data, evaluators, train.recompute, train.workers, ")


def test_what_changes_nothing_that_is_learned_may_change(run: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = (
        "train.workers=2",
        "train.recompute=true",
        "train.keep_checkpoints=7",
        "train.max_bad_steps=20",
        "train.trackers=[tensorboard]",
    )
    changes = [word for change in free for word in ("--set", change)]
    code, err = go_on(run / "checkpoints/step-0000012", capsys, *changes)
    assert code == 0, err
    for name in ("model.safetensors", "average.safetensors", "optimizer.safetensors"):
        last = f"checkpoints/step-0000014/{name}"
        assert (run / last).read_bytes() == (whole / last).read_bytes()
    assert plan_recipe(run / "resolved.yaml").train.keep_checkpoints == 7, "the next start goes on with it"
    assert list((run / "tensorboard").iterdir())


def write_manifest(folder: Path) -> list[dict[str, Any]]:
    """Sixty of the shipped radiographs as somebody's own data, ``pairs.jsonl``; its rows."""
    folder.mkdir()
    rows = [row for row in read_rows() if row["source"] == "vqarad"][:60]
    found = []
    for number, row in enumerate(rows):
        name = Path(row["image"]).name
        shutil.copy(DATA / row["image"], folder / name)
        found.append({"id": row["id"], "image": name, "text": row["text"], "split": "train" if number > 9 else "test"})
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return found


def recipe_over(folder: Path) -> str:
    """The recipe of these tests over :func:`write_manifest`."""
    data = f"data: {{use: standard.manifest, path: {folder}/pairs.jsonl}}"
    return killing.RECIPE.replace("data: {use: open_cxr.pairs, sources: [vqarad]}", data)


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
    code, err = go_on(run / "checkpoints/step-0000003", capsys)
    assert code == 1
    assert "here/pairs.jsonl" in err
    assert go_on(run / "checkpoints/step-0000003", capsys, "--set", f"data.path={there}/pairs.jsonl")[0] == 0
    found = killing.content(run)
    assert {name for name in expected if found[name] != expected[name]} == {
        "resolved.yaml",
        "checkpoints/step-0000004/resolved.yaml",
    }
    (run / "evaluation.json").unlink()
    moved = there / "pairs.jsonl"
    moved.write_text(moved.read_text().replace(json.dumps(rows[20]["text"]), '"another text"'))
    code, err = go_on(run, capsys)
    assert code == 1
    assert err.startswith(f"[MV508] {run}: the data are not those of the run: ids, texts, labels or splits have changed\n")


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_other_data_and_processes_are_refused(run: Path, has_checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_checkpoint:
        shutil.rmtree(run / "checkpoints")
    resume = read_resume(run)
    assert resume.step == (14 if has_checkpoint else 0)
    pipeline = type("Pipeline", (), {"source": type("Source", (), {"fingerprint": lambda self: "other"})()})()
    monkeypatch.setattr("medvlp_core.train.resume.launched_processes", lambda: 3)
    with pytest.raises(DataError) as caught:
        resume.check(pipeline)  # type: ignore[arg-type]
    text = str(caught.value)
    assert f"[MV508] {run}: the data are not those of the run: ids, texts, labels or splits have changed\n" in text
    assert f"[MV508] {run}: the run has 1 training process, and 3 would go on\n" in text
    assert "    hint: start 1 training process" in text


def test_without_a_checkpoint_and_facts_of_the_start_nothing_can_go_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "start.json").write_text('{"name": "recipe"}')
    assert go_on(run, capsys) == (
        1,
        f"[MV508] {run}/start.json: how the run began cannot be read (other facts than a run writes)\n"
        "    hint: the run has no checkpoint yet: start a new one\n",
    )


def test_a_folder_that_may_not_be_written_is_said_before_anything_is_built(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medvlp_core.train.resume.os.access", lambda *_: False)  # root may write everywhere
    code, err = go_on(run, capsys)
    assert code == 1
    assert err.startswith(f"[MV508] {run}: the run folder may not be written\n")


def test_another_machine_is_a_warning(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine = read_resume(run).facts["machine"]
    assert list(read_resume(run).changes(machine)) == []
    other = {**machine, "threads": 64, "versions": {**machine["versions"], "torch": "9.9"}}
    assert list(read_resume(run).changes(other)) == [
        f"threads was {machine['threads']} and is 64",
        f'versions.torch was "{machine["versions"]["torch"]}" and is "9.9"',
    ]
    monkeypatch.setattr("medvlp_core.train.run.torch.get_num_threads", lambda: 64)
    assert main(["pretrain", "--resume", str(run), "--device", "cpu"]) == 0
    assert f"warning: threads was {machine['threads']} and is 64: the last digits may differ\n" in capsys.readouterr().out


def test_options_that_make_a_new_run_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "mpma:small", "--resume", "run", "--out", "x"]) == 2
    assert "--resume takes no RECIPE and no --out" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ no room


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def short(recipe: Path) -> Any:
    """Its plan without evaluators."""
    plan = plan_recipe(recipe)
    return attrs.evolve(plan, components={path: one for path, one in plan.components.items() if not path.startswith("eval")})


def test_a_full_disk_keeps_the_checkpoint_before(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, save, calls = tmp_path / "run", safetensors.torch.save_file, []

    def save_some(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        (save if len(calls) < 6 else full_disk)(*arguments, **named)  # three files each: in the middle of the second

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", save_some)
        assert main(["pretrain", str(recipe), "--out", str(run), "--device", "cpu"]) == 1
    assert capsys.readouterr().err == (
        f"[MV507] {run}/checkpoints/step-0000006: the checkpoint cannot be written (No space left on device)\n"
        f"    hint: make room or make it writable, then go on with: medvlp pretrain --resume {run}\n"
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000003"]
    assert go_on(run, capsys)[0] == 0
    assert killing.content(run) == killing.content(whole)


def test_a_limit_on_the_size_of_files_is_a_message(recipe: Path, tmp_path: Path) -> None:
    """The operating system itself says no, in the middle of the weights."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "medvlp_core.cli", "pretrain", str(recipe), "--out", str(run), "--device", "cpu"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert f"[MV507] {run}/checkpoints/step-0000003: the checkpoint cannot be written (" in done.stderr
    assert "File too large" in done.stderr
    assert not list((run / "checkpoints").iterdir())


def test_metrics_that_cannot_be_written_are_a_message(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("medvlp_core.train.metrics_file.MetricsFile._line", full_disk)
    with pytest.raises(DataError) as caught:
        pretrain(short(recipe), out=run, device="cpu")
    assert str(caught.value).startswith(f"[MV508] {run}: the file cannot be written (No space left on device)\n")


def test_a_folder_that_cannot_hold_checkpoints_is_a_message(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("a file")
    code, err = go_on(run, capsys)
    assert code == 1
    assert "step-0000003: the checkpoint cannot be written (Not a directory)" in err


# ------------------------------------------------------------------------------------------------------------ signals


def begin(*command: str, run: Path, lines: int) -> subprocess.Popen[str]:
    """Start a command; returns when the run has so many lines of metrics."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= lines):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops(
    recipe: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = begin("medvlp_core.cli", "pretrain", str(recipe), "--out", str(run), "--device", "cpu", run=run, lines=1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    step = read_resume(run).step
    assert f"stopped by {number.name} after step {step}\n" in out
    assert f"go on with: medvlp pretrain --resume {run}\n" in out
    assert go_on(run, capsys)[0] == 0
    ours, theirs = killing.content(run), killing.content(whole)
    last = [name for name in theirs if "step-0000014" in name or "checkpoints" not in name]
    assert all(ours[name] == theirs[name] for name in last), "one checkpoint more may be the best"


def test_torchrun_hands_sigterm_on(recipe: Path, tmp_path: Path) -> None:
    """As a scheduler's preemption arrives; then the run goes on under torchrun, to the end."""
    run = tmp_path / "run"
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medvlp_core.cli", "pretrain")
    process = begin(*torchrun, str(recipe), "--out", str(run), "--device", "cpu", run=run, lines=1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert out.count("stopped by SIGTERM after step") == 1, "the main process alone speaks"
    assert not (run / "evaluation.json").exists()
    step = read_resume(run).step
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, "--resume", str(run), "--device", "cpu"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"going on after step {step}\n") == 1
    assert json.loads((run / "evaluation.json").read_text())["results"]


# ------------------------------------------------------------------------------------------------------------ two processes


def under_torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medvlp_core.cli"]
    return subprocess.run([*command, "pretrain", *words, "--device", "cpu"], capture_output=True, text=True)


def test_what_all_processes_find_is_said_once(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = under_torchrun(str(recipe), "--set", "train.batch_size=3", "--out", str(run))
    assert done.returncode == 1
    assert done.stderr.count("[MV104] train.batch_size=3 pairs cannot be shared by 2 processes with 2 passes each") == 1
    assert not run.exists()
    done = under_torchrun("--resume", str(run))
    assert done.returncode == 1
    assert done.stderr.count(f"[MV508] {run}: there is no run to go on with") == 1


def test_what_one_process_finds_ends_all_and_blames_no_component(tmp_path: Path) -> None:
    """An image in the share of one of them is cut off."""
    data, run, recipe = tmp_path / "data", tmp_path / "run", tmp_path / "recipe.yaml"
    image = data / write_manifest(data)[33]["image"]
    recipe.write_text(recipe_over(data).replace("cache_images: true", "cache_images: false"))
    image.write_bytes(image.read_bytes()[:2000])
    done = under_torchrun(str(recipe), "--out", str(run))
    assert done.returncode == 1
    ours = done.stderr.partition("torch/distributed/elastic")[0] + done.stderr.partition("Root Cause")[0].partition("Traceback")[0]
    assert f"[MV501] cannot read image {image}: it is truncated or damaged" in ours
    assert "cannot go on, for another one is gone\n" in ours
    assert f"    hint: the other one's message says why; then go on with --resume {run}\n" in ours
    assert "MV306" not in ours
