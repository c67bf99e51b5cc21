"""Kills training runs with SIGKILL at random moments, resumes them, and compares them with the run that was never killed.

``python tests/e2e/killing.py num_workers ddp3 --kills 40`` prints how many kills there were; exit code 1 if a bit differs. Each
life of a run is one process, or two or three of one gloo group, forked from this one, so that torch is imported once. The first
life kills itself at one of the calls that write to the disk after its first checkpoint. Of the others, half end at a random time,
half kill themselves right before or after a random one of those calls, or in a step or an evaluator.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
import safetensors.torch
import torch
from medvlp_standard.evaluators.masked_words import MaskedWords
from rich.console import Console

import medvlp_core
from medvlp_core.model.build import build_model
from medvlp_core.model.composed import ComposedModel
from medvlp_core.training import metrics_file
from medvlp_core.training.checkpoint import list_checkpoints
from medvlp_core.training.observers import RunObservers
from medvlp_core.training.trainer import pretrain, resume

RECIPE = """\
medvlp: 1
data: {use: open_cxr.pairs, sources: [vqarad]}
inputs: {cache_images: true}
tokenizer: {use: standard.wordpiece, vocab_size: 200, max_length: 24}
model:
  masking: {use: mpma.paired_masking}
  image_encoder:
    {use: standard.timm_vit, model: vit_tiny_patch16_224, image_size: 32, channels: 1, patch_size: 8, width: 32, depth: 1, heads: 2}
  text_encoder: {use: standard.bert, width: 32, layers: 1, heads: 2}
  fusion: {use: mpma.memory_fusion, slots: 8, topk: 2, heads: 2, layers: 1}
  alignments:
    gla: {use: mpma.global_local, dim: 8}
  decoders:
    image: {use: mpma.image_decoder, target_size: 64, width: 16, depth: 1, heads: 2}
    report: {use: mpma.report_decoder}
train:
  {steps: 14, batch_size: 8, gradient_accumulation_steps: 2, drop_last: false, checkpoint_every_steps: 3, log_every_steps: 4,
  ema_decay: 0.9,
   layer_decay: 0.8, learning_rate: 0.001}
evaluators:
  words: {use: standard.masked_words, draws: 1, max_pairs: 8}
"""
#: How many processes, and settings of ``train``.
KINDS = {
    "one": (1, ""),
    "num_workers": (1, "num_workers: 2, "),
    "ddp": (2, ""),
    "ddp3": (3, ""),
    "fsdp": (2, "parallel: fsdp, "),
    "norms": (2, ""),
}
#: With batch norms, whose statistics each process has of its own: the encoder of the kind ``norms``.
CNN = "{use: standard.timm_cnn, model: resnet10t, image_size: 32, channels: 1, stage: 2}"
#: What differs between two equal runs: clocks and memory.
TIMES = {"seconds", "pairs_per_second", "data_time", "data_seconds", "memory_mb"}


def with_bad_steps(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The loss of some batches, always of the same, is NaN."""

    @functools.wraps(forward)
    def changed(self: ComposedModel, batch: Any) -> Any:
        output = forward(self, batch)
        if self.training and int(batch["record_index"].sum()) % 11 == 0:
            return output._replace(loss=output.loss * float("nan"))
        return output

    return changed


