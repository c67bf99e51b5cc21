"""Retrieval between images and texts at the level of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from medvlp_core import DataError, Dims, Problem
from medvlp_core.data import InputPipeline, Record
from medvlp_core.evaluation import (
    BoolArray,
    Card,
    EvaluationRun,
    Evaluator,
    Row,
    chance_precision,
    precision_at_k,
    reason_of,
    split_obstacle,
)
from medvlp_standard.evaluators.common import batches, mean_interval, to_numpy
from medvlp_standard.specs.evaluators import RetrievalSpec


class Retrieval(Evaluator):
    """Precision@K in both directions: the share of hits among the K nearest by cosine.

    A hit has the same set of positive labels as the query, or an equal text. Retrieving the one exact text says little on a
    small split with many alike reports. Chance is exact: the mean share of hits among all candidates, the query's own pair
    included, as it is for the model. Intervals resample queries.
    """

    def __init__(self, spec: RetrievalSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """Fewer records than the smallest K can be compared."""
        if (reason := split_obstacle(pipeline, split)) is not None:
            return reason
        try:
            self._comparable(pipeline.records(split))
        except DataError as error:
            return f"split {split!r}: {reason_of(error)}"
        return None

    def evaluate(self, run: EvaluationRun) -> Card:
        """One row for each direction and K.

        Raises:
            DataError: too few records can be compared (MV503).
        """
        records = run.pipeline.records(run.split)
        kept, labels = self._comparable(records)
        is_hit = same_findings([records[index] for index in kept], labels)
        images, texts = [], []
        for batch in batches(run, run.split):
            image, text = run.model.ports(batch, str(run.key("image_embedding")), str(run.key("text_embedding"))).values()
            images.append(image)
            texts.append(text)
        scores = to_numpy(torch.cat(images).float() @ torch.cat(texts).float().t())[np.ix_(kept, kept)]
        rows = [
            self._row(name, k, direction, is_hit)
            for name, direction in (("image to text", scores), ("text to image", scores.T))
            for k in self.spec.ks
            if k < len(kept)  # all candidates together are no ranking
        ]
        what = f"the same positive labels of: {', '.join(labels)}" if labels else "an equal text (the split has no labels)"
        return Card(evaluator="", rows=tuple(rows), note=f"{len(kept)} pairs; a hit has {what}.")

    def _comparable(self, records: Sequence[Record]) -> tuple[list[int], tuple[str, ...]]:
        """Positions of the records that have one of the labels, and the labels.

        Raises:
            DataError: they are not more than the smallest K (MV503).
        """
        labels = self.spec.labels or varying_labels(records)
        kept = [index for index, record in enumerate(records) if labels == () or any(name in record.labels for name in labels)]
        if len(kept) <= min(self.spec.ks):
            having = f" with one of the labels {', '.join(labels)}" if labels else ""
            text = f"{len(kept)} record{'s' if len(kept) != 1 else ''}{having}, too few for precision@{min(self.spec.ks)}"
            hint = f"labels that vary in this split: {', '.join(varying_labels(records)) or 'none'}"
            raise DataError(Problem(code="MV503", text=text, hint=hint))
        return kept, labels

    def _row(self, name: str, k: int, scores: np.ndarray, is_hit: BoolArray) -> Row:
        precision, chance = precision_at_k(scores, is_hit, k), chance_precision(is_hit)
        return Row(
            metric=f"{name}: precision@{k}",
            value=float(precision.mean()),
            count=len(precision),
            interval=mean_interval(precision),
            baselines={"random ranking": float(chance.mean())},
            gain_intervals={"random ranking": mean_interval(precision - chance)},
        )


def varying_labels(records: Sequence[Record]) -> tuple[str, ...]:
    """Names of the labels that some record has and some other has not."""
    seen: dict[str, set[int]] = {}
    for record in records:
        for name, value in record.labels.items():
            seen.setdefault(name, set()).add(value)
    return tuple(sorted(name for name, values in seen.items() if len(values) > 1))


def same_findings(records: Sequence[Record], labels: Sequence[str]) -> BoolArray:
    """Which pairs of records are hits for each other: (n, n), symmetric, True on the diagonal."""
    wanted = set(labels)
    findings = [frozenset(name for name, value in record.labels.items() if value and name in wanted) for record in records]
    keys = {key: number for number, key in enumerate(dict.fromkeys(findings))}
    texts = {text: number for number, text in enumerate(dict.fromkeys(record.text for record in records))}
    finding = np.array([keys[one] for one in findings])
    text = np.array([texts[record.text] for record in records])
    is_same_text = text[:, None] == text[None, :]
    return is_same_text if not labels else is_same_text | (finding[:, None] == finding[None, :])
