"""Writes all files of a benchmark: the table, the summary, the picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from medvlp_core.kernels.benchmark_picture import draw_roofline
from medvlp_core.kernels.benchmark_report import Outcome, Setting, write_csv, write_summary


def write_files(folder: Path, setting: Setting, outcomes: Sequence[Outcome]) -> list[str]:
    """Write all files of a result; their names. Without matplotlib there is no picture, and a line says so."""
    write_csv(folder / "kernels.csv", setting, outcomes)
    write_summary(folder / "summary.md", setting, outcomes)
    names = ["kernels.csv", "summary.md"]
    try:
        draw_roofline(folder / "roofline.png", setting, outcomes)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("roofline.png is skipped: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
    else:
        names.append("roofline.png")
    return names
