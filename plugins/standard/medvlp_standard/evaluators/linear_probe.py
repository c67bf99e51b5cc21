"""A linear probe of the frozen image encoder."""

from __future__ import annotations

import warnings
from functools import partial

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp_core import Dims
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import (
    BoolArray,
    Card,
    EvaluationRun,
    Evaluator,
    FloatArray,
    IndexArray,
    Row,
    auroc,
    bootstrap_interval,
    split_obstacle,
)
from medvlp_core.model import ComposedModel
from medvlp_standard.evaluators.common import batches, label_obstacle, labels_of, paired_gain, to_numpy
from medvlp_standard.specs.evaluators import LinearProbeSpec

TRAINED, PIXELS, FRESH = "trained encoder", "raw pixels", "random encoder"


@attrs.frozen
class Features:
    """Features of the labelled images of one split: (n, width) for each kind, and the labels (n,)."""

    kinds: dict[str, FloatArray]
    is_positive: BoolArray


class LinearProbe(Evaluator):
    """AUROC on the held-out split of a logistic regression that was fitted on the training split.

    Features of an image: the mean of its patch tokens beside the mean of its prefix tokens (CLS), of the whole image. They are
    standardised; the regularisation is chosen on the val split. The same is done with the encoder at random weights and with
    the raw pixels of the image scaled down: an AUROC that does not beat both is owed to brightness and view, not to learning.
    Intervals resample test images.
    """

    def __init__(self, spec: LinearProbeSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """The label does not vary in the training, val or held-out split."""
        if (reason := split_obstacle(pipeline, split)) is not None:
            return reason
        reasons = (label_obstacle(pipeline, one, self.spec.label) for one in ("train", "val", split))
        return next((reason for reason in reasons if reason is not None), None)

    def evaluate(self, run: EvaluationRun) -> Card:
        """One row.

        Raises:
            DataError: a split is missing, or the label does not vary in it (MV503).
        """
        fresh = run.fresh_model()
        train, val, test = (self._features(run, fresh, split) for split in ("train", "val", run.split))
        chosen, scores = {}, {}
        for kind in (TRAINED, PIXELS, FRESH):
            chosen[kind], scores[kind] = self._probe(kind, train, val, test)
        truth, count = test.is_positive, len(test.is_positive)

        def area(index: IndexArray, kind: str = TRAINED) -> float:
            return auroc(truth[index], scores[kind][index])

        row = Row(
            metric=f"linear probe AUROC: {self.spec.label}",
            value=auroc(truth, scores[TRAINED]),
            count=count,
            interval=bootstrap_interval(area, count),
            baselines={kind: auroc(truth, scores[kind]) for kind in (PIXELS, FRESH)},
            gain_intervals={kind: paired_gain(area, partial(area, kind=kind), count) for kind in (PIXELS, FRESH)},
        )
        strengths = ", ".join(f"{kind} {strength:g}" for kind, strength in chosen.items())
        note = f"fitted on {len(train.is_positive)} images; C chosen on {len(val.is_positive)}: {strengths}."
        return Card(evaluator="", rows=(row,), note=note)

    def _features(self, run: EvaluationRun, fresh: ComposedModel, split: str) -> Features:
        known, is_positive = labels_of(run.pipeline.records(split), self.spec.label)
        parts: dict[str, list[Tensor]] = {TRAINED: [], PIXELS: [], FRESH: []}
        side = self.spec.pixel_side
        for batch in batches(run, split):
            parts[TRAINED].append(encode(run.model, batch["image"]))
            parts[FRESH].append(encode(fresh, batch["image"]))
            # Radiographs are gray: the channels are equal.
            parts[PIXELS].append(F.interpolate(batch["image"][:, :1], (side, side), mode="area").flatten(1))
        kinds = {kind: to_numpy(torch.cat(tensors))[known] for kind, tensors in parts.items()}
        return Features(kinds, is_positive)

    def _probe(self, kind: str, train: Features, val: Features, test: Features) -> tuple[float, FloatArray]:
        """The chosen strength, and decision values on the test split."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        # liblinear runs on one core without BLAS threads; its dual form is the fast one for few images and wide features.
        images, width = train.kinds[kind].shape
        settings = {"solver": "liblinear", "dual": images < width, "max_iter": 1000, "random_state": 0}
        best: tuple[float, float, FloatArray] | None = None
        for strength in self.spec.strengths:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, **settings))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # weak regularisation may not converge; its val score then decides against it
                probe.fit(train.kinds[kind], train.is_positive)
            area = auroc(val.is_positive, probe.decision_function(val.kinds[kind]))
            if best is None or area > best[0]:
                best = (area, strength, np.asarray(probe.decision_function(test.kinds[kind])))
        assert best is not None
        return best[1], best[2]


def encode(model: ComposedModel, image: Tensor) -> Tensor:
    """Mean patch token beside the mean prefix token, if there is one: (B, C, H, W) to (B, Di) or (B, 2 Di)."""
    features = model.encode_image(image)
    parts = [features.image_tokens.mean(dim=1)]
    if features.image_prefix.shape[1]:
        parts.append(features.image_prefix.mean(dim=1))
    return torch.cat(parts, dim=1)
