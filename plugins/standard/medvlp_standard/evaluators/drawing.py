"""Drawing for the picture evaluators. matplotlib is imported when something is drawn, with the Agg backend (no display)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medvlp_core.evaluation import EvaluationRun

RIGHT_COLOUR, WRONG_COLOUR, VISIBLE_COLOUR = "#1a7f37", "#c2261c", "0.25"
DPI = 110


def empty_figure(width: float, height: float, *, layout: Literal["constrained"] | None = None) -> Any:
    """A figure in inches. Made without pyplot: nothing global is touched, and nothing has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def new_figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    """A figure in inches and its axes as an array (rows, columns)."""
    figure = empty_figure(width, height, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def character_width(family: str, size: float) -> float:
    """Inches from one character of a monospaced font to the next, as the renderer sets it."""
    from matplotlib.font_manager import FontProperties

    figure = empty_figure(1.0, 1.0)
    font = FontProperties(family=family, size=size)
    width, _, _ = figure.canvas.get_renderer().get_text_width_height_descent("0" * 100, font, ismath=False)
    return float(width) / 100 / DPI


def save(figure: Any, run: EvaluationRun, name: str) -> str:
    """Write a figure into the run's pictures and return its name."""
    run.folder.mkdir(parents=True, exist_ok=True)
    path: Path = run.folder / name
    figure.savefig(path, dpi=DPI)
    return name


def to_gray(run: EvaluationRun, image: Tensor) -> npt.NDArray[np.float64]:
    """Normalised pixels (C, H, W) back to gray values in 0..1, (H, W)."""
    values = image.detach().cpu().float().mean(dim=0).double().numpy() * run.plan.inputs.std + run.plan.inputs.mean
    return np.clip(values, 0.0, 1.0)


def show_gray(axis: Any, values: npt.NDArray[np.float64], title: str = "") -> None:
    """One gray picture, 0 black and 1 white."""
    axis.imshow(values, cmap="gray", vmin=0.0, vmax=1.0)
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=9, parse_math=False)


def name_row(axis: Any, name: str) -> None:
    """Write a record's id upright beside the first picture of its row; a long one loses its middle."""
    short = name if len(name) <= 30 else f"{name[:12]}...{name[-15:]}"
    place = {"transform": axis.transAxes, "rotation": 90, "ha": "right", "va": "center"}
    axis.text(-0.04, 0.5, short, fontsize=7, color="0.3", parse_math=False, **place)
