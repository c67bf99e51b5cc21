"""Output and gradients of every backend in several dtypes, against float64."""

from __future__ import annotations

import csv
import math
import multiprocessing
from multiprocessing.pool import Pool
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from medvlp_core import KernelError
from medvlp_core.kernels.benchmark import TOLERANCES
from medvlp_mpma.kernels.first_run.cases import CASES, Case, drawn
from medvlp_mpma.kernels.first_run.run import Run
from medvlp_mpma.kernels.first_run.setting import CHECKED, DEVICE, REHEARSE, name_of
from medvlp_mpma.kernels.memory_attention.op import memory_attention
from medvlp_mpma.kernels.memory_topk.op import memory_topk


def results(case: Case, given: dict[str, Any], backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output, lse and every gradient by a backend; memory that a kernel forgets to write holds NaN."""
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
            outputs = {"out": memory_topk(**given | leaves, backend=backend)}
        else:
            out, lse = memory_attention(**given | leaves, return_lse=True, backend=backend)
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
    for backend in ("composite", "triton"):
        row: dict[str, Any] = {**common, "backend": backend, "tensor": "", "error": "", "reason": ""}
        if _broken:
            rows.append({**row, "verdict": "not checked", "reason": f"an earlier case broke this process: {_broken}"})
            continue
        try:
            given = drawn(case, dtype)
            wanted = results(case, given, "reference", torch.float64)
            first, second = (results(case, given, backend, dtype) for _ in range(2))
            for name, x in first.items():
                # The bias has a sum over everything that mostly cancels: what may be left are the roundings of its parts.
                is_sum = name == "grad mem_bias"
                error, most = error_of(x, wanted[name], 1.0 if is_sum else 0.01), TOLERANCES[dtype] * (4 if is_sum else 1)
                verdict = "green" if error <= most else "red"
                rows.append({**row, "tensor": name, "error": f"{error:.2e}", "tolerance": most, "verdict": verdict})
            changed = [name for name, x in first.items() if not torch.equal(x, second[name])]
            verdict = "red" if changed and backend == "triton" else "changes" if changed else "green"
            rows.append({**row, "tensor": "same bits twice", "verdict": verdict, "reason": ", ".join(changed)})
        except Exception as error:
            text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
            is_refusal = isinstance(error, KernelError) and any(one.code == "MV401" for one in error.problems)
            if is_refusal:
                text = "; ".join(error.problems[0].details)  # type: ignore[attr-defined]
            _broken = text if not is_refusal and "CUDA error" in str(error) else ""
            rows.append({**row, "verdict": "not served" if is_refusal else "red", "reason": f"{type(error).__name__}: {text}"})
    return rows


def step_correctness(run: Run, pool: Pool) -> None:
    """Every case in every dtype, in workers: a crash of one does not end the others."""
    tasks = [(index, dtype) for dtype in CHECKED for index in range(len(CASES))]
    if REHEARSE:  # each case once
        tasks = [(index, CHECKED[index % 3 == 2]) for index in range(len(CASES))]
    pending = {(CASES[index].name, name_of(dtype)) for index, dtype in tasks}
    found = pool.imap_unordered(check_case, tasks)
    columns = ("device", "dtype", "op", "case", "sizes", "backend", "tensor", "error", "tolerance", "verdict", "reason")
    with (run.out / "correctness.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        try:
            while pending:
                run.need_time("correctness", f"{len(pending)} of {len(tasks)} checks")
                try:
                    rows = found.next(timeout=10.0)
                except multiprocessing.TimeoutError:
                    continue
                pending -= {(row["case"], row["dtype"]) for row in rows}
                run.checks += rows
                writer.writerows({"device": run.label, **row} for row in rows)
                stream.flush()
        finally:
            for case, dtype in sorted(pending):
                writer.writerow({"device": run.label, "dtype": dtype, "case": case, "verdict": "not checked"})
            run.found["not_checked"] = len(pending)
    for row in run.checks:
        if row["verdict"] == "red":
            run.say(
                f"RED {row['op']} {row['backend']} {row['dtype']}, {row['case']}: {row['tensor']} {row['error']} {row['reason']}"
            )