class KillPoints:
    """Counts calls of some functions, before and after each, and kills the process at one of them."""

    def __init__(self, at: int | None) -> None:
        self.count, self.at = 0, at

    def pass_one(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            self.pass_one()
            result = function(*arguments, **named)
            self.pass_one()
            return result

        setattr(owner, name, watched)


def live(recipe: Path, run: Path, out: Path, kill_at: int | None) -> int:
    """One life of a run, in a process of its own: begins it, or resumes it. The number of kill points that it passed."""
    points = KillPoints(kill_at)
    for owner, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree"), (safetensors.torch, "save_file")):
        points.watch(owner, name)
    points.watch(Path, "write_text")
    points.watch(MaskedWords, "evaluate")
    points.watch(RunObservers, "__call__")
    points.watch(metrics_file, "_json_number")
    ComposedModel.forward = with_bad_steps(ComposedModel.forward)  # type: ignore[method-assign]
    console = Console(file=io.StringIO(), width=200)
    if (run / "resolved.yaml").is_file():
        resume(run, device="cpu", console=console)
    else:
        pretrain(medvlp_core.plan(recipe), out=run, device="cpu", console=console)
    return points.count


def start(world: int, *arguments: Any) -> list[int]:
    """Fork the processes of one life. Each writes its number of kill points to ``OUT.RANK``; exits with 0 if it came to the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 1
        try:
            os.setsid()
            if world > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in names.items()})
            recipe, run, out, kill_at, victim = arguments
            count = live(recipe, run, out, kill_at if rank == victim else None)
            out.with_suffix(f".{rank}").write_text(str(count))
            code = 0
        except KeyboardInterrupt:
            code = 130
        except SystemExit as leave:
            code = int(leave.code or 0)
        except BaseException:
            out.with_suffix(f".error{rank}").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    return pids


def wait(pids: list[int], limit: float) -> list[int | None]:
    """The exit codes after at most ``limit`` seconds, or as soon as one process was killed; None for those that still run."""
    codes: dict[int, int | None] = dict.fromkeys(pids)
    end = time.monotonic() + limit
    while time.monotonic() < end and None in codes.values() and not any(code for code in codes.values()):
        for pid in pids:
            if codes[pid] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                codes[pid] = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.002)
    return list(codes.values())


def kill(pids: list[int], codes: list[int | None]) -> list[int]:
    """Kill what still runs, in any order, as torchrun does when one process is gone; the exit codes of all."""
    found = dict(zip(pids, codes, strict=True))
    left = [pid for pid in pids if found[pid] is None]
    for pid in random.sample(left, len(left)):
        os.kill(pid, signal.SIGKILL)
        time.sleep(random.choice((0.0, 0.05)))
    for pid in left:
        found[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [found[pid] or 0 for pid in pids]


def content(run: Path) -> dict[str, Any]:
    """All that a run has written, without clocks."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        # checkpoint.json has hashes of the others; .lock stays of a killed process.
        if path.is_dir() or path.suffix == ".png" or path.name in ("checkpoint.json", ".lock"):
            continue
        if path.suffix in (".json", ".jsonl"):
            found[name] = [without_times(json.loads(line)) for line in _documents(path)]
        else:
            found[name] = path.read_bytes()
    return found


def _documents(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def without_times(value: Any) -> Any:
    """A document without what clocks and memory say."""
    if isinstance(value, dict):
        return {key: without_times(one) for key, one in value.items() if key not in TIMES}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def main() -> int:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(arguments.seed)
    return max(kill_runs(kind, arguments.kills, arguments.steps) for kind in arguments.kinds)


def kill_runs(kind: str, wanted: int, steps: int) -> int:
    """Kill runs of one kind ``wanted`` times; 0 if all end with the same bits."""
    world, change = KINDS[kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, out = folder / "recipe.yaml", folder / "points.txt"
        text = RECIPE.replace("{steps: 14", f"{{{change}steps: {steps}")
        recipe.write_text(re.sub(r"{use: standard.timm_vit[^}]*}", CNN, text) if kind == "norms" else text)
        build_model(medvlp_core.plan(recipe), seed=0)  # imports what the lives need
        began = time.monotonic()
        assert wait(start(world, recipe, folder / "reference", out, None, 0), 300) == [0] * world
        seconds = time.monotonic() - began
        points = [int(out.with_suffix(f".{rank}").read_text()) for rank in range(world)]
        expected = content(folder / "reference")
        assert len(expected["bad_steps.jsonl"]) > 0, "the recipe should have bad steps"
        kills = runs = 0
        while kills < wanted:
            run, runs = folder / f"run{runs}", runs + 1
            is_done, history = False, []
            while not is_done:
                may_kill = kills < wanted
                by_point = may_kill and (not kills or random.random() < 0.5)
                victim = random.randrange(world)
                first = points[victim] // 2 if not kills else 1
                kill_at = random.randint(first, points[victim]) if by_point else None
                pids = start(world, recipe, run, out, kill_at, victim)
                left = wait(pids, random.uniform(0, seconds) if may_kill and not by_point else 300)
                if None in left and not may_kill and 1 not in left:
                    return fail("a run hangs")
                codes = kill(pids, left)
                is_done = codes == [0] * world
                history.append(f"point {kill_at} of process {victim}" if by_point else f"codes {codes}")
                # A process whose neighbour was killed may well complain. FSDP's threads sometimes abort a forked process.
                if 1 in codes and all(code >= 0 for code in codes):
                    errors = "\n".join(path.read_text() for path in folder.glob("points.error*"))
                    return fail(f"a life of {run.name} ended after {kills} kills:\n{errors}")
                if not kills and not is_done:
                    assert list_checkpoints(run), "the first kill comes after the first checkpoint"
                kills += not is_done
                if not is_done and (run / "evaluation.json").exists():
                    is_done = True  # killed when all was written
            found = content(run)
            if found != expected:
                keep = os.environ.get("KEEP_DIFFERENT")
                if keep:
                    shutil.copytree(folder, keep, dirs_exist_ok=True)
                names = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
                return fail(f"{run.name} differs: {', '.join(names)}\n    its lives: {'; '.join(history)}")
            shutil.rmtree(run)
    print(f"{kind}: {kills} kills of {runs} runs, all equal to the run that was never killed ({len(expected)} files)", flush=True)
    return 0


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
