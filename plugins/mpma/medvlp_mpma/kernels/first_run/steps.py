"""The steps of a first run, one after the other; one that fails keeps no other from being done."""

from __future__ import annotations

import gc
import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.pool import Pool
from pathlib import Path

import torch

from medvlp_mpma.kernels.first_run.correctness import step_correctness
from medvlp_mpma.kernels.first_run.run import Run, Skipped
from medvlp_mpma.kernels.first_run.setting import COMPILE_PROCESSES, REHEARSE
from medvlp_mpma.kernels.first_run.summary import write_summary
from medvlp_mpma.kernels.first_run.tiles import step_crossover, step_sweep
from medvlp_mpma.kernels.first_run.timings import step_device, step_timings
from medvlp_mpma.kernels.first_run.train_step import step_model

STEPS: dict[str, Callable[[Run, Pool], None]] = {
    "device": step_device,
    "correctness": step_correctness,
    "timings": step_timings,
    "sweep": step_sweep,
    "crossover": step_crossover,
    "model": step_model,
}


def do_step(run: Run, name: str, pool: Pool) -> bool:
    """Run a step and note how it went; False if it failed."""
    start, is_fine = time.monotonic(), True
    try:
        run.say(f"step {name}")
        STEPS[name](run, pool)
        text = "done"
    except Skipped as error:
        text = f"skipped, all or the rest: {error}"
    except Exception as error:
        traceback.print_exc()
        text, is_fine = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}", False
    run.steps[name] = f"{text} ({time.monotonic() - start:.0f} s)"
    run.say(f"step {name}: {run.steps[name]}")
    run.note("steps", run.steps)
    write_summary(run)
    gc.collect()
    return is_fine


def _worker_starts() -> None:
    torch.set_num_threads(1)


def run_steps(out: Path, *, minutes: float, steps: Sequence[str]) -> bool:
    """Do the steps and write what they find; False if one failed, or a number is wrong."""
    command = f"medvlp bench kernels --first-run --minutes {minutes:g} --steps {','.join(steps)}"
    run = Run(out=out, seconds=60 * minutes, command=command + " --rehearse" * REHEARSE)
    pool = multiprocessing.get_context("spawn").Pool(COMPILE_PROCESSES, _worker_starts)
    try:
        are_fine = [do_step(run, name, pool) for name in steps]
    finally:
        pool.terminate()
    is_red = any(row["verdict"] == "red" for row in run.checks)
    names = ", ".join(sorted(path.name for path in run.out.iterdir()))
    run.say(f"{'RED, see correctness.csv; ' if is_red else ''}written: {names}")
    return all(are_fine) and not is_red
