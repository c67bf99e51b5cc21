"""Draws the results of an ablation: a panel for each metric, a dot for each seed. matplotlib is imported when it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlp_core.ablation.comparison import summary
from medvlp_core.ablation.results import LOSSES, Metric, Results

#: After Okabe and Ito's colours, which most colour-blind people can tell apart; one for each seed, the same in all panels.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "^"), ("#E69F00", "v"), ("#56B4E9", "P"))
MOST_COLUMNS = 3
DPI = 110


def draw_ablation(path: Path, results: Results, metrics: Sequence[Metric]) -> None:
    """One panel for each metric: combinations below each other, a dot for each seed, a bar for their mean.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    combinations = results.ablation.combinations
    columns = min(MOST_COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    lines = sum(len(one.values) for one in combinations)
    longest = max(len(word) for one in combinations for word in one.parts)
    size = (2.9 * columns + 0.075 * longest, rows * (0.17 * lines + 0.16 * len(combinations) + 0.9) + 0.5)
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    figure.suptitle(f"{results.ablation.name}: {summary(results.ablation)}", fontsize=10, parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for axis, metric in zip(axes.flat, metrics, strict=False):
        handles |= _draw(axis, results, metric)
    for axis in axes.flat[len(metrics) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(combinations)), ["\n".join(one.parts) for one in combinations], fontsize=7, parse_math=False)
    axes[0, 0].set_ylim(len(combinations) - 0.5, -0.5)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    figure.savefig(path)


def _draw(axis: Any, results: Results, metric: Metric) -> dict[str, Any]:
    """One panel; the handles of the legend by label."""
    from matplotlib.ticker import MaxNLocator

    handles: dict[str, Any] = {}
    seeds = results.ablation.seeds
    for place, combination in enumerate(results.ablation.combinations):
        if (spread := results.spread(combination, metric)) is not None:
            handles["mean"] = axis.vlines(spread.mean, place - 0.3, place + 0.3, colors="0.3", linewidth=2.2)
        for number, seed in enumerate(seeds):
            value = results.by_seed(combination, metric).get(seed)
            if value is None:
                continue
            colour, marker = STYLES[number % len(STYLES)]
            shift = 0.0 if len(seeds) == 1 else 0.4 * (number / (len(seeds) - 1) - 0.5)
            style = {"s": 26, "marker": marker, "facecolors": "none", "edgecolors": colour, "linewidths": 1.3, "zorder": 3}
            handles[f"seed {seed}"] = axis.scatter([value], [place + shift], **style)
    first = results.spread(results.ablation.combinations[0], metric)
    if first is not None:
        handles["mean of the first"] = axis.axvline(first.mean, color="0.6", linewidth=1.0, linestyle=":", zorder=0)
    name = f"loss {metric.name}" if metric.group == LOSSES else metric.name
    axis.set_title(f"{name} ({'higher' if metric.is_higher_better else 'lower'} is better)", fontsize=8, parse_math=False)
    axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    axis.tick_params(labelsize=7)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axis.margins(x=0.12)
    return handles
