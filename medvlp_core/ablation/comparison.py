"""The results of an ablation as a table: rows are combinations, columns metrics, one part for each evaluator. Light."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from medvlp_core.ablation.grid import AS_IN_RECIPE, Ablation
from medvlp_core.ablation.results import LOSSES, Metric, Results, Spread

#: A printed cell is about so wide: ``-0.384 ± 0.012``.
CELL = 15


@attrs.frozen(kw_only=True)
class Part:
    """The columns of one evaluator, or some of them. The rows of combinations are followed by their differences."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def parts(results: Results, *, width: int | None = None) -> Iterator[Part]:
    """The table in parts: one for each evaluator, or several of at most ``width`` characters."""
    names = max(len(one.label) for one in results.ablation.combinations) + 8
    for group in dict.fromkeys(metric.group for metric in results.metrics):
        columns: list[Metric] = []
        used = names
        for metric in (metric for metric in results.metrics if metric.group == group):
            needed = max(CELL, *map(len, metric.name.split())) + 2
            if columns and width is not None and used + needed > width:
                yield _part(results, group, columns)
                columns, used = [], names
            columns.append(metric)
            used += needed
        yield _part(results, group, columns)


def _part(results: Results, group: str, columns: Sequence[Metric]) -> Part:
    first = results.ablation.combinations[0]
    rows = []
    for one in results.ablation.combinations:
        finished = len(results.finished(one))
        rows.append((one.label, f"{finished}", *(_cell(results.spread(one, metric), finished) for metric in columns)))
        if one is first:
            continue
        shared = len(set(results.finished(one)) & set(results.finished(first)))
        differences = (_cell(results.difference(one, metric), shared, sign="+") for metric in columns)
        rows.append(("  minus the first", f"{shared}", *differences))
    header = [metric.name if metric.is_higher_better else f"{metric.name} ↓" for metric in columns]
    return Part(title=group, header=("combination", "n", *header), rows=tuple(rows))


def _cell(spread: Spread | None, count: int, *, sign: str = "") -> str:
    """``0.384 ± 0.012``, with its n where that is not the row's."""
    if spread is None:
        return "-"
    text = f"{round(spread.mean, 3) + 0.0:{sign}.3f}"  # + 0.0 makes 0 of -0
    if spread.deviation is not None:
        text += f" ± {spread.deviation:.3f}"
    return text if spread.count == count else f"{text} (n = {spread.count})"


def legend(results: Results) -> list[str]:
    """What the signs mean."""
    lines = [
        "n: seeds. Values: mean ± sample standard deviation over seeds.",
        "minus the first: the difference to the first combination, seed by seed, mean ± sample standard deviation.",
        "↓: lower is better.",
        f"{LOSSES}: of the last line of metrics.jsonl, unweighted; total is the weighted sum. "
        "Compare a loss only between combinations that compute it in the same way.",
    ]
    if any(AS_IN_RECIPE in one.values.values() for one in results.ablation.combinations):
        lines.append(f"{AS_IN_RECIPE}: as the recipe has it.")
    return lines


def summary(ablation: Ablation) -> str:
    """``2 x 2 combinations x 2 seeds = 8 runs``."""
    grid = " x ".join(str(len(axis.choices)) for axis in ablation.axes)
    seeds = f"{counted(len(ablation.seeds), 'seed')} ({', '.join(map(str, ablation.seeds))})"
    return f"{grid} combination{'' if len(ablation.combinations) == 1 else 's'} x {seeds} = {counted(len(ablation.runs()), 'run')}"


def counted(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def wrapped_name(name: str) -> list[str]:
    """The name of a column in lines about as wide as its cells."""
    return textwrap.wrap(name, CELL, break_long_words=False)


def plain_lines(part: Part) -> list[str]:
    """A part as aligned lines; long names of metrics are broken.

    Example:
        >>> part = Part(title="words", header=("combination", "n", "accuracy"), rows=(("a=1", "2", "0.5"),))
        >>> print(*plain_lines(part), sep="\\n")
          combination  n  accuracy
          a=1          2  0.5
    """
    wrapped = list(map(wrapped_name, part.header))
    height = max(map(len, wrapped))
    header = [tuple(lines[row] if row < len(lines) else "" for lines in wrapped) for row in range(height)]
    table = [*header, *part.rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(part.header))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def write_markdown(path: Path, results: Results) -> None:
    """Write ``table.md``."""
    ablation = results.ablation
    lines = [f"# Ablation of {ablation.name}", "", f"{summary(ablation)}.", ""]
    lines += [f"* `{axis.path}`: {', '.join(f'`{choice.text}`' for choice in axis.choices)}" for axis in ablation.axes]
    for part in parts(results):
        lines += ["", f"## {part.title}", "", _row(part.header), _row(["---"] * len(part.header))]
        lines += [_row([row[0].replace("  ", "&nbsp;&nbsp;", 1), *row[1:]]) for row in part.rows]
    if complaints := results.complaints():
        lines += ["", "## Runs without all results", "", *(f"* {line}" for line in complaints)]
    lines += ["", *(f"{line}  " for line in legend(results))]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_csv(path: Path, results: Results) -> None:
    """Write ``table.csv``: one line for each single number."""
    paths = [axis.path for axis in results.ablation.axes]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["combination", *paths, "seed", "evaluator", "metric", "is_higher_better", "value"])
        for run in results.ablation.runs():
            for metric in results.metrics:
                if (value := results.values.get((run.folder, metric))) is not None:
                    given = [run.combination.values[path] for path in paths]
                    is_higher_better = str(metric.is_higher_better).lower()
                    row = [run.combination.label, *given, run.seed, metric.group, metric.name, is_higher_better, repr(value)]
                    writer.writerow(row)
