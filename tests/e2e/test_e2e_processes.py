"""Two training processes, as torchrun and accelerate start them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import killing
import pytest
from forked import Forked, free_address
from running import TORCHRUN, Done, recipe_over, several_under_torchrun, wait_for_metrics, write_manifest

from medvlp_core.training.resume import read_resume

#: What is proposed to somebody who started two processes.
RESUME = "torchrun --nproc-per-node 2 -m medvlp_core.cli pretrain --resume"
#: Shards are slow over gloo: a few steps of them, with three checkpoints.
FSDP = ("--set", "train.parallel=fsdp", "--set", "train.steps=8", "--set", "train.log_every_steps=1")


@pytest.fixture(scope="module")
def preempted(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A run that got SIGTERM as a scheduler's preemption arrives, the exit code of the launcher and what was printed."""
    run = tmp_path_factory.mktemp("preempted") / "run"
    command = [sys.executable, "-m", *TORCHRUN, str(recipe), "--out", str(run), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_metrics(process, run, lines=1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    return run, process.returncode, out


@pytest.fixture(scope="module")
def shards(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with sharded parameters, killed with all its processes after the first checkpoint."""
    run = tmp_path_factory.mktemp("shards") / "run"
    command = ("medvlp_core.cli", "pretrain", str(recipe), "--out", str(run), *FSDP, "--device", "cpu")
    group = {"WORLD_SIZE": "2", **free_address()}
    processes = [Forked(*command, environment={"RANK": rank, "LOCAL_RANK": rank, **group}) for rank in ("0", "1")]
    wait_for_metrics(processes[0], run, lines=4)
    for one in processes:
        one.send_signal(signal.SIGKILL)
        one.wait()
    assert not (run / "evaluation.json").exists()
    assert read_resume(run).step in (3, 6)
    return run


@pytest.fixture(scope="module")
def resumed(
    recipe: Path, preempted: tuple[Path, int, str], shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Done]]:
    """A folder with a run of shards that nothing happened to, and what was said of it, of both resumed runs and of mistakes.

    In the end an image in the share of one process is cut off: the whole group goes down.
    """
    folder = tmp_path_factory.mktemp("several")
    image = folder / "data" / write_manifest(folder / "data")[33]["image"]
    (folder / "damaged.yaml").write_text(recipe_over(folder / "data").replace("cache_images: true", "cache_images: false"))
    image.write_bytes(image.read_bytes()[:2000])
    commands = {
        "mistake": [str(recipe), "--set", "train.batch_size=3", "--out", str(folder / "mistake")],
        "preempted": ["--resume", str(preempted[0])],
        "whole": [str(recipe), *FSDP, "--out", str(folder / "whole")],
        "shards": ["--resume", str(shards)],
        "damaged": [str(folder / "damaged.yaml"), "--out", str(folder / "damaged")],
    }
    return folder, several_under_torchrun(
        folder, {name: ["pretrain", *words, "--device", "cpu"] for name, words in commands.items()}
    )


def test_torchrun_hands_sigterm_on(preempted: tuple[Path, int, str]) -> None:
    run, code, out = preempted
    assert code != 0
    assert out.count("stopped by SIGTERM after step") == 1, "the main process alone speaks"
    assert f"resume with: {RESUME} {run}\n" in out


def test_a_stopped_run_resumes_under_torchrun(preempted: tuple[Path, int, str], resumed: tuple[Path, dict[str, Done]]) -> None:
    run, _, out = preempted
    done = resumed[1]["preempted"]
    assert done.codes == [0, 0], done.err
    step = re.search(r"stopped by SIGTERM after step (\d+)", out)
    assert step is not None
    assert done.out.count(f"resumed after step {step[1]}\n") == 1
    assert json.loads((run / "evaluation.json").read_text())["results"]


def test_what_all_processes_find_is_said_once(resumed: tuple[Path, dict[str, Done]]) -> None:
    folder, found = resumed
    assert found["mistake"].codes == [1, 1]
    text = "[MV104] train.batch_size=3 pairs cannot be shared by 2 processes with 2 micro-batches each"
    assert found["mistake"].err.count(text) == 1
    assert not (folder / "mistake").exists()


def test_shards_resume_to_the_same_bits(shards: Path, resumed: tuple[Path, dict[str, Done]]) -> None:
    folder, found = resumed
    assert found["whole"].codes == found["shards"].codes == [0, 0], found["shards"].err
    assert killing.content(shards) == killing.content(folder / "whole")


def test_what_one_process_finds_ends_all_and_blames_no_component(resumed: tuple[Path, dict[str, Done]]) -> None:
    """An image in the share of one of them is cut off."""
    folder, found = resumed
    run, ours = folder / "damaged", found["damaged"].err
    assert found["launcher"].codes == [1], found["launcher"].err
    images = [json.loads(line)["image"] for line in (folder / "data/pairs.jsonl").read_text().splitlines()]
    assert f"[MV501] cannot read image {folder / 'data' / images[33]}: it is truncated or damaged" in ours
    assert "cannot continue, for another one is gone\n" in ours
    hint = "    hint: the other one's message says why; a run that has begun is resumed with:"
    assert f"{hint} {RESUME} {run}\n" in ours
    assert "MV306" not in ours


def test_accelerate_launch_starts_processes_too(recipe: Path, tmp_path: Path) -> None:
    """Its other settings are those of the recipe; one that says something else is named."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--mixed_precision",
        "bf16",
    ]
    command += ["-m", "medvlp_core.cli", "pretrain", str(recipe), "--set", "train.steps=2", "--unset", "evaluators"]
    done = subprocess.run([*command, "--out", str(run), "--device", "cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "start.json").read_text())["processes"] == 2
    assert done.stdout.count("warning: ACCELERATE_MIXED_PRECISION=bf16 is not read: the recipe says train.precision: fp32\n") == 1
