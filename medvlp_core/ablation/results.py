"""The numbers of an ablation: read from its run folders, averaged over seeds, compared seed by seed. Light."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from medvlp_core.ablation.ablation_folder import EVALUATION, Outcome, read_outcome
from medvlp_core.ablation.grid import Ablation, Combination, Run
from medvlp_core.errors import Diagnostics, Position, Problem, SpecError, did_you_mean

#: The group of the loss terms; a slot of the recipe cannot have this name.
LOSSES = "final losses"
METRICS = "metrics.jsonl"


@attrs.frozen(kw_only=True)
class Metric:
    """A column: a row of an evaluator (``group`` is its slot), or a loss term at the end of training."""

    group: str
    name: str
    is_higher_better: bool


@attrs.frozen(kw_only=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of ``count`` values."""

    mean: float
    deviation: float | None
    count: int


@attrs.frozen(kw_only=True)
class Results:
    """Every single number of an ablation. ``values``: by run folder and metric; ``outcomes``: by run folder."""

    ablation: Ablation
    metrics: tuple[Metric, ...]
    values: dict[tuple[str, Metric], float]
    outcomes: dict[str, Outcome]

    def by_seed(self, combination: Combination, metric: Metric) -> dict[int, float]:
        """The values of the runs that have one."""
        runs = (Run(combination=combination, seed=seed) for seed in self.ablation.seeds)
        return {run.seed: self.values[run.folder, metric] for run in runs if (run.folder, metric) in self.values}

    def spread(self, combination: Combination, metric: Metric) -> Spread | None:
        """The values over all seeds; None if there is none."""
        return spread(self.by_seed(combination, metric).values())

    def difference(self, combination: Combination, metric: Metric) -> Spread | None:
        """By how much the values are above those of the first combination with the same seeds; None if no seed is shared."""
        first = self.by_seed(self.ablation.combinations[0], metric)
        own = self.by_seed(combination, metric)
        return spread(value - first[seed] for seed, value in own.items() if seed in first)

    def finished(self, combination: Combination) -> tuple[int, ...]:
        """The seeds whose runs finished."""
        runs = (Run(combination=combination, seed=seed) for seed in self.ablation.seeds)
        return tuple(run.seed for run in runs if self.outcomes[run.folder].status == "finished")

    def complaints(self) -> tuple[str, ...]:
        """One line for each run that did not finish, and for each evaluator without a result."""
        lines = []
        for run in self.ablation.runs():
            outcome = self.outcomes[run.folder]
            verb = "an evaluator gave no result" if outcome.status == "finished" else outcome.status
            lines += [f"{run.label}: {verb}: {reason.splitlines()[0]}" for reason in outcome.reasons]
        return tuple(lines)


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and sample standard deviation; None without values.

    Example:
        >>> spread([1.0, 3.0])
        Spread(mean=2.0, deviation=1.4142135623730951, count=2)
    """
    found = list(values)
    if not found:
        return None
    return Spread(mean=statistics.fmean(found), deviation=statistics.stdev(found) if len(found) > 1 else None, count=len(found))


def read_results(folder: Path, ablation: Ablation) -> Results:
    """Read the evaluations and last losses of all runs; all must be over."""
    metrics: dict[Metric, None] = {}
    values: dict[tuple[str, Metric], float] = {}
    outcomes: dict[str, Outcome] = {}
    for run in ablation.runs():
        outcome = read_outcome(folder / run.folder)
        assert outcome is not None
        outcomes[run.folder] = outcome
        if outcome.status != "finished":
            continue
        for metric, value in _read_run(folder / run.folder):
            metrics.setdefault(metric)
            if value is not None and math.isfinite(value):
                values[run.folder, metric] = value
    groups = list(dict.fromkeys(metric.group for metric in metrics if metric.group != LOSSES))
    ordered = sorted(metrics, key=lambda metric: [*groups, LOSSES].index(metric.group))
    return Results(ablation=ablation, metrics=tuple(ordered), values=values, outcomes=outcomes)


def _read_run(folder: Path) -> list[tuple[Metric, float | None]]:
    """The numbers of one run: the rows of its evaluators, then its losses."""
    cards = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))["results"]
    found: list[tuple[Metric, float | None]] = [
        (Metric(group=card["evaluator"], name=row["metric"], is_higher_better=row["is_higher_better"]), row["value"])
        for card in cards
        for row in card["rows"]
    ]
    last: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
    losses = {**last["losses"], "total": last["total"]}
    return found + [(Metric(group=LOSSES, name=name, is_higher_better=False), value) for name, value in losses.items()]


#: The picture has so many panels, unless metrics are asked for by name.
DEFAULT_PANELS = 6


def check_metrics(names: Sequence[str], ablation: Ablation, diagnostics: Diagnostics) -> None:
    """Report names that no run can give a metric for (MV602), as far as the plans tell.

    They tell the slots of evaluators and the losses. What an evaluator calls its metrics is known when it has run: names with a
    space, ``masked words: accuracy``, are left to :func:`choose_metrics` if there is an evaluator.
    """
    plans = [plan for one in ablation.combinations for plan in one.plans.values()]
    slots = {slot for plan in plans for slot in plan.evaluators}
    known = {*slots, LOSSES, "total", *(term for plan in plans for term in plan.losses)}
    for name in names:
        if name not in known and not (slots and " " in name):
            text = f"no run of the ablation can give the metric {name!r}"
            hint = did_you_mean(name, known, what="losses and evaluators")
            diagnostics.add("MV602", text, at=Position(f"--metrics {name}"), hint=hint)


def choose_metrics(names: Sequence[str], results: Results) -> tuple[Metric, ...]:
    """The metrics called ``names``: each the name of a metric, or of an evaluator's slot for all of its metrics.

    Without names: the first metric of each evaluator, or the losses if there is none; at most :data:`DEFAULT_PANELS`.

    Raises:
        SpecError: no run gave a metric of that name (MV602).
    """
    if not names:
        first = {metric.group: metric for metric in reversed(results.metrics) if metric.group != LOSSES}
        chosen = [metric for metric in results.metrics if metric in first.values()] or list(results.metrics)
        return tuple(chosen[:DEFAULT_PANELS])
    known = list(dict.fromkeys(name for metric in results.metrics for name in (metric.group, metric.name)))
    unknown = [name for name in names if name not in known]
    if unknown:
        text = "no run of the ablation gave the metric {!r}"
        hint = "the table and the runs are kept: repeat the command with another --metrics"
        raise SpecError(
            *(
                Problem(code="MV602", text=text.format(name), hint=f"{did_you_mean(name, known, what='metrics')}; {hint}")
                for name in unknown
            )
        )
    return tuple(dict.fromkeys(metric for name in names for metric in results.metrics if name in (metric.group, metric.name)))
