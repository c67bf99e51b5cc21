"""The first time on a GPU: check, time and tune the kernels of the memory in one go. A developer's script; not installed.

    python plugins/mpma/first_gpu_run.py --out DIR                 # on a GPU, under ten minutes
    python plugins/mpma/first_gpu_run.py --rehearse --out DIR      # the same code at toy size, on a CPU, in Triton's interpreter

Steps: ``device`` (rates), ``correctness`` (both ops, three dtypes, against float64), ``timings`` (the benchmark, shapes A to G),
``sweep`` (tiles, new tables), ``crossover`` (up to how many keys our kernels win), ``model`` (a training step of ``mpma:base``).
A step that fails is noted and the others go on; what does not fit in ``--minutes`` is left out and named. All is written as soon as
it is known: device.json, correctness.csv, kernels.csv, roofline.png, measurements.json (sweep, crossover, model), a new table for
each op, and summary.md: eight files. Look at the tables, then copy the two folders over ``medvlp_mpma/kernels`` and record what the
compiler says of them (``python tests/mpma/kernels/gate_record.py``). Nothing needs to be installed: the packages of this repository
are taken from its folders.

Exit code 0; 1 if a number is wrong (then that path is not timed in that dtype) or a step failed; 2 without a GPU.
"""

# ruff: noqa: E402  (folders of packages, and what Triton reads when it is imported, come before the imports)

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

STARTED = time.monotonic()
ROOT = Path(__file__).resolve().parents[2]
for folder in ("plugins/standard", "plugins/mpma", "."):
    sys.path.insert(0, str(ROOT / folder))
# Read when Triton is imported; worker processes inherit it.
os.environ["TRITON_INTERPRET"] = str(int("--rehearse" in sys.argv))

import argparse
import csv
import functools
import gc
import json
import math
import multiprocessing
import re
import statistics
import subprocess
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.pool import AsyncResult, Pool
from typing import Any
from unittest import mock

import attrs
import torch
from medvlp_mpma.kernels import calls, sweep
from medvlp_mpma.kernels.compile_gate import register_budget
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_attention import launch as attention_launch
from medvlp_mpma.kernels.memory_attention import tuning as attention_tuning
from medvlp_mpma.kernels.memory_attention.op import KERNEL as ATTENTION_KERNEL
from medvlp_mpma.kernels.memory_attention.op import memory_attention
from medvlp_mpma.kernels.memory_topk import benchmark as topk
from medvlp_mpma.kernels.memory_topk import tuning as topk_tuning
from medvlp_mpma.kernels.memory_topk.op import KERNEL as TOPK_KERNEL
from medvlp_mpma.kernels.memory_topk.op import memory_topk
from medvlp_mpma.kernels.tables import read_table, table_name
from torch import Tensor

from medvlp_core import KernelError, MedvlpError, Role
from medvlp_core import plan as plan_recipe
from medvlp_core.cli.bench import write as write_benchmark
from medvlp_core.kernels import Call
from medvlp_core.kernels import benchmark_report as report
from medvlp_core.kernels.benchmark import TOLERANCES, Contender, KernelBenchmark, Shape, check, wrong_rivals
from medvlp_core.kernels.machine import Rates, clock_for, device_label, measure_rates
from medvlp_core.kernels.timing import Row, geometric_mean, measure
from medvlp_core.model import ComposedModel
from medvlp_core.nn import ImageTextBatch
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import Override

REHEARSE = calls.is_interpreted()
DEVICE = torch.device("cpu") if REHEARSE else torch.device("cuda", 0)
TIMED = torch.float32 if REHEARSE else torch.bfloat16
CHECKED = (torch.float32, torch.float16) if REHEARSE else (torch.bfloat16, torch.float16, torch.float32)
WORKERS = 2 if REHEARSE else max(2, min(12, (os.cpu_count() or 4) - 4))
ROUNDS = 1 if REHEARSE else None

#: Steps, and the seconds that each leaves for those behind it.
LEAVES = {"device": 0, "correctness": 300, "timings": 170, "sweep": 100, "crossover": 70, "model": 15}
BENCHMARKS = (attention.BENCHMARK, topk.BENCHMARK)
KERNELS = {one.name: one for one in (ATTENTION_KERNEL, TOPK_KERNEL)}
KEYS = (16, 50, 128, 197, 256, 512, 1025)
BATCHES = (256, 128, 64)
TOY = {"B": 1, "H": 1, "L": 9, "S": 7, "M": 21, "D": 16, "K": 5}


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16`` of ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def in_rehearsal(shape: Shape) -> Shape:
    """A shape at toy size in a rehearsal; D and G keep too many queries for the kernel that does the keys, too."""
    if not REHEARSE:
        return shape
    small = {letter: TOY[letter] for letter in shape.sizes}
    return shape.resized(**small | ({"L": 20} if shape.letter in "DG" else {}))


# ---------------------------------------------------------------------------------------------------------------- correctness


