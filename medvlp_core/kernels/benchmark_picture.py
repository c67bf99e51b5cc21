"""Draws how far the contenders of a benchmark are from the floor of the device. matplotlib is imported when it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlp_core.kernels.benchmark import Contender
from medvlp_core.kernels.benchmark_report import TITLES, Outcome, Setting

#: Colour and marker. After Okabe and Ito's colours, which most colour-blind people can tell apart. Ours are filled, rivals open.
OURS = (("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "D"), ("#009E73", "v"))
RIVALS = (("#D55E00", "o"), ("#009E73", "s"), ("#CC79A7", "D"), ("#E69F00", "^"), ("#56B4E9", "v"), ("#8C6D31", "P"), ("0.5", "X"))
DPI = 130


def draw_roofline(path: Path, setting: Setting, outcomes: Sequence[Outcome]) -> None:
    """Rate by shape: what a shape's least work is, over the time that a contender took; bars are what the device could reach.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [outcome for outcome in outcomes if outcome.directions]
    columns = max(len(outcome.directions) for outcome in rows)
    figure = Figure(figsize=(4.0 * columns + 2.6, 3.4 * len(rows) + 0.6), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    figure.suptitle(f"{setting.device}, {setting.dtype}: least work of the op / time taken", fontsize=11, parse_math=False)
    for part, outcome in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        axes = part.subplots(1, columns, squeeze=False, sharey=True)[0]
        part.suptitle(outcome.benchmark.op, fontsize=10, parse_math=False)
        handles: dict[str, Any] = {}
        for axis, direction in zip(axes, outcome.directions, strict=False):
            handles |= _draw(axis, setting, outcome, direction)
        for axis in axes[len(outcome.directions) :]:
            axis.set_axis_off()
        axes[0].set_ylabel("GFLOP/s")
        part.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path)


def _draw(axis: Any, setting: Setting, outcome: Outcome, direction: str) -> dict[str, Any]:
    """One panel; the handles of the legend by label."""
    timed = [one for one in outcome.benchmark.contenders if any(outcome.of(name, one.name) for name in outcome.directions)]
    shown = [one for one in timed if outcome.of(direction, one.name)]
    flops = {shape.letter: _flops(outcome, shape.letter, direction, setting.dtype) for shape in outcome.shapes}
    places = {shape.letter: index for index, shape in enumerate(outcome.shapes)}
    floors = {row.shape.letter: row.floor for row in outcome.rows if row.direction == direction}
    bars = axis.hlines(
        [flops[letter][0] / floors[letter] / 1e9 for letter in places],
        [index - 0.44 for index in places.values()],
        [index + 0.44 for index in places.values()],
        colors="0.35",
        linewidth=2.2,
    )
    handles = {"what the device could reach": bars}
    for contender in shown:
        rows = outcome.of(direction, contender.name)
        number = timed.index(contender)
        shift = 0.0 if len(timed) == 1 else 0.72 * (number / (len(timed) - 1) - 0.5)
        x = [places[row.shape.letter] + shift for row in rows]
        y = [flops[row.shape.letter][0] / row.quantile(0.5) / 1e9 for row in rows]
        label = contender.name if contender.is_same_op else f"{contender.name} (other work)"
        handles[label] = axis.scatter(x, y, **_style(contender, outcome))
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_title(TITLES[direction], fontsize=9)
    axis.set_xticks(
        list(places.values()), [f"{letter}\n{flops[letter][0] / flops[letter][1]:.0f}" for letter in places], fontsize=8
    )
    axis.set_xlim(-0.6, len(places) - 0.4)
    axis.set_xlabel("shape, and its FLOP per byte", fontsize=8)
    axis.grid(axis="y", which="both", alpha=0.25, linewidth=0.6)
    for border in range(len(places) - 1):
        axis.axvline(border + 0.5, color="0.85", linewidth=0.8)
    axis.tick_params(axis="y", labelsize=8, which="both")
    return handles


def _style(contender: Contender, outcome: Outcome) -> dict[str, Any]:
    """A colour and a marker for each contender, the same in all panels."""
    styles = OURS if contender.is_ours else RIVALS
    number = [one for one in outcome.benchmark.contenders if one.is_ours == contender.is_ours].index(contender)
    colour, marker = styles[number % len(styles)]
    face = colour if contender.is_ours else "none"
    return {"marker": marker, "s": 34, "edgecolors": colour, "facecolors": face, "linewidths": 1.3}


def _flops(outcome: Outcome, letter: str, direction: str, dtype: str) -> tuple[float, float]:
    """Operations and bytes of a shape in a direction."""
    import torch

    shape = next(one for one in outcome.shapes if one.letter == letter)
    parts = ("forward", "backward") if direction == "both" else (direction,)
    works = [outcome.benchmark.work(shape, part, getattr(torch, dtype).itemsize) for part in parts]
    return sum(work.flops for work in works), sum(work.bytes for work in works)
