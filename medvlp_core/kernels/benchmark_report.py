"""Writes the result of a benchmark down: tables for the terminal and for Markdown, and a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from medvlp_core.kernels.benchmark import Finding, KernelBenchmark, Shape
from medvlp_core.kernels.machine import Rates
from medvlp_core.kernels.timing import Row, geometric_mean

TITLES = {"forward": "forward", "backward": "backward", "both": "forward + backward"}

CSV_COLUMNS = (
    "device", "torch", "triton", "dtype", "op", "shape", "sizes", "contender", "direction", "rounds", "median_ms", "p20_ms",
    "p80_ms", "saved_bytes", "peak_bytes", "floor_ms", "share_of_floor", "ratio", "baseline", "is_same_op", "reason",
)  # fmt: skip


@attrs.frozen(kw_only=True)
class Setting:
    """Where and how it was measured."""

    device: str
    dtype: str
    torch: str
    triton: str
    rates: Rates
    command: str


@attrs.frozen(kw_only=True)
class Outcome:
    """What was found about one op."""

    benchmark: KernelBenchmark
    shapes: tuple[Shape, ...]
    findings: Sequence[Finding] = ()
    rows: Sequence[Row] = ()

    @property
    def directions(self) -> list[str]:
        """The directions that were timed."""
        return list(dict.fromkeys(row.direction for row in self.rows))

    def of(self, direction: str, contender: str) -> list[Row]:
        """Rows that have times, in the order of the shapes."""
        return [row for row in self.rows if row.direction == direction and row.contender == contender and row.times]


# --------------------------------------------------------------------------------------------------------------------- numbers


def milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, with three digits or so.

    Example:
        >>> milliseconds(0.0123456), milliseconds(1.5)
        ('12.3', '1,500')
    """
    value = seconds * 1e3
    decimals = 0 if value >= 100 else max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(decimals, 4)}f}"


def megabytes(count: int | None) -> str:
    """Bytes in millions; nothing if unknown."""
    return "" if count is None else f"{count / 1e6:,.1f}"


# ---------------------------------------------------------------------------------------------------------------------- tables


def time_table(outcome: Outcome, direction: str) -> list[list[str]]:
    """Per contender and shape the median in ms and the ratio to the baseline, then the mean ratio. Last the floor."""
    letters = [shape.letter for shape in outcome.shapes]
    table = [["ms (times as fast)", *letters, "mean"]]
    for contender in outcome.benchmark.contenders:
        rows = outcome.of(direction, contender.name)
        if not rows:
            continue
        by_letter = {row.shape.letter: row for row in rows}
        cells = [_time_cell(by_letter[letter]) if letter in by_letter else "-" for letter in letters]
        mean = geometric_mean(rows)
        # A mean over other shapes than the baseline's would not be comparable.
        table.append([name_of(rows[0]), *cells, f"{mean:.2f}x" if mean and len(rows) == len(letters) else "-"])
    floors = {row.shape.letter: row.floor for row in outcome.rows if row.direction == direction}
    table.append(["floor of this device", *(milliseconds(floors[letter]) for letter in letters), ""])
    return table


def name_of(row: Row) -> str:
    """The contender's name, with a mark if it computes something else."""
    return row.contender if row.is_same_op else f"{row.contender} *"


def _time_cell(row: Row) -> str:
    time = milliseconds(row.quantile(0.5))
    return time if row.ratio is None else f"{time} ({row.ratio:.2f}x)"


def spread_table(outcome: Outcome, direction: str) -> list[list[str]]:
    """Header and rows: per contender and shape the span of times from the 20th to the 80th percentile, in ms."""
    return _cells(
        outcome, direction, "ms, p20 to p80", lambda r: f"{milliseconds(r.quantile(0.2))} to {milliseconds(r.quantile(0.8))}"
    )


def share_table(outcome: Outcome, direction: str) -> list[list[str]]:
    """Header and rows: per contender and shape the floor as a share of the median."""
    return _cells(outcome, direction, "share of the floor", lambda row: f"{100 * row.share_of_floor:.0f} %")


def memory_table(outcome: Outcome) -> list[list[str]]:
    """Header and rows: what a forward pass keeps for the backward pass, and the peak of a pass where the device tells, in MB."""

    def cell(row: Row) -> str:
        return " / ".join(filter(None, (megabytes(row.saved_bytes), megabytes(row.peak_bytes))))

    has_peak = any(row.peak_bytes is not None for row in outcome.rows)
    return _cells(outcome, outcome.directions[-1], "MB saved / peak" if has_peak else "MB saved", cell)


def _cells(outcome: Outcome, direction: str, title: str, cell: Any) -> list[list[str]]:
    letters = [shape.letter for shape in outcome.shapes]
    table = [[title, *letters]]
    for contender in outcome.benchmark.contenders:
        by_letter = {row.shape.letter: row for row in outcome.of(direction, contender.name)}
        if by_letter:
            name = name_of(next(iter(by_letter.values())))
            table.append([name, *(cell(by_letter[letter]) if letter in by_letter else "-" for letter in letters)])
    return table


