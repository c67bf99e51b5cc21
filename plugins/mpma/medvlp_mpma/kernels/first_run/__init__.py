"""The first time on a GPU: check, time and tune the kernels of the memory in one go.

::

    medvlp bench kernels --first-run               # on a GPU, under ten minutes
    medvlp bench kernels --first-run --rehearse    # the same code at toy size, on a CPU, in Triton's interpreter

Steps: ``device`` (rates), ``correctness`` (both ops, three dtypes, against float64), ``timings`` (the benchmark, shapes A to G),
``sweep`` (tiles, new tables), ``crossover`` (up to how many keys our kernels win), ``model`` (a training step of ``mpma:base``).
A step that fails is noted and the others go on; what does not fit in the minutes is skipped and named. All is written as soon as
it is known: device.json, correctness.csv, kernels.csv, roofline.png, measurements.json (sweep, crossover, model), a new table for
each op, and summary.md: eight files. Look at the tables, then copy the two folders over ``medvlp_mpma/kernels`` and record what the
compiler says of them (``python tests/mpma/kernels/gate_record.py``). A backend that gives a wrong number in a dtype is not timed
in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medvlp_core.kernels.benchmark import FirstRun

STEPS = ("device", "correctness", "timings", "sweep", "crossover", "model")


def run(out: Path, *, minutes: float, steps: Sequence[str], is_rehearsal: bool) -> bool:
    """See :class:`medvlp_core.kernels.benchmark.RunsFirst`. Triton must not be imported yet: then it reads who runs kernels."""
    os.environ["TRITON_INTERPRET"] = str(int(is_rehearsal))  # worker processes inherit it
    from medvlp_mpma.kernels.first_run.steps import run_steps

    return run_steps(out, minutes=minutes, steps=steps)


FIRST_RUN = FirstRun(steps=STEPS, run=run)
