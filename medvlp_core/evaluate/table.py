"""The table that ends a run: every number beside its baselines, with an honest verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from medvlp_core.evaluate.protocol import Card, Row

STYLES = {"beats": "green", "within noise": "yellow", "does not beat": "red"}


def print_cards(console: Console, cards: Sequence[Card], skipped: Iterable[tuple[str, str]], *, split: str) -> None:
    """Print the table, then the notes, then what was skipped (name, reason) and what failed."""
    rows = [(card, row) for card in cards for row in card.rows]
    if rows:
        console.print(results_table(rows, split=split))
        console.print(
            "beats: better, and the 95 % interval (of the gain, where both were measured on the same items) excludes no gain. "
            "within noise: better, but the interval does not exclude no gain.",
            style="dim",
        )
    for card in cards:
        if card.note:
            console.print(f"{card.evaluator}: {card.note}", style="dim", markup=False)
        if card.problem:
            console.print(f"{card.evaluator}: no result: {card.problem}", style="red", markup=False)
    for name, reason in skipped:
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False)


def results_table(rows: Sequence[tuple[Card, Row]], *, split: str) -> Table:
    """One line for each comparison; the measured value stands once, on the row's first line."""
    table = Table(title=f"Held-out check on the {split} split", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("metric (n)", ratio=5)
    table.add_column("value", ratio=3)
    table.add_column("baseline", ratio=4)
    table.add_column("gain", ratio=4)
    table.add_column("verdict", ratio=3)
    for _, row in rows:
        arrow = "" if row.is_higher_better else " (lower is better)"
        first = (f"{row.metric}{arrow} ({row.count})", _number(row.value, row.interval))
        if not row.baselines:
            table.add_row(*first, end_section=True)
        for index, (name, value) in enumerate(row.baselines.items()):
            verdict = row.verdict(name)
            table.add_row(
                *(first if index == 0 else ("", "")),
                f"{name} {value:.3f}",
                _number(row.gain(name), row.gain_intervals.get(name), sign="+"),
                f"[{STYLES[verdict]}]{verdict}[/]",
                end_section=index == len(row.baselines) - 1,
            )
    return table


def _number(value: float, interval: tuple[float, float] | None, *, sign: str = "") -> str:
    text = f"{value:{sign}.3f}"
    return text if interval is None else rf"{text} \[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
