"""Metrics and their bootstrap intervals, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.int64]


def auroc(is_positive: BoolArray, scores: FloatArray) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count one half. NaN if a class is missing.

    Shape:
        is_positive, scores: (n,).

    Example:
        >>> auroc(np.array([True, False, True]), np.array([0.9, 0.1, 0.1]))
        0.75
    """
    positives = int(is_positive.sum())
    negatives = len(is_positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(sizes)
    mid_rank = last_rank - (sizes - 1) / 2  # all members of a tie get the mean of their ranks
    rank_sum = mid_rank[group][is_positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def precision_at_k(scores: FloatArray, is_hit: BoolArray, k: int) -> FloatArray:
    """Share of hits among the ``k`` best of each row, in expectation over the order inside ties.

    Ties matter: equal texts have equal scores, and a model that learned nothing may score everything the same; the expectation
    then equals chance whatever the order of the records is. ``k`` above the row's length means the whole row.

    Shape:
        scores, is_hit: (queries, candidates); result: (queries,).
    """
    k = min(k, scores.shape[1])
    kth_best = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    is_above, is_tied = scores > kth_best, scores == kth_best
    hits_above = (is_hit & is_above).sum(axis=1)
    places_left = k - is_above.sum(axis=1)
    hit_rate_in_tie = (is_hit & is_tied).sum(axis=1) / is_tied.sum(axis=1)
    precision: FloatArray = (hits_above + places_left * hit_rate_in_tie) / k
    return precision


def chance_precision(is_hit: BoolArray) -> FloatArray:
    """Expected precision@K of a random ranking: each row's share of hits, whatever K is. (queries, candidates) to (queries,)."""
    share: FloatArray = is_hit.mean(axis=1)
    return share


def bootstrap_interval(
    statistic: Callable[[IndexArray], float], count: int, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of ``statistic(indices)``, with ``count`` items drawn with replacement ``draws`` times.

    Draws where the statistic is not defined (NaN, one class only) are skipped; None if none is left.
    """
    generator = np.random.default_rng(seed)
    values = np.array([statistic(generator.integers(0, count, size=count)) for _ in range(draws)])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
