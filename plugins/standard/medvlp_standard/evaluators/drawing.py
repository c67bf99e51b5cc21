"""Drawing for the picture evaluators. matplotlib is imported when something is drawn, with the Agg backend (no display)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from medvlp_core.evaluate.protocol import EvaluationRun

RIGHT_COLOUR, WRONG_COLOUR = "#1a7f37", "#c2261c"


def new_figure(width: float, height: float, rows: int, columns: int, *, ratios: tuple[float, ...] | None = None) -> tuple[Any, Any]:
    """A figure in inches and its axes as an array (rows, columns), ``ratios``: relative widths of the columns.

    Made without pyplot: nothing global is touched, and nothing has to be closed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    return figure, axes


def save(figure: Any, run: EvaluationRun, name: str) -> str:
    """Write a figure into the run's pictures and return its name."""
    run.folder.mkdir(parents=True, exist_ok=True)
    path: Path = run.folder / name
    figure.savefig(path, dpi=110)
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
        axis.set_title(title, fontsize=9)