@attrs.frozen(kw_only=True)
class Case:
    """A call that is checked; ``topk`` makes it one of ``mpma.memory_topk``. ``on`` names what is switched on."""

    name: str
    batch: int = 3
    heads: int = 2
    queries: int = 37
    keys: int = 0
    slots: int = 0
    width: int = 64
    topk: int = 0
    on: frozenset[str] = frozenset()
    dropout_p: float = 0.0

    @property
    def op(self) -> str:
        """The op's name."""
        return topk.NAME if self.topk else attention.NAME

    @property
    def sizes(self) -> str:
        """All sizes in one line."""
        sizes = (self.batch, self.heads, self.queries, self.keys, self.slots, self.width, self.topk)
        return " ".join(f"{letter}={size}" for letter, size in zip("BHLSMDK", sizes, strict=True))

    def shrunk(self) -> Case:
        """The same for a rehearsal: too many queries for the kernel that does the keys, too, stay too many."""
        queries, keys, slots = -(-self.queries // 8), -(-self.keys // 16), -(-self.slots // 16)
        chosen = slots + 1 if self.topk >= self.slots else max(2, self.topk // 8)
        width, chosen = self.width // 4, chosen if self.topk else 0
        batch = 2 if self.on else 1
        return attrs.evolve(self, batch=batch, queries=queries, keys=keys, slots=slots, width=width, topk=chosen)


ALL = frozenset({"key_lens", "key_mask", "query_lens", "bias", "closed"})
CASES = (
    Case(name="A", queries=100, keys=50, slots=256),
    Case(name="odd sizes, padding", queries=37, keys=33, slots=35, on=frozenset({"key_lens", "query_lens"})),
    Case(name="one row", batch=1, heads=1, queries=1, keys=1, slots=1),
    Case(name="two kernels, key mask, bias", queries=200, keys=70, slots=130, on=frozenset({"key_mask", "bias", "closed"})),
    Case(name="two kernels, all, dropout", queries=129, keys=50, slots=70, on=ALL, dropout_p=0.1),
    Case(name="one kernel, all, dropout", queries=100, keys=77, slots=70, on=ALL, dropout_p=0.1),
    Case(name="no keys", queries=100, slots=300, on=frozenset({"query_lens"})),
    Case(name="no slots", queries=100, keys=50, on=frozenset({"key_lens"})),
    Case(name="gradient of lse", queries=140, keys=50, slots=40, on=frozenset({"lse", "key_lens"})),
    Case(name="strided views", queries=100, keys=50, slots=64, on=frozenset({"views"})),
    Case(name="many keys", queries=256, keys=1025, slots=256, on=frozenset({"query_lens"})),
    Case(name="width 96", queries=130, keys=197, slots=100, width=96, on=frozenset({"key_lens"})),
    Case(name="width 128", queries=64, keys=64, slots=64, width=128),
    Case(name="width 128, two kernels, all", queries=150, keys=50, slots=90, width=128, on=ALL, dropout_p=0.1),
    Case(name="width 24", queries=17, keys=5, slots=9, width=24),
    Case(name="G", slots=2048, topk=32),
    Case(name="G, odd, tall", queries=149, slots=2043, topk=32, on=frozenset({"views"})),
    Case(name="K >= M", slots=20, topk=32),
    Case(name="ties", slots=300, topk=7, on=frozenset({"ties"})),
    Case(name="ties, 2048 slots", slots=2048, topk=32, on=frozenset({"ties"})),
    Case(name="top-k, dropout", slots=1000, topk=16, dropout_p=0.1),
    Case(name="top-k, width 96", slots=512, width=96, topk=32),
    Case(name="top-k, width 128", slots=500, width=128, topk=32),
    Case(name="4096 slots", slots=4096, topk=32),
)


def draw(case: Case, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    """The arguments of the op, rounded to ``dtype``; hidden keys and padded queries hold NaN."""
    new = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        if "ties" in case.on:  # whole numbers: products are exact, and many are equal
            return torch.randint(-1, 2, shape, generator=new).to(dtype)
        x = torch.randn(*shape, generator=new, dtype=torch.float64).to(dtype)
        return torch.stack([x, x], dim=-3)[..., 0, :, :] if "views" in case.on else x

    q = normal(case.batch, case.queries, case.heads, case.width)
    mem_k, mem_v = (normal(case.slots, case.heads, case.width) for _ in range(2))
    found: dict[str, Any] = {"q": q, "mem_k": mem_k, "mem_v": mem_v, "dropout_p": case.dropout_p}
    if case.topk:
        return found | {"topk": case.topk}
    k, v = (normal(case.batch, case.keys, case.heads, case.width) for _ in range(2))
    key_lens, query_lens = (torch.tensor([size, size // 2, 0])[: case.batch] for size in (case.keys, case.queries))
    found |= {"k": k, "v": v, "key_lens": key_lens.int() if "key_lens" in case.on else None}
    found["query_lens"] = query_lens.flip(0) if "query_lens" in case.on else None
    found["key_is_valid"] = torch.rand(case.batch, case.keys, generator=new) > 0.4 if "key_mask" in case.on else None
    if "bias" in case.on:
        found["mem_bias"] = torch.tensor([-math.inf if "closed" in case.on else 0.7, -0.4])[: case.heads]
    masks = AttentionInputs(q, k, v, mem_k, mem_v, *(found[name] for name in ("key_lens", "key_is_valid", "query_lens")))
    if (hidden := masks.masked_keys) is not None:
        k[hidden], v[hidden] = math.nan, math.nan
    if (lost := masks.lost_queries) is not None:
        q[lost] = math.nan
    return found


def drawn(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """:func:`draw` on the device, with winners that are clear unless ties are wanted: rounding must not swap slots."""
    for seed in range(50):
        found = draw(case, dtype, seed)
        if not 0 < case.topk < case.slots or "ties" in case.on:
            break
        scores = torch.einsum("blhd,mhd->blhm", found["q"].double(), found["mem_k"].double())
        best = scores.topk(case.topk + 1, dim=-1).values
        if (best[..., -2] - best[..., -1]).min() > topk.SMALLEST_GAP * scores.abs().max():
            break
    return {name: _moved(x) if isinstance(x, Tensor) else x for name, x in found.items()}


def _moved(x: Tensor) -> Tensor:
    """On the device with the same strides."""
    if x.is_contiguous():
        return x.to(DEVICE)
    module = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)
    return module.copy_(x)


def results(case: Case, given: dict[str, Any], path: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output, lse and every gradient by a path; memory that a kernel forgets to write holds NaN."""
    leaves = {}
    for name in ("q", "k", "v", "mem_k", "mem_v", "mem_bias"):
        if given.get(name) is not None:
            x = given[name]
            wide = torch.promote_types(x.dtype, dtype) if name == "mem_bias" else dtype
            leaves[name] = x.detach() if x.dtype == wide else x.to(wide)
            leaves[name].requires_grad_()
    torch.manual_seed(1234)  # the seed of dropout
    with mock.patch.object(torch, "empty", _poisoned):
        if case.topk:
            outputs = {"out": memory_topk(**given | leaves, path=path)}
        else:
            out, lse = memory_attention(**given | leaves, return_lse=True, path=path)
            outputs = {"out": out, "lse": lse.masked_fill(lse == -math.inf, 0.0)}
        roots = [x for name, x in outputs.items() if name == "out" or "lse" in case.on]
        generator = torch.Generator().manual_seed(5)
        upstream = [torch.randn(x.shape, generator=generator).half().to(x) for x in roots]
        if given.get("query_lens") is not None:
            lost = torch.arange(case.queries, device=DEVICE) >= given["query_lens"][:, None]
            upstream = [x.masked_fill(lost.reshape(*lost.shape, *(1,) * (x.dim() - 2)), 0.0) for x in upstream]
        gradients = torch.autograd.grad(roots, list(leaves.values()), upstream, allow_unused=True)
    found = {f"grad {name}": torch.zeros_like(leaves[name]) if x is None else x for name, x in zip(leaves, gradients, strict=True)}
    return {name: x.detach() for name, x in outputs.items()} | found


_empty = torch.empty


def _poisoned(*size: Any, **options: Any) -> Tensor:
    x = _empty(*size, **options)
    return x.fill_(math.nan) if x.is_floating_point() else x


def error_of(found: Tensor, wanted: Tensor, least: float) -> float:
    """The largest difference, relative to the largest number that is wanted, or to ``least`` if that is more; NaN is infinite."""
    if not wanted.numel():
        return 0.0
    difference = (found.double() - wanted.double()).abs().max().item()
    return math.inf if math.isnan(difference) else difference / max(least, wanted.abs().max().item())


_broken = ""


def check_case(task: tuple[int, torch.dtype]) -> list[dict[str, Any]]:
    """Rows of correctness.csv for a case in a dtype. Runs in a worker; after a CUDA error that worker is of no more use."""
    global _broken
    case, dtype = CASES[task[0]], task[1]
    case = case.shrunk() if REHEARSE else case
    common = {"op": case.op, "case": case.name, "sizes": case.sizes, "dtype": name_of(dtype)}
    rows = []
    for path in ("composite", "triton"):
        row: dict[str, Any] = {**common, "path": path, "tensor": "", "error": "", "reason": ""}
        if _broken:
            rows.append({**row, "verdict": "not checked", "reason": f"an earlier case broke this process: {_broken}"})
            continue
        try:
            given = drawn(case, dtype)
            wanted = results(case, given, "reference", torch.float64)
            first, second = (results(case, given, path, dtype) for _ in range(2))
            for name, x in first.items():
                # The bias has a sum over everything that mostly cancels: what may be left are the roundings of its parts.
                is_sum = name == "grad mem_bias"
                error, most = error_of(x, wanted[name], 1.0 if is_sum else 0.01), TOLERANCES[dtype] * (4 if is_sum else 1)
                verdict = "green" if error <= most else "red"
                rows.append({**row, "tensor": name, "error": f"{error:.2e}", "tolerance": most, "verdict": verdict})
            changed = [name for name, x in first.items() if not torch.equal(x, second[name])]
            verdict = "red" if changed and path == "triton" else "changes" if changed else "green"
            rows.append({**row, "tensor": "same bits twice", "verdict": verdict, "reason": ", ".join(changed)})
        except Exception as error:
            text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
            is_refusal = isinstance(error, KernelError) and any(one.code == "MV401" for one in error.problems)
            if is_refusal:
                text = "; ".join(error.problems[0].details)  # type: ignore[attr-defined]
            _broken = text if not is_refusal and "CUDA error" in str(error) else ""
            rows.append({**row, "verdict": "not served" if is_refusal else "red", "reason": f"{type(error).__name__}: {text}"})
    return rows


# ---------------------------------------------------------------------------------------------------------------------- sweep


@functools.cache
def small_call(with_threshold: bool, queries: int) -> sweep.SweepCall:
    """A call that compiles the very same as the large ones: small where Triton does not specialise on a size."""
    if with_threshold:
        sizes = {"B": 16, "H": 2, "L": queries, "M": 2048, "D": 64, "K": 32}
    else:
        sizes = {"B": 2, "H": 2, "L": queries, "S": 16, "M": 64, "D": 64}
    sizes = {**{name: TOY[name] for name in sizes}, "L": queries} if REHEARSE else sizes
    return sweep.SweepCall.make(Shape(letter="", about="", sizes=sizes), DEVICE, TIMED)


def compile_rule(task: tuple[str, sweep.Rule, tuple[bool, ...]]) -> dict[str, Any]:
    """Compile a candidate in a worker, with a threshold or without one or both; it stays in Triton's cache on disk.

    The answer is what the last of them needs, and why the candidate is left out, if it is.
    """
    kernel, rule, variants = task
    small, large = (9, 20) if REHEARSE else (100, 149)
    found: dict[str, Any] = {"reason": ""}
    for with_threshold in variants:
        try:
            launch, _ = small_call(with_threshold, small if kernel == "grad_query_with_keys" else large).launch(kernel, rule)
        except Exception as error:
            return {**found, "reason": f"{type(error).__name__}: {str(error)[:160]}"}
        found |= launch.needs
        if launch.needs["spills"]:
            return {**found, "reason": f"spills {launch.needs['spills']} words"}
        if (launch.needs["registers"] or 0) > (budget := register_budget(rule["warps"])):
            return {**found, "reason": f"uses {launch.needs['registers']} registers, the budget is {budget}"}
    return found


# ------------------------------------------------------------------------------------------------------------------------ run


class Skipped(Exception):
    """A step, or the rest of it, is left out: for lack of time, of a package, or because numbers are wrong."""


@attrs.define(kw_only=True)
class Run:
    """What was found so far. Every step writes as it goes."""

    out: Path
    seconds: float
    command: str
    rates: Rates | None = None
    steps: dict[str, str] = attrs.field(factory=dict)
    checks: list[dict[str, Any]] = attrs.field(factory=list)
    outcomes: list[report.Outcome] = attrs.field(factory=list)
    timing_text: str = ""
    found: dict[str, Any] = attrs.field(factory=dict)
    tables: dict[str, sweep.Table] = attrs.field(factory=dict)

    @property
    def label(self) -> str:
        """The device in words."""
        return f"REHEARSAL, Triton's interpreter on a {device_label(DEVICE)}" if REHEARSE else device_label(DEVICE)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.seconds - (time.monotonic() - STARTED)

    def need_time(self, step: str, what: str) -> None:
        """Stop a step at ``what`` if the time that is left belongs to later steps.

        Raises:
            Skipped: it does.
        """
        leaves = LEAVES[step] * min(1.0, self.seconds / 540)
        if self.left < leaves:
            raise Skipped(f"no time for {what}: {max(0.0, self.left):.0f} s are left, {leaves:.0f} s belong to what comes behind")

    def say(self, text: str) -> None:
        """A line on the terminal, with the time."""
        print(f"[{time.monotonic() - STARTED:5.0f} s] {'REHEARSAL ' if REHEARSE else ''}{text}", flush=True)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """A file of numbers."""
        marked = {"rehearsal": REHEARSE, "device": self.label, **content}
        (self.out / name).write_text(json.dumps(marked, indent=1) + "\n", encoding="utf-8")

    def note(self, name: str, content: Any) -> None:
        """Keep a finding and write measurements.json."""
        self.found[name] = content
        self.write_json("measurements.json", self.found)

    @property
    def setting(self) -> report.Setting:
        """What the benchmark's files say about the device."""
        if self.rates is None:
            self.rates = measure_rates(DEVICE, TIMED)
        versions = {"torch": torch.__version__, "triton": _version("triton")}
        return report.Setting(device=self.label, dtype=name_of(TIMED), **versions, rates=self.rates, command=self.command)

    def measure(self, benchmark: KernelBenchmark, shape: Shape, contenders: Sequence[Contender], skipped: Any = None) -> list[Row]:
        """Times of contenders at a shape."""
        rates = self.setting.rates
        return measure(benchmark, [shape], DEVICE, TIMED, rates, contenders=contenders, rounds=ROUNDS, skipped=skipped)

    def red(self, op: str, path: str, dtype: torch.dtype = TIMED) -> bool:
        """Whether a path gave something wrong in a dtype."""
        return any(
            row["verdict"] == "red" for row in self.checks if (row["op"], row["path"], row["dtype"]) == (op, path, name_of(dtype))
        )

    def rows(self, op: str, contender: str, direction: str) -> dict[str, Row]:
        """Rows with times by letter."""
        of_op = (one for one in self.outcomes if one.benchmark.op == op)
        return {row.shape.letter: row for one in of_op for row in one.of(direction, contender)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def step_device(run: Run, pool: Pool) -> None:
    """Versions and rates."""
    content: dict[str, Any] = {"python": sys.version.split()[0], "cpu_cores": os.cpu_count()}
    content |= {name: _version(name) for name in ("torch", "triton", "timm", "transformers", "numpy")}
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


def step_correctness(run: Run, pool: Pool) -> None:
    """Every case in every dtype, in workers: a crash of one does not end the others."""
    tasks = [(index, dtype) for dtype in CHECKED for index in range(len(CASES))]
    if REHEARSE:  # each case once
        tasks = [(index, CHECKED[index % 3 == 2]) for index in range(len(CASES))]
    data_seconds = {(CASES[index].name, name_of(dtype)) for index, dtype in tasks}
    found = pool.imap_unordered(check_case, tasks)
    columns = ("device", "dtype", "op", "case", "sizes", "path", "tensor", "error", "tolerance", "verdict", "reason")
    with (run.out / "correctness.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        try:
            while data_seconds:
                run.need_time("correctness", f"{len(data_seconds)} of {len(tasks)} checks")
                try:
                    rows = found.next(timeout=10.0)
                except multiprocessing.TimeoutError:
                    continue
                data_seconds -= {(row["case"], row["dtype"]) for row in rows}
                run.checks += rows
                writer.writerows({"device": run.label, **row} for row in rows)
                stream.flush()
        finally:
            for case, dtype in sorted(data_seconds):
                writer.writerow({"device": run.label, "dtype": dtype, "case": case, "verdict": "not checked"})
            run.found["not_checked"] = len(data_seconds)
    for row in run.checks:
        if row["verdict"] == "red":
            run.say(f"RED {row['op']} {row['path']} {row['dtype']}, {row['case']}: {row['tensor']} {row['error']} {row['reason']}")


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
                write_benchmark(run.out, run.setting, run.outcomes)
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
    call = attention.by_path("triton")(inputs)
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


def step_sweep(run: Run, pool: Pool) -> None:
    """Time single kernels with candidates of tiles; new tables; our path with the old and the new ones."""
    if run.red(attention.NAME, "triton"):
        raise Skipped("the kernels give wrong numbers, see correctness.csv")
    run.need_time("sweep", "any of it")
    letters = "BCD" if run.red(topk.NAME, "triton") else "BCDG"
    able = {one.letter: sweep.SweepCall.make(one, DEVICE, TIMED) for one in all_shapes() if one.letter in letters}
    base = base_tables()
    plans = []
    for kernel in sweep.KERNELS:
        used = {letter: call for letter, call in able.items() if kernel in call.kernels}
        if used:
            name = sweep.TOPK if kernel == "threshold" else sweep.ATTENTION
            rule = sweep.current_rule(base[name], kernel, [call.inputs for call in used.values()])
            variants = tuple(dict.fromkeys(call.topk is not None for call in used.values()))
            rules = sweep.candidates(kernel, rule, is_rehearsal=REHEARSE)
            plans.append((kernel, name, used, [(one, pool.apply_async(compile_rule, [(kernel, one, variants)])) for one in rules]))
    run.say(f"sweep: {sum(len(tried) for *_, tried in plans)} candidates")
    tables = dict(base)
    for kernel, name, used, tried in plans:
        old, best = tried[0][0], sweep_kernel(run, kernel, used, tried)
        if best != old:
            tables[name] = sweep.replaced(tables[name], kernel, old, best)
        run.say(f"{kernel}: {sweep.text_of(best)} (was {sweep.text_of(old)})")
        run.tables = tables
        write_tables(run)
    able.clear()
    retime(run, base)


def all_shapes() -> list[Shape]:
    """Shapes A to G."""
    return [in_rehearsal(shape) for one in BENCHMARKS for shape in one.shapes]


def base_tables() -> dict[str, sweep.Table]:
    """The tables that this GPU (or the interpreter) uses now."""
    modules = {sweep.ATTENTION: attention_tuning, sweep.TOPK: topk_tuning}
    return {name: read_table(one.TABLES, table_name(one.TABLES, DEVICE)) for name, one in modules.items()}


def sweep_kernel(
    run: Run, kernel: str, used: dict[str, sweep.SweepCall], tried: Sequence[tuple[sweep.Rule, AsyncResult[dict[str, Any]]]]
) -> sweep.Rule:
    """The rule with the least geometric mean of times; the current one, which is the first, unless another is 2 % faster."""
    clock, rows = clock_for(DEVICE), run.found.setdefault("sweep", [])
    best, best_mean = tried[0][0], math.inf
    for rule, answer in tried:
        row: dict[str, Any] = {"kernel": kernel, "tiles": sweep.text_of(rule), "is_current": rule is tried[0][0], "ms": {}}
        try:
            run.need_time("sweep", f"more tiles of {kernel}")
            row |= answer.get(timeout=max(1.0, run.left))
            for letter, call in used.items():
                if not row["reason"]:
                    launch, error = call.launch(kernel, rule)
                    row["ms"][letter] = 1e3 * sweep.time_of(launch, clock, 1 if REHEARSE else 15)
                    row["reason"] = "" if error <= TOLERANCES[TIMED] else f"wrong at {letter}: {error:.1e}"
        except Skipped as error:
            run.say(str(error))
            row["reason"] = str(error)
        except Exception as error:
            row["reason"] = f"{type(error).__name__}: {str(error)[:160]}"
        if not row["reason"]:
            row["mean_ms"] = statistics.geometric_mean(row["ms"].values())
            if row["mean_ms"] < (0.98 if best_mean < math.inf else 1.0) * best_mean:
                best, best_mean = rule, row["mean_ms"]
        rows.append(row)
        if row["reason"].startswith("no time"):
            break
    run.note("sweep", rows)
    return best


def write_tables(run: Run) -> None:
    """The tables as they would be kept."""
    for name, table in run.tables.items():
        folder = run.out / name / "tuning"
        folder.mkdir(parents=True, exist_ok=True)
        stem = "rehearsal" if REHEARSE else "sm_{}{}".format(*torch.cuda.get_device_capability(DEVICE))
        (folder / f"{stem}.json").write_text(sweep.table_text(table), encoding="utf-8")


def retime(run: Run, base: dict[str, sweep.Table]) -> None:
    """Our path with the old and the new tables, at all shapes."""
    changed = {name: table for name, table in run.tables.items() if table != base[name]}
    if not changed:
        run.say("the tables stay as they are")
        return
    found: list[dict[str, Any]] = []
    contenders = [sweep.contender("old", {}), sweep.contender("new", changed)]
    for benchmark in BENCHMARKS:
        if run.red(benchmark.op, "triton"):
            continue
        for shape in map(in_rehearsal, benchmark.shapes[:1] if REHEARSE else benchmark.shapes):
            run.need_time("sweep", f"old against new tables at {shape.letter}")
            rows = run.measure(benchmark, shape, contenders)
            found += medians(rows, shape=shape.letter)
            run.note("old_and_new_tables", found)


def medians(rows: Iterable[Row], **more: Any) -> list[dict[str, Any]]:
    """Medians in ms by direction: a line each, with a column for each contender, or the reason why it has no time."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = found.setdefault(row.direction, {**more, "direction": row.direction})
        line[row.contender] = round(1e3 * row.quantile(0.5), 5) if row.times else row.reason
    return list(found.values())


def step_crossover(run: Run, pool: Pool) -> None:
    """Our path against the composite over the number of keys; for TRITON_UP_TO_KEYS in memory_attention/tuning.py."""
    for path in ("triton", "composite"):
        if run.red(attention.NAME, path):
            raise Skipped(f"{path} gives wrong numbers, see correctness.csv")
    contenders = [sweep.contender("triton", run.tables), next(one for one in attention.CONTENDERS if one.name == "composite")]
    found: list[dict[str, Any]] = []
    for keys in (4, 20) if REHEARSE else KEYS:
        run.need_time("crossover", f"S={keys} and more")
        shape = in_rehearsal(attention.BENCHMARK.at("B")[0].resized(B=64)).resized(S=keys)
        rows = run.measure(attention.BENCHMARK, shape, contenders)
        found += medians(rows, S=keys)
        run.note("crossover", found)


# ---------------------------------------------------------------------------------------------------------------------- model


def step_model(run: Run, pool: Pool) -> None:
    """Images a second of a training step of ``mpma:base`` on made-up batches, with each path of the memory."""
    run.need_time("model", "building it")
    try:
        model, make_batch = build()
    except (ImportError, MedvlpError) as error:
        raise Skipped(f"the model cannot be built here: {' '.join(str(error).split())[:300]}") from error
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=DEVICE.type == "cuda")
    found: list[dict[str, Any]] = []
    for batch_size in (2,) if REHEARSE else BATCHES:
        batch = make_batch(batch_size)
        for path in ("triton", "composite", "reference"):
            run.need_time("model", f"batch {batch_size} with {path}")
            row: dict[str, Any] = {"batch": batch_size, "kernel": path}
            if run.red(topk.NAME, path):
                row["reason"] = "red in correctness.csv"
            else:
                try:
                    row |= train_steps(model, optimizer, batch, path)
                except Exception as error:  # out of memory, most likely
                    row["reason"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
                optimizer.zero_grad(set_to_none=True)
                if DEVICE.type == "cuda":
                    torch.cuda.empty_cache()
            found.append(row)
            run.note("model", found)
            run.say(json.dumps(row))


def build() -> tuple[ComposedModel, Callable[[int], ImageTextBatch]]:
    """The model of ``mpma:base`` (a rehearsal: a tiny one), and a function that makes batches."""
    import medvlp_mpma.plugin
    import medvlp_standard.plugin

    from medvlp_core.model import build_model, build_tokenizer, image_geometry

    host = PluginHost.from_modules({"standard": medvlp_standard.plugin, "mpma": medvlp_mpma.plugin})
    changes = [(f"{block}.{name}", value) for block, text in TINY_MODEL.items() for name, value in re.findall(r"(\w+)=(\w+)", text)]
    overrides = [Override("set", path, value, f"--set {path}={value}") for path, value in changes if REHEARSE]
    plan = plan_recipe("mpma:base", overrides, host=host)
    build_tokenizer(plan)  # for its sizes: nothing is tokenised here
    model = build_model(plan, seed=0).to(DEVICE).train()
    image, tokenizer = image_geometry(plan), plan.one(Role.TOKENIZER)
    assert tokenizer is not None
    assert image.target_height is not None
    assert image.target_width is not None
    target = (image.channels, image.target_height, image.target_width)
    length, vocabulary = tokenizer.spec.max_length, tokenizer.spec.vocab_size  # type: ignore[attr-defined]

    def make_batch(size: int) -> ImageTextBatch:
        token_ids = torch.randint(5, vocabulary, (size, length), device=DEVICE)
        word_ids = (torch.arange(length, device=DEVICE) - 1).expand(size, -1).contiguous()
        return ImageTextBatch(
            image=torch.randn(size, image.channels, image.height, image.width, device=DEVICE),
            image_target=torch.randn(size, *target, device=DEVICE),
            token_ids=token_ids,
            text_is_valid=torch.ones_like(token_ids, dtype=torch.bool),
            word_ids=word_ids,
            record_index=torch.arange(size, device=DEVICE),
        )

    return model, make_batch


#: What makes the model of a rehearsal tiny.
TINY_MODEL = {
    "tokenizer": "vocab_size=40 max_length=9",
    "model.image_encoder": "image_size=32 patch_size=8 width=16 depth=1 heads=2",
    "model.text_encoder": "width=12 layers=1 heads=2 ffn_width=24",
    "model.fusion": "slots=10 topk=3 heads=2 layers=1",
    "model.decoders.image": "target_size=64 width=16 depth=1 heads=2",
}


def train_steps(model: ComposedModel, optimizer: torch.optim.Optimizer, batch: ImageTextBatch, path: str) -> dict[str, float]:
    """Time training steps with a path for every op."""
    before, steps = (1, 1) if REHEARSE else (3, 10)
    times = []
    with mock.patch.dict(os.environ, {"MEDVLP_KERNELS": path}):
        for step in range(before + steps):
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
                if step == before:
                    torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=not REHEARSE):
                loss = model(batch).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            is_finite = math.isfinite(loss.item())
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            if not is_finite:
                raise ValueError("the loss is not finite")
    seconds = statistics.median(times[before:])
    peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
    return {"step_ms": round(1e3 * seconds, 2), "images_per_s": round(len(batch.image) / seconds, 1), "peak_bytes": peak}


# -------------------------------------------------------------------------------------------------------------------- summary


def verdict(is_met: bool | None) -> str:
    """In words; a rehearsal meets nothing."""
    return "not measured" if is_met is None else "rehearsal" if REHEARSE else "met" if is_met else "NOT MET"


def goals(run: Run) -> Iterator[tuple[str, str, bool | None]]:
    """Goal, what was measured, and whether it is met (None: not measured)."""
    worst: dict[str, float] = {}
    for row in run.checks:
        if row["path"] == "triton" and row["error"]:
            worst[row["dtype"]] = max(worst.get(row["dtype"], 0.0), float(row["error"]))
    ours = [row for row in run.checks if row["path"] == "triton"]
    is_complete = bool(ours) and not run.found.get("not_checked") and all(row["verdict"] != "not checked" for row in ours)
    same = [row for row in ours if row["tensor"] == "same bits twice"]
    is_right = all(row["verdict"] != "red" for row in ours)
    yield (
        "correctness of `triton`: fp32 < 1e-4, fp16 < 2e-3, bf16 < 1e-2, output and gradients against float64",
        ", ".join(f"{dtype} {error:.1e}" for dtype, error in worst.items()),
        is_right if is_complete or not is_right else None,
    )
    are_same = all(row["verdict"] == "green" for row in same)
    yield "gradients of `triton` bitwise repeatable", f"{len(same)} calls", are_same if same else None
    for direction, least in (("forward", 1.8), ("both", 1.3)):
        mean = mean_ratio(run.rows(attention.NAME, "triton", direction))
        shown, is_met = ("", None) if mean is None else (f"{mean:.2f}x", mean >= least)
        yield f"{report.TITLES[direction]}, A to F, >= {least} times cat + SDPA, geometric mean", shown, is_met
    lost = [line for line, must_change in dispatch_lines(run) if must_change]
    picked = run.rows(attention.NAME, "triton", "both") | run.rows(topk.NAME, "triton", "both")
    goal = "never slower than the best rival where dispatch takes `triton`, forward + backward"
    yield goal, f"slower at {len(lost)} shapes" if picked else "", not lost if picked else None
    for direction, share in (("forward", 0.35), ("backward", 0.20)):
        found = {k: one.share_of_floor for k, one in run.rows(attention.NAME, "triton", direction).items() if k in "BCDE"}
        shown = ", ".join(f"{letter} {100 * value:.0f} %" for letter, value in found.items())
        is_met = min(found.values()) >= share if len(found) == 4 else None
        yield f"share of the floor, B to E, {direction} >= {100 * share:.0f} %", shown, is_met
    of_g = run.rows(topk.NAME, "triton", "both").get("G")
    ratio, saved = (of_g.ratio, of_g.saved_bytes) if of_g else (None, None)
    shown = "" if ratio is None else f"{ratio:.2f}x, {report.megabytes(saved)} MB saved"
    is_met = None if ratio is None or saved is None else ratio >= 2.0 and saved <= 1e9
    yield "G at batch 256: >= 2 times masked-dense, forward + backward, and <= 1 GB saved", shown, is_met
    yield "saved for backward: nothing beyond out, lse and threshold", *saved_memory(run)
    host = run.found.get("host_microseconds")
    extra = None if host is None else host["op"] - host["launch"]
    shown = "" if host is None else f"{host['op']:.1f} us a call, of which the launch {host['launch']:.1f}"
    yield "host: <= 15 us a call for the op around the launch", shown, None if extra is None else extra <= 15.0


def mean_ratio(rows: dict[str, Row]) -> float | None:
    """The geometric mean over A to F, if all were measured."""
    return geometric_mean(list(rows.values())) if set(rows) == set("ABCDEF") else None


def saved_memory(run: Run) -> tuple[str, bool | None]:
    """How much more is saved than out, lse and threshold, and whether that is nothing."""
    more = {}
    for op in (attention.NAME, topk.NAME):
        for letter, row in run.rows(op, "triton", "both").items():
            rows = row.shape["B"] * row.shape["L"] * row.shape["H"]
            most = rows * (row.shape["D"] * TIMED.itemsize + 4 + (4 if "K" in row.shape.sizes else 0))
            more[letter] = (row.saved_bytes or 0) - most
    text = ", ".join(f"{letter} {report.megabytes(count)} MB too many" for letter, count in more.items() if count > 0)
    return text or ("nothing" if more else ""), not text if more else None


def dispatch_lines(run: Run) -> Iterator[tuple[str, bool]]:
    """For each shape where `triton` is not the fastest, or not taken although it is: a line, and whether dispatch must change."""
    for outcome in run.outcomes:
        for shape in outcome.shapes:
            rows = [row for row in outcome.rows if row.shape == shape and row.direction == "both" and row.times and row.is_same_op]
            ours = next((row for row in rows if row.contender == "triton"), None)
            if ours is None:
                yield f"{shape.letter}: `triton` was not timed", False
                continue
            others = [row for row in rows if row.contender != "triton"]
            best = min(others, key=lambda row: row.quantile(0.5))
            gain = best.quantile(0.5) / ours.quantile(0.5)
            call = Call("cuda", "bfloat16", tuple({"S": 0, **shape.sizes}.items()))
            is_taken = KERNELS[outcome.benchmark.op].order(call)[0] == "triton"
            times = f"{report.milliseconds(ours.quantile(0.5))} ms, {best.contender} {report.milliseconds(best.quantile(0.5))} ms"
            if gain < 1.0:
                advice = "dispatch takes it: **dispatch must be changed**" if is_taken else "dispatch does not take it"
                yield f"{shape.letter}: `triton` is not the fastest ({times}, {gain:.2f}x); {advice}", is_taken
            elif not is_taken:
                yield f"{shape.letter}: `triton` is the fastest ({times}, {gain:.2f}x) and dispatch does not take it", False


def crossover_line(run: Run) -> str:
    """Up to how many keys our path is faster, forward + backward."""
    rows = [row for row in run.found.get("crossover", []) if row["direction"] == "both"]
    times = [(row["triton"], row["composite"]) for row in rows]
    wins = [isinstance(ours, float) and isinstance(other, float) and ours < other for ours, other in times]
    if not rows:
        return "not measured"
    until = next((index for index, is_win in enumerate(wins) if not is_win), len(wins))
    where = f"up to S={rows[until - 1]['S']}" if until else "nowhere"
    later = [str(row["S"]) for row, is_win in zip(rows[until:], wins[until:], strict=True) if is_win]
    again = f", and again at S={', '.join(later)}" if later else ""
    now = attention_tuning.TRITON_UP_TO_KEYS
    return f"`triton` is faster than `composite` {where}{again} of {[row['S'] for row in rows]} (TRITON_UP_TO_KEYS is {now})"


def write_summary(run: Run) -> None:
    """summary.md: goals first, then what each step found, then the benchmark's own summary."""
    title = "# REHEARSAL of the first GPU run: none of these numbers mean anything" if REHEARSE else "# First GPU run"
    table = [["goal", "measured", ""], *([goal, shown, verdict(is_met)] for goal, shown, is_met in goals(run))]
    steps = [["step", "result"], *([name, text] for name, text in run.steps.items())]
    parts = [title, f"    {run.command}", run.label, report.markdown_table(steps, is_text=True)]
    parts += ["## Goals", report.markdown_table(table, is_text=True)]
    reds = [f"- {row['op']} {row['path']} {row['dtype']}, {row['case']}: {row['tensor']} {row['error']} {row['reason']}"
            for row in run.checks if row["verdict"] == "red"]  # fmt: skip
    changes = sorted({f"- {row['op']} {row['path']} {row['dtype']}, {row['case']}: other bits in {row['reason']}"
                      for row in run.checks if row["verdict"] == "changes"})  # fmt: skip
    lines = [f"- {line}" for line, _ in dispatch_lines(run)]
    parts += ["## Wrong", "\n".join(reds) or "Nothing that was checked."]
    parts += ["## Not repeatable", "\n".join(changes) or "Nothing that was checked."]
    parts += [
        "## Dispatch (rehearsal: says nothing)" if REHEARSE else "## Dispatch",
        "\n".join(lines) or "Nothing speaks against it.",
        f"Keys: {crossover_line(run)}.",
    ]
    for name in ("old_and_new_tables", "model"):
        if rows := run.found.get(name):
            heads = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[str(row.get(head, "")) for head in heads] for row in rows]
            parts += [f"## {name.replace('_', ' ').capitalize()}", report.markdown_table([heads, *cells], is_text=True)]
    parts += [run.timing_text.replace("\n#", "\n##").replace("# Kernel", "## Kernel", 1)]
    (run.out / "summary.md").write_text("\n\n".join(parts).rstrip() + "\n", encoding="utf-8")


# ----------------------------------------------------------------------------------------------------------------------- main


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


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/first-gpu-run"), help="folder of the results")
    parser.add_argument("--minutes", metavar="N", type=float, default=9.0, help="time for all (default: 9)")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on a CPU in Triton's interpreter")
    parser.add_argument("--steps", metavar="A,B", default=",".join(STEPS), help=f"only these (default: {','.join(STEPS)})")
    arguments = parser.parse_args()
    if unknown := set(arguments.steps.split(",")) - set(STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    return arguments


def main() -> int:
    """Run the steps."""
    arguments = parse()
    if not REHEARSE and not torch.cuda.is_available():
        print("first_gpu_run: torch finds no GPU here (--rehearse tries the script without one)", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in STEPS if name in arguments.steps.split(",")]
    command = f"python plugins/mpma/first_gpu_run.py --minutes {arguments.minutes:g} --steps {','.join(chosen)}"
    run = Run(out=arguments.out, seconds=60 * arguments.minutes, command=command + " --rehearse" * REHEARSE)
    pool = multiprocessing.get_context("spawn").Pool(WORKERS, _worker_starts)
    try:
        are_fine = [do_step(run, name, pool) for name in chosen]
    finally:
        pool.terminate()
    is_red = any(row["verdict"] == "red" for row in run.checks)
    names = ", ".join(sorted(path.name for path in run.out.iterdir()))
    run.say(f"{'RED, see correctness.csv; ' if is_red else ''}written: {names}")
    return 0 if all(are_fine) and not is_red else 1


if __name__ == "__main__":
    sys.exit(main())
