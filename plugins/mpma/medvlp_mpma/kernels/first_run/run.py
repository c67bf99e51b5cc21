"""What a first run has found so far, and the files that it writes as it goes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs
import torch

from medvlp_core.kernels import benchmark_report as report
from medvlp_core.kernels.benchmark import Contender, KernelBenchmark, Shape
from medvlp_core.kernels.machine import Rates, device_label, measure_rates
from medvlp_core.kernels.timing import Row, measure
from medvlp_mpma.kernels import sweep
from medvlp_mpma.kernels.first_run.setting import DEVICE, LEAVES, REHEARSE, ROUNDS, TIMED, name_of


class Skipped(Exception):
    """A step, or the rest of it, is skipped: for lack of time, of a package, or because numbers are wrong."""


@attrs.define(kw_only=True)
class Run:
    """What was found so far. Every step writes as it goes."""

    out: Path
    seconds: float
    command: str
    started: float = attrs.field(factory=time.monotonic)
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
        return self.seconds - (time.monotonic() - self.started)

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
        print(f"[{time.monotonic() - self.started:5.0f} s] {'REHEARSAL ' if REHEARSE else ''}{text}", flush=True)

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
        versions = {"torch": torch.__version__, "triton": version_of("triton")}
        return report.Setting(device=self.label, dtype=name_of(TIMED), **versions, rates=self.rates, command=self.command)

    def measure(self, benchmark: KernelBenchmark, shape: Shape, contenders: Sequence[Contender], skipped: Any = None) -> list[Row]:
        """Times of contenders at a shape."""
        rates = self.setting.rates
        return measure(benchmark, [shape], DEVICE, TIMED, rates, contenders=contenders, rounds=ROUNDS, skipped=skipped)

    def red(self, op: str, backend: str, dtype: torch.dtype = TIMED) -> bool:
        """Whether a backend gave something wrong in a dtype."""
        return any(
            row["verdict"] == "red"
            for row in self.checks
            if (row["op"], row["backend"], row["dtype"]) == (op, backend, name_of(dtype))
        )

    def rows(self, op: str, contender: str, direction: str) -> dict[str, Row]:
        """Rows with times by letter."""
        of_op = (one for one in self.outcomes if one.benchmark.op == op)
        return {row.shape.letter: row for one in of_op for row in one.of(direction, contender)}


def version_of(package: str) -> str:
    """The version of a package; nothing if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