def reasons(outcome: Outcome) -> list[str]:
    """Who was not timed, where and why, a line each."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in outcome.rows:
        letters = grouped.setdefault((row.contender, row.reason), []) if row.reason else []
        if row.shape.letter not in letters:
            letters.append(row.shape.letter)
    return [f"{name} ({', '.join(letters)}): {reason}" for (name, reason), letters in grouped.items()]


def check_table(findings: Iterable[Finding]) -> list[list[str]]:
    """Header and rows: per contender the worst finding over shapes and cases."""
    worst: dict[str, Finding] = {}
    for one in findings:
        known = worst.get(one.contender)
        if known is None or _badness(one) > _badness(known):
            worst[one.contender] = one
    rows = [[one.contender, "WRONG" if one.is_red else "right", f"{one.shape}, {one.case}", one.worst] for one in worst.values()]
    return [["contender", "", "worst at", "largest relative error"], *rows]


def _badness(finding: Finding) -> float:
    if finding.reason or any(map(math.isnan, finding.errors.values())):
        return math.inf
    return max(finding.errors.values(), default=0.0)


def red_lines(findings: Iterable[Finding]) -> list[str]:
    """A line for each finding that is red."""
    return [f"{one.op}, shape {one.shape}, {one.case}: {one.contender}: {one.worst}" for one in findings if one.is_red]


def text_table(table: Sequence[Sequence[str]], *, indent: str = "  ") -> list[str]:
    """A table as lines: the first column from the left, the others from the right."""
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in table
    ]
    return [(indent + line).rstrip() for line in lines]


def markdown_table(table: Sequence[Sequence[str]], *, is_text: bool = False) -> str:
    """A table in Markdown; columns behind the first stand on the right, unless they are text."""
    head, *rows = (f"| {' | '.join(row)} |" for row in table)
    rule = " --- |" if is_text else " ---: |"
    return "\n".join([head, f"| --- |{rule * (len(table[0]) - 1)}", *rows])


# ----------------------------------------------------------------------------------------------------------------------- files


def write_csv(path: Path, setting: Setting, outcomes: Sequence[Outcome]) -> None:
    """One line for each op, shape, contender and direction; a line without times has its reason."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, CSV_COLUMNS)
        writer.writeheader()
        for outcome in outcomes:
            writer.writerows(_csv_line(row, setting, outcome.benchmark.baseline) for row in outcome.rows)


def _csv_line(row: Row, setting: Setting, baseline: str) -> dict[str, Any]:
    line: dict[str, Any] = {
        "device": setting.device,
        "torch": setting.torch,
        "triton": setting.triton,
        "dtype": setting.dtype,
        "op": row.op,
        "shape": row.shape.letter,
        "sizes": row.shape.text,
        "contender": row.contender,
        "direction": row.direction,
        "rounds": len(row.times),
        "floor_ms": f"{row.floor * 1e3:.6g}",
        "baseline": baseline,
        "is_same_op": row.is_same_op,
        "reason": row.reason,
    }
    if row.times:
        quantiles = {"median_ms": 0.5, "p20_ms": 0.2, "p80_ms": 0.8}
        line |= {name: f"{row.quantile(share) * 1e3:.6g}" for name, share in quantiles.items()}
        line |= {"saved_bytes": row.saved_bytes, "peak_bytes": row.peak_bytes, "share_of_floor": f"{row.share_of_floor:.4g}"}
        line["ratio"] = "" if row.ratio is None else f"{row.ratio:.4g}"
    return line


def write_summary(path: Path, setting: Setting, outcomes: Sequence[Outcome]) -> None:
    """Everything that was found, in Markdown."""
    parts = [
        "# Kernel benchmark",
        f"    {setting.command}",
        f"{setting.device}, {setting.dtype}, torch {setting.torch}, triton {setting.triton}. Rates of the device, measured: "
        f"{setting.rates.text}. The floor is the largest of matmul time, memory time and exponential time at these rates.",
    ]
    for outcome in outcomes:
        parts += _summary_of(outcome)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _summary_of(outcome: Outcome) -> list[str]:
    shapes = [["shape", "what", "sizes"], *([one.letter, one.about, one.text] for one in outcome.shapes)]
    contenders = [["contender", "what"], *([one.name, one.about] for one in outcome.benchmark.contenders)]
    parts = [f"## {outcome.benchmark.op}", markdown_table(shapes, is_text=True), markdown_table(contenders, is_text=True)]
    if any(not row.is_same_op for row in outcome.rows):
        parts += ["\\* computes something else: for orientation, not compared with the reference."]
    parts += [
        "### Check",
        "Against the reference in float64, at small sizes.",
        markdown_table(check_table(outcome.findings), is_text=True),
    ]
    for direction in outcome.directions:
        parts += [
            f"### Times, {TITLES[direction]}",
            f"Median in ms; in brackets how many times as fast as {outcome.benchmark.baseline}, by pairs of the same round; mean: "
            "geometric, over the shapes.",
            markdown_table(time_table(outcome, direction)),
            markdown_table(spread_table(outcome, direction)),
            markdown_table(share_table(outcome, direction)),
        ]
    parts += ["### Memory", "Kept for the backward pass, inputs not counted.", markdown_table(memory_table(outcome))]
    if lines := reasons(outcome):
        parts += ["### Not timed", "\n".join(f"- {line}" for line in lines)]
    return parts
