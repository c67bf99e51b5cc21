"""``medvlp bench kernels``: every op against others' ways, or the first time on a GPU. Imports torch when it runs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medvlp_bench.commands import first_run
from medvlp_bench.commands.numbers import count, share
from medvlp_core import did_you_mean
from medvlp_core.cli import print_folded, print_problems

if TYPE_CHECKING:
    import torch

    from medvlp_core import KernelOp
    from medvlp_core.kernels.benchmark import KernelBenchmark
    from medvlp_core.kernels.benchmark_report import Outcome

USAGE = 2
DTYPES = ("float32", "bfloat16", "float16")
DIRECTIONS = {"all": ("forward", "backward", "both"), "forward": ("forward",), "backward": ("backward",), "both": ("both",)}


def configure(parser: argparse.ArgumentParser) -> None:
    """Which ops, how they are measured, and the options of a first run."""
    parser.add_argument("--op", metavar="NAME", action="append", default=[], help="only this op; may stand several times")
    parser.add_argument("--shape", metavar="LETTER", action="append", default=[], help="only this shape; may stand several times")
    parser.add_argument("--device", metavar="D", help="torch device, e.g. cpu or cuda:0 (default: the GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the tensors (default: bfloat16 on a GPU, else float32)")
    parser.add_argument("--direction", choices=list(DIRECTIONS), default="all", help="pass that is timed (default: all)")
    help_scale = "times the batch, 0 < S <= 1 (default: 1 on a GPU; on a CPU what takes about three minutes in all)"
    parser.add_argument("--scale", metavar="S", type=share, help=help_scale)
    parser.add_argument("--repeats", metavar="N", type=count, help="rounds at a shape (default: 50 on a GPU, 7 on a CPU)")
    parser.add_argument("--out", metavar="DIR", help="folder of the result, new or empty (default: runs/bench-kernels-DATE-TIME)")
    first_run.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check, measure, write. 1 if something of ours is wrong (then nothing is timed) or cannot be imported, 2 for unknown names."""
    if complaint := first_run.complaint(arguments):
        return _usage(complaint)
    from medvlp_core.training import check_run_folder

    check_run_folder(arguments.out)
    if arguments.first_run:
        ops = _ops(arguments, "first_run")
        return ops if isinstance(ops, int) else first_run.run(arguments, ops)
    from medvlp_core.kernels.machine import on_device
    from medvlp_core.runtime import choose_device

    device = choose_device(arguments.device)
    found = _benchmarks(arguments)
    if isinstance(found, int):
        return found
    with on_device(device):
        return _measure(arguments, found, device)


def _ops(arguments: argparse.Namespace, what: str) -> list[KernelOp] | int:
    """The ops that are wanted and declare a benchmark or first run, or the exit code if there is something wrong with the names."""
    from medvlp_core.plugins import load_plugins

    host, shown = load_plugins(), what.replace("_", " ")
    print_problems((broken.problem for broken in host.broken), sys.stderr)
    able = {name: op for name, op in sorted(host.kernels.items()) if getattr(op, what)}
    for name in arguments.op:
        if name not in able:
            text = f"the op {name!r} has no {shown}" if name in host.kernels else f"there is no op {name!r}"
            return _usage(f"{text}\n    hint: {did_you_mean(name, able, what='ops')}")
    if not able:
        return _usage(f"no plugin registers a kernel that has a {shown}")
    return [op for name, op in able.items() if not arguments.op or name in arguments.op]


def _benchmarks(arguments: argparse.Namespace) -> list[KernelBenchmark] | int:
    """The benchmarks that are wanted, or the exit code if there is something wrong with the names."""
    from medvlp_core.kernels.benchmark import load_benchmark

    ops = _ops(arguments, "benchmark")
    if isinstance(ops, int):
        return ops
    benchmarks = [load_benchmark(op) for op in ops]
    letters = [shape.letter for one in benchmarks for shape in one.shapes]
    for letter in arguments.shape:
        if letter not in letters:
            return _usage(f"there is no shape {letter!r}\n    hint: shapes: {', '.join(letters)}")
    return [one for one in benchmarks if one.at(arguments.shape)]


def _usage(text: str) -> int:
    print(f"medvlp bench: {text}", file=sys.stderr)
    return USAGE


