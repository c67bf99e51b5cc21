"""Pictures of reconstructed radiographs."""

from __future__ import annotations

import torch
from torch import Tensor

from medvlp_core import Dims
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import Card, EvaluationRun, Evaluator, split_obstacle
from medvlp_core.nn import patchify, unpatchify
from medvlp_standard.evaluators.common import batches, is_normalised, reconstruct, target_image
from medvlp_standard.evaluators.drawing import name_row, new_figure, save, show_gray, to_gray
from medvlp_standard.specs.evaluators import ReconstructionPicturesSpec

GRAY = 0.0  # masked patches are shown in the mean gray of the inputs


class ReconstructionPictures(Evaluator):
    """Rows of: input, what the encoder saw, reconstructed, original in the resolution of the target.

    Reconstructed = predicted pixels at masked patches, true ones at visible patches. A decoder of patch-normalised pixels does not
    predict brightness and contrast of a patch; they are taken from the original, as is usual, and the caption says so.
    """

    def __init__(self, spec: ReconstructionPicturesSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """The split has no pairs."""
        return split_obstacle(pipeline, split)

    def evaluate(self, run: EvaluationRun) -> Card:
        """One picture."""
        batch = next(batches(run, run.split, max_pairs=self.spec.images))
        prediction, is_masked = reconstruct(run, "patch_prediction", batch, seed=run.seed)
        target = target_image(run, batch).float()
        rows, columns = run.port_dims("image_grid")
        pixels = patchify(target, rows, columns)
        if is_normalised(run):
            deviation = (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            prediction = prediction * deviation + pixels.mean(dim=-1, keepdim=True)
        masked = self._side_by_side(run, pixels.masked_fill(is_masked[..., None], GRAY), target)
        reconstructed = self._side_by_side(run, torch.where(is_masked[..., None], prediction, pixels), target)
        size, full = tuple(batch["image"].shape[-2:]), tuple(target.shape[-2:])
        share = 1 - float(is_masked.float().mean())
        visible = f"visible: {share:.0%}" if size == full else f"visible: {share:.0%}\n(shown at {full[0]} x {full[1]})"
        titles = (f"input {size[0]} x {size[1]}", visible, "reconstructed", f"original {full[0]} x {full[1]}")
        count = len(batch["image"])
        records = run.pipeline.records(run.split)
        figure, axes = new_figure(8.2, 2.0 * count + 0.35, count, 4)
        for row in range(count):
            for column, images in enumerate((batch["image"], masked, reconstructed, target)):
                show_gray(axes[row, column], to_gray(run, images[row]), titles[column] if row == 0 else "")
            name_row(axes[row, 0], records[int(batch["record_index"][row])].id)
        note = "brightness and contrast of each masked patch are the original's." if is_normalised(run) else None
        return Card(evaluator="", pictures=(save(figure, run, "reconstruction.png"),), note=note)

    def _side_by_side(self, run: EvaluationRun, patches: Tensor, like: Tensor) -> Tensor:
        rows, columns = run.port_dims("image_grid")
        channels, height, width = like.shape[1:]
        return unpatchify(patches, rows, columns, channels, height // rows, width // columns)
