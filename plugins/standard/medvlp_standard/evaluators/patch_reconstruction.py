"""How well masked patches are reconstructed, measured as the decoder was trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medvlp_core import Dims
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import Card, EvaluationRun, Evaluator, FloatArray, Row, split_obstacle
from medvlp_standard.evaluators.common import batches, is_normalised, mean_interval, patch_targets, reconstruct, to_numpy
from medvlp_standard.specs.evaluators import PatchReconstructionSpec

TRAINING_IMAGES = 512  # enough for a mean patch


class PatchReconstruction(Evaluator):
    """Mean squared error on masked patches in the decoder's target space, beside two predictions without a model.

    ``patch mean``: the true mean of each patch at every pixel of it; with normalised targets that is 0 and its error close to 1.
    ``mean training patch``: the mean target over the training images at the same place of the grid, which knows where the lungs
    usually are. Intervals resample images.
    """

    def __init__(self, spec: PatchReconstructionSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """The split has no pairs."""
        return split_obstacle(pipeline, split)

    def evaluate(self, run: EvaluationRun) -> Card:
        """One row."""
        mean_patch = self._mean_training_patch(run)
        errors: dict[str, list[FloatArray]] = {"model": [], "patch mean": [], "mean training patch": []}
        masked = 0
        for draw in range(self.spec.draws):
            for number, batch in enumerate(batches(run, run.split, max_pairs=self.spec.max_pairs)):
                prediction, is_masked = reconstruct(run, "patch_prediction", batch, seed=run.seed + 100_000 * draw + number)
                target = patch_targets(run, batch)
                masked += int(is_masked.sum())
                guesses = {
                    "model": prediction,
                    "patch mean": target.mean(dim=-1, keepdim=True),
                    "mean training patch": mean_patch,
                }
                for name, guess in guesses.items():
                    errors[name].append(image_errors(guess, target, is_masked))
        # Draws of one image are not independent: they are averaged before anything is resampled.
        per_image = {name: np.concatenate(parts).reshape(self.spec.draws, -1).mean(axis=0) for name, parts in errors.items()}
        model, count = per_image.pop("model"), len(per_image["patch mean"])
        space = "pixels normalised patch by patch" if is_normalised(run) else "normalised input pixels"
        row = Row(
            metric="masked patches: MSE",
            value=float(model.mean()),
            is_higher_better=False,
            count=masked,
            resampled=count,
            interval=mean_interval(model),
            baselines={name: float(values.mean()) for name, values in per_image.items()},
            gain_intervals={name: mean_interval(values - model) for name, values in per_image.items()},
        )
        return Card(evaluator="", rows=(row,), note=f"{masked} masked patches of {count} images; error in {space}.")

    def _mean_training_patch(self, run: EvaluationRun) -> Tensor:
        """Mean target at every place of the grid over training images: (N, Q)."""
        total, count = torch.zeros((), device=run.device), 0
        for batch in batches(run, "train", max_pairs=TRAINING_IMAGES):
            target = patch_targets(run, batch)
            total = total + target.sum(dim=0)
            count += len(target)
        return total / count


def image_errors(guess: Tensor, target: Tensor, is_masked: Tensor) -> FloatArray:
    """Mean squared error over the masked patches of each image.

    Shape:
        guess broadcasts to target (B, N, Q); is_masked (B, N); result (B,).
    """
    error = (guess - target).square().mean(dim=-1)
    return to_numpy((error * is_masked).sum(dim=1) / is_masked.sum(dim=1).clamp(min=1))