def _measure(arguments: argparse.Namespace, benchmarks: list[KernelBenchmark], device: torch.device) -> int:
    import torch

    from medvlp_core.kernels import benchmark_report as report
    from medvlp_core.kernels.benchmark import check, scaled, wrong_rivals
    from medvlp_core.kernels.benchmark_files import write_files
    from medvlp_core.kernels.machine import device_label, measure_rates
    from medvlp_core.kernels.timing import measure
    from medvlp_core.training import make_run_folder

    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    shapes = {one.op: tuple(scaled(one, one.at(arguments.shape), device, arguments.scale)) for one in benchmarks}
    print(f"{device_label(device)}, {str(dtype).removeprefix('torch.')}")
    for line in _shrunk_lines(benchmarks, shapes):
        print_folded([line])

    findings = {}
    for one in benchmarks:
        findings[one.op] = check(one, shapes[one.op], device, dtype)
        print(f"\n{one.op}: output and gradients against the reference in float64")
        print("\n".join(report.text_table(report.check_table(findings[one.op]))))
    ours = [finding for found in findings.values() for finding in found if finding.is_ours]
    if lines := report.red_lines(ours):
        print(
            "\nnothing is timed: what is ours gives wrong numbers\n" + "\n".join(f"    {line}" for line in lines), file=sys.stderr
        )
        return 1

    rates = measure_rates(device, dtype)
    print(f"\nrates of the device: {rates.text}", flush=True)
    outcomes = []
    for one in benchmarks:
        rows = measure(
            one,
            shapes[one.op],
            device,
            dtype,
            rates,
            directions=DIRECTIONS[arguments.direction],
            rounds=arguments.repeats,
            skipped=wrong_rivals(findings[one.op]),
            on_shape=lambda shape: print(f"timing shape {shape.letter} ({shape.text}) ...", file=sys.stderr, flush=True),
        )
        outcome = report.Outcome(benchmark=one, shapes=shapes[one.op], findings=findings[one.op], rows=rows)
        outcomes.append(outcome)
        print_folded(_table_lines(outcome), hang=4)
    setting = report.Setting(
        device=device_label(device),
        dtype=str(dtype).removeprefix("torch."),
        torch=torch.__version__,
        triton=_version("triton"),
        rates=rates,
        command=command_line(arguments),
    )
    folder = make_run_folder(arguments.out, "bench-kernels")
    print(f"\nwritten to {folder}: {', '.join(write_files(folder, setting, outcomes))}")
    return 0


def _shrunk_lines(benchmarks: list[KernelBenchmark], shapes: dict[str, Any]) -> Iterator[str]:
    """A line for each op whose batches are not those of the declared shapes."""
    for one in benchmarks:
        whole = {shape.letter: shape["B"] for shape in one.shapes}
        parts = [f"{shape.letter} {shape['B']} of {whole[shape.letter]}" for shape in shapes[one.op]]
        if any(shape["B"] != whole[shape.letter] for shape in shapes[one.op]):
            yield f"{one.op}: the batch is shrunk (--scale 1 takes all): {', '.join(parts)}"


def _table_lines(outcome: Outcome) -> Iterator[str]:
    from medvlp_core.kernels import benchmark_report as report

    for direction in outcome.directions:
        yield ""
        yield f"{outcome.benchmark.op}, {report.TITLES[direction]}, against {outcome.benchmark.baseline}"
        yield from report.text_table(report.time_table(outcome, direction))
    yield ""
    yield f"{outcome.benchmark.op}, memory"
    yield from report.text_table(report.memory_table(outcome))
    if any(not row.is_same_op for row in outcome.rows):
        yield "  * computes something else: for orientation"
    for line in report.reasons(outcome):
        yield f"  not timed: {line}"


def command_line(arguments: argparse.Namespace) -> str:
    """The command as it could be typed again, without the folder."""
    words = ["medvlp", "bench", arguments.what]
    words += [word for name in ("op", "shape") for value in getattr(arguments, name) for word in (f"--{name}", value)]
    for name in ("device", "dtype", "direction", "scale", "repeats"):
        value = getattr(arguments, name)
        if value is not None and (name, value) != ("direction", "all"):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
