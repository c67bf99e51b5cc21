"""The device, the benchmark of both ops, and the host's share of a call."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from multiprocessing.pool import Pool
from typing import Any

import attrs
import torch

from medvlp_core.kernels import benchmark_report as report
from medvlp_core.kernels.benchmark import Contender, KernelBenchmark, check, wrong_rivals
from medvlp_core.kernels.benchmark_files import write_files
from medvlp_mpma.kernels.first_run.run import Run, version_of
from medvlp_mpma.kernels.first_run.setting import BENCHMARKS, DEVICE, REHEARSE, TIMED, in_rehearsal, name_of
from medvlp_mpma.kernels.first_run.summary import write_summary
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_attention import launch as attention_launch


def step_device(run: Run, pool: Pool) -> None:
    """Versions and rates."""
    content: dict[str, Any] = {"python": sys.version.split()[0], "cpu_cores": os.cpu_count()}
    content |= {name: version_of(name) for name in ("torch", "triton", "timm", "transformers", "numpy")}
    if DEVICE.type == "cuda":
        properties = torch.cuda.get_device_properties(DEVICE)
        content |= {"capability": f"{properties.major}.{properties.minor}", "memory_bytes": properties.total_memory}
        content |= {"multiprocessors": properties.multi_processor_count, "l2_bytes": getattr(properties, "L2_cache_size", None)}
        content |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver()}
    run.write_json("device.json", content)
    rates = run.setting.rates
    content |= {"matmul_dtype": name_of(TIMED), "matmul_flops_per_s": rates.flops, "copy_bytes_per_s": rates.bytes}
    run.write_json("device.json", content)
    run.say(rates.text)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"


def contenders_of(benchmark: KernelBenchmark) -> list[Contender]:
    """All contenders; in a rehearsal our kernels, too, although the interpreter's speed says nothing."""
    able = [one for one in benchmark.contenders if not REHEARSE or one.name != "gather"]
    return [attrs.evolve(one, unsupported_reasons=lambda *_: ()) if REHEARSE and one.name == "triton" else one for one in able]


def step_timings(run: Run, pool: Pool) -> None:
    """The benchmark of both ops, and the host's share of a call."""
    for benchmark in BENCHMARKS:
        try:
            time_shapes(run, benchmark)
        finally:
            if run.outcomes:
                write_files(run.out, run.setting, run.outcomes)
                run.timing_text = (run.out / "summary.md").read_text(encoding="utf-8")
                write_summary(run)
    if not run.red(attention.NAME, "triton"):
        run.note("host_microseconds", host_time(2 if REHEARSE else 200))


def time_shapes(run: Run, benchmark: KernelBenchmark) -> None:
    """Check and time all contenders, shape by shape; what is wrong is not timed."""
    contenders = contenders_of(benchmark)
    shapes, findings, rows = [], [], []
    for shape in map(in_rehearsal, benchmark.shapes):
        run.need_time("timings", f"shape {shape.letter} and those behind it")
        run.say(f"timing {shape.letter} ({shape.text})")
        findings += check(benchmark, [shape], DEVICE, TIMED, contenders=contenders)
        skipped = wrong_rivals(findings)
        for one in contenders:
            if one.is_ours and run.red(benchmark.op, one.name.partition(",")[0]):
                skipped[benchmark.op, shape.letter, one.name] = "red in correctness.csv"
        rows += run.measure(benchmark, shape, contenders, skipped)
        shapes.append(shape)
        outcome = report.Outcome(benchmark=benchmark, shapes=tuple(shapes), findings=list(findings), rows=list(rows))
        run.outcomes = [*(one for one in run.outcomes if one.benchmark is not benchmark), outcome]
        report.write_csv(run.out / "kernels.csv", run.setting, run.outcomes)


def host_time(calls_in_a_row: int) -> dict[str, float]:
    """Microseconds of the host for a forward call of the op, and of the launch alone: the best of five."""
    small = attention.SHAPES[0].resized(B=1, H=1, L=16, S=16, M=16, D=16 if REHEARSE else 64)
    inputs = attention.make_inputs(small, DEVICE, TIMED, 0)
    call = attention.by_backend("triton")(inputs)
    q, k, v, mem_k, mem_v = (inputs[name].detach() for name in attention.NAMES)
    bare = AttentionInputs(q, k, v, mem_k, mem_v, scale=0.125)
    found = {}
    for name, function in (("op", call), ("launch", lambda: attention_launch.forward(bare))):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(calls_in_a_row):
                function()
            times.append((time.perf_counter() - start) / calls_in_a_row)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
        found[name] = 1e6 * min(times)
    return found
