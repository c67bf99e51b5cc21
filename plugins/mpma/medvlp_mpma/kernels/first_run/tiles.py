"""A search over tiles with new tables, and up to how many keys our kernels win."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from multiprocessing.pool import AsyncResult, Pool
from typing import Any

import torch

from medvlp_core.kernels.benchmark import TOLERANCES, Shape
from medvlp_core.kernels.machine import clock_for
from medvlp_core.kernels.timing import Row
from medvlp_mpma.kernels import sweep
from medvlp_mpma.kernels.compile_gate import register_budget
from medvlp_mpma.kernels.first_run.run import Run, Skipped
from medvlp_mpma.kernels.first_run.setting import BENCHMARKS, DEVICE, KEYS, REHEARSE, TIMED, TOY, in_rehearsal
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_attention import tuning as attention_tuning
from medvlp_mpma.kernels.memory_topk import benchmark as topk
from medvlp_mpma.kernels.memory_topk import tuning as topk_tuning
from medvlp_mpma.kernels.tables import read_table, table_name


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

    The answer is what the last of them needs, and why the candidate is skipped, if it is.
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


def step_sweep(run: Run, pool: Pool) -> None:
    """Time single kernels with candidates of tiles; new tables; our kernels with the old and the new ones."""
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
        folder = run.out / name / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        stem = "rehearsal" if REHEARSE else "sm_{}{}".format(*torch.cuda.get_device_capability(DEVICE))
        (folder / f"{stem}.json").write_text(sweep.table_text(table), encoding="utf-8")


def retime(run: Run, base: dict[str, sweep.Table]) -> None:
    """Our kernels with the old and the new tables, at all shapes."""
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
    """Our kernels against the composite over the number of keys; for TRITON_UP_TO_KEYS in memory_attention/tuning.py."""
    for backend in ("triton", "composite"):
        if run.red(attention.NAME, backend):
            raise Skipped(f"{backend} gives wrong numbers, see correctness.csv")
    contenders = [sweep.contender("triton", run.tables), next(one for one in attention.CONTENDERS if one.name == "composite")]
    found: list[dict[str, Any]] = []
    for keys in (4, 20) if REHEARSE else KEYS:
        run.need_time("crossover", f"S={keys} and more")
        shape = in_rehearsal(attention.BENCHMARK.at("B")[0].resized(B=64)).resized(S=keys)
        rows = run.measure(attention.BENCHMARK, shape, contenders)
        found += medians(rows, S=keys)
        run.note("crossover", found)
