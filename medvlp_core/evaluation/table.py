"""The table that ends a run: every number beside its baselines, with an honest verdict. It fits into 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medvlp_core.evaluation.protocol import LEAST_ITEMS, Card, Interval, Row

STYLES = {"beats": "green", "within noise": "yellow", "does not beat": "red", "too few": "dim"}
LOWER_IS_BETTER = "↓"


def print_cards(console: Console, cards: Sequence[Card], skipped: Iterable[tuple[str, str]], *, split: str) -> None:
    """Print the table, then the notes, then what was skipped (name, reason) and what failed."""
    rows = [row for card in cards for row in card.rows]
    if rows:
        console.print(results_table(rows, split=split))
        console.print(legend(rows), style="dim", highlight=False)
    for card in cards:
        if card.note:
            console.print(f"{card.evaluator}: {card.note}", style="dim", markup=False, highlight=False)
        if card.problem:
            console.print(f"{card.evaluator}: no result: {card.problem}", style="red", markup=False)
    for name, reason in skipped:
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False)


def results_table(rows: Sequence[Row], *, split: str) -> Table:
    """One line for each measured number, with its interval and n, and below it one line for each baseline, with the gain."""
    table = Table(title=f"Held-out check on the {split} split", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric, baselines")
    table.add_column("value", justify="right")
    table.add_column("95 % interval, gain", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        arrow = "" if row.is_higher_better else f" {LOWER_IS_BETTER}"
        metric = f"[bold]{escape(row.metric)}[/]{arrow}"
        table.add_row(metric, _number(row.value), _interval(row.interval), f"n = {row.count:,}", end_section=not row.baselines)
        for index, (name, value) in enumerate(row.baselines.items()):
            verdict = row.verdict(name)
            gain = f"{_number(row.gain(name), sign='+')} {_interval(row.gain_intervals.get(name), sign='+')}"
            end = index == len(row.baselines) - 1
            table.add_row(f"  {escape(name)}", _number(value), gain, f"[{STYLES[verdict]}]{verdict}[/]", end_section=end)
    return table


def legend(rows: Sequence[Row]) -> str:
    """What the signs and verdicts mean; only those that occur."""
    verdicts = {row.verdict(name) for row in rows for name in row.baselines}
    parts = [
        "Gain: by how much the value is better than the baseline; its 95 % interval where both were measured on the same items.",
        f"{LOWER_IS_BETTER}: lower is better." if not all(row.is_higher_better for row in rows) else "",
        "n: items behind the number.",
        "beats: better, and the interval excludes no gain." if "beats" in verdicts else "",
        "within noise: better, but the interval does not exclude no gain." if "within noise" in verdicts else "",
        f"too few: fewer than {LEAST_ITEMS} reports, images or queries." if "too few" in verdicts else "",
    ]
    return " ".join(part for part in parts if part)


def _number(value: float, *, sign: str = "") -> str:
    return f"{round(value, 3) + 0.0:{sign}.3f}"  # + 0.0 makes 0 of -0


def _interval(interval: Interval | None, *, sign: str = "") -> str:
    return rf"\[{_number(interval[0], sign=sign)}, {_number(interval[1], sign=sign)}]" if interval is not None else ""
