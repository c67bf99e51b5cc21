"""Zero-shot classification with pairs of prompts."""

from __future__ import annotations

import torch

from medvlp_core import Dims
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import Card, EvaluationRun, Evaluator, FloatArray, Row, auroc, bootstrap_interval, class_vectors
from medvlp_core.model import ComposedModel
from medvlp_core.runtime import to_device
from medvlp_standard.evaluators.common import batches, images_in, label_obstacle, labels_of, paired_gain, to_numpy
from medvlp_standard.specs.evaluators import ZeroShotSpec


class ZeroShot(Evaluator):
    """AUROC of ``cos(image, mean positive prompt) - cos(image, mean negative prompt)``.

    Baselines: chance, and the same model with fresh random weights (which shows how much comes from brightness and view).
    Intervals resample images.
    """

    def __init__(self, spec: ZeroShotSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """The label does not vary in the split."""
        return label_obstacle(pipeline, split, self.spec.label)

    def evaluate(self, run: EvaluationRun) -> Card:
        """One row.

        Raises:
            DataError: the label does not vary in the split (MV503).
        """
        known, is_positive = labels_of(run.pipeline.records(run.split), self.spec.label)
        trained = self._scores(run, run.model)[known]
        fresh = self._scores(run, run.fresh_model())[known]
        count = len(known)
        row = Row(
            metric=f"zero-shot AUROC: {self.spec.label}",
            value=auroc(is_positive, trained),
            count=count,
            interval=bootstrap_interval(lambda index: auroc(is_positive[index], trained[index]), count),
            baselines={"chance": 0.5, "random weights": auroc(is_positive, fresh)},
            gain_intervals={
                "random weights": paired_gain(
                    lambda index: auroc(is_positive[index], trained[index]),
                    lambda index: auroc(is_positive[index], fresh[index]),
                    count,
                )
            },
        )
        positives = int(is_positive.sum())
        return Card(evaluator="", rows=(row,), note=f"{positives} images with and {count - positives} without {self.spec.label}.")

    def _scores(self, run: EvaluationRun, model: ComposedModel) -> FloatArray:
        prompts = [*self.spec.positive, *self.spec.negative]
        tokens = to_device(run.pipeline.tokenizer.encode(prompts).tokens._asdict(), run.device)
        image, text = str(run.key("image_embedding")), str(run.key("text_embedding"))
        vectors = model.ports(tokens, text)[text].float()
        positive, negative = class_vectors(vectors, [len(self.spec.positive), len(self.spec.negative)])
        direction = positive - negative
        parts = [model.ports(images_in(run, batch), image)[image].float() for batch in batches(run, run.split)]
        return to_numpy(torch.cat(parts) @ direction)
