"""Two training processes, as torchrun and accelerate start them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import killing
import psutil
from running import TORCHRUN, recipe_over, start, under_torchrun, write_manifest

from medvlp_core.training.resume import read_resume

#: What is proposed to somebody who started two processes.
RESUME = "torchrun --nproc-per-node 2 -m medvlp_core.cli pretrain --resume"


def test_torchrun_hands_sigterm_on(recipe: Path, tmp_path: Path) -> None:
    """As a scheduler's preemption arrives; then the run goes on under torchrun, to the end."""
    run = tmp_path / "run"
    process = start(*TORCHRUN, str(recipe), "--out", str(run), "--device", "cpu", run=run, lines=1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert out.count("stopped by SIGTERM after step") == 1, "the main process alone speaks"
    assert f"resume with: {RESUME} {run}\n" in out
    assert not (run / "evaluation.json").exists()
    step = read_resume(run).step
    done = under_torchrun("--resume", str(run))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"resumed after step {step}\n") == 1
    assert json.loads((run / "evaluation.json").read_text())["results"]


def test_what_all_processes_find_is_said_once(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = under_torchrun(str(recipe), "--set", "train.batch_size=3", "--out", str(run))
    assert done.returncode == 1
    assert done.stderr.count("[MV104] train.batch_size=3 pairs cannot be shared by 2 processes with 2 micro-batches each") == 1
    assert not run.exists()


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


def test_shards_go_on_to_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    """Killed with all its processes after the first checkpoint."""
    whole, run, words = tmp_path / "whole", tmp_path / "run", ("--set", "train.parallel=fsdp", "--device", "cpu")
    assert under_torchrun(str(recipe), "--out", str(whole), *words[:2]).returncode == 0
    process = start(*TORCHRUN, str(recipe), "--out", str(run), *words, run=run, lines=2)
    launcher = psutil.Process(process.pid)
    for one in [launcher, *launcher.children(recursive=True)]:
        one.kill()
    process.communicate()
    assert not (run / "evaluation.json").exists()
    assert read_resume(run).step in (3, 6, 9, 12)
    done = under_torchrun("--resume", str(run))
    assert done.returncode == 0, done.stderr
    assert killing.content(run) == killing.content(whole)
