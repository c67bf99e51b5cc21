"""Evaluators that are wrong in one way each."""

from __future__ import annotations

import math
import random
from typing import Any

import attrs
import numpy as np
import torch
from broken_bundle import broken

from medvlp_core.data.images import read_gray
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.evaluation.protocol import Card, EvaluationRun
from medvlp_core.testing.stub_components.evaluator import NearestText
from medvlp_core.testing.stub_components.specs import EvaluatorSpec


class ChangedRow(NearestText):
    """Changes its row in one way."""

    changes: dict[str, Any]

    def evaluate(self, run: EvaluationRun) -> Card:
        card = super().evaluate(run)
        return attrs.evolve(card, rows=(attrs.evolve(card.rows[0], **self.changes),))


@broken(EvaluatorSpec, caught_by="finds_obstacles_without_images", says="obstacle() opened 1 images")
class LooksAtImages(NearestText):
    """Reads an image before training."""

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        if split in pipeline.source.splits():
            read_gray(pipeline.records(split)[0].image_path)
        return super().obstacle(pipeline, split)


@broken(EvaluatorSpec, caught_by="finds_obstacles_without_images", says="there is no split 'no_such_split'")
class AsksInVain(NearestText):
    """An unknown split is an error, not a reason."""

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        pipeline.records(split)
        return None


@broken(EvaluatorSpec, caught_by="finds_obstacles_without_images", says="obstacle() gave '', expected None or a reason")
class GivesNoReason(NearestText):
    """An empty reason."""

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        return None if split in pipeline.source.splits() else ""


@broken(EvaluatorSpec, caught_by="leaves_no_trace", says="evaluate() changed the model: decoders.image.mask_token differs")
class TrainsOn(NearestText):
    """Changes a weight."""

    def evaluate(self, run: EvaluationRun) -> Card:
        run.model.decoders["image"].mask_token.add_(1)
        return super().evaluate(run)


@broken(EvaluatorSpec, caught_by="leaves_no_trace", says="evaluate() left the fresh model in another mode")
class LeavesTheMode(NearestText):
    """The fresh model stays in training mode."""

    def evaluate(self, run: EvaluationRun) -> Card:
        run.fresh_model().train()
        return super().evaluate(run)


@broken(EvaluatorSpec, caught_by="leaves_no_trace", says="evaluate() left other parameters of the model to be trained")
class Freezes(NearestText):
    """Freezes the model."""

    def evaluate(self, run: EvaluationRun) -> Card:
        run.model.requires_grad_(False)
        return super().evaluate(run)


@broken(EvaluatorSpec, caught_by="leaves_no_trace", says="evaluate() leaves gradients at")
class LeavesGradients(NearestText):
    """Leaves a gradient behind."""

    def evaluate(self, run: EvaluationRun) -> Card:
        weight = next(run.model.parameters())
        weight.grad = torch.ones_like(weight)
        return super().evaluate(run)


@broken(EvaluatorSpec, caught_by="leaves_no_trace", says="another random state of torch, numpy, python")
class Reseeds(NearestText):
    """Sets every seed."""

    def evaluate(self, run: EvaluationRun) -> Card:
        torch.manual_seed(run.seed)
        np.random.seed(run.seed)
        random.seed(run.seed)
        return super().evaluate(run)


@broken(EvaluatorSpec, caught_by="gives_sound_rows", says="has no baseline")
class NoBaseline(ChangedRow):
    """A number alone."""

    changes = {"baselines": {}}


@broken(EvaluatorSpec, caught_by="gives_sound_rows", says="value is not finite, and no note says why")
class Infinite(ChangedRow):
    """A number that is none."""

    changes = {"value": math.inf}


@broken(EvaluatorSpec, caught_by="gives_sound_rows", says="the gain over luck, which is no baseline of it")
class StrangeGain(ChangedRow):
    """A gain over what was not measured."""

    changes = {"gain_intervals": {"luck": (0.0, 1.0)}}


@broken(EvaluatorSpec, caught_by="gives_sound_rows", says="expected the lower end first")
class TurnedInterval(ChangedRow):
    """An interval with its ends exchanged."""

    changes = {"interval": (1.0, 0.0)}


@broken(EvaluatorSpec, caught_by="gives_sound_rows", says="the card has no row, no picture and no note")
class SaysNothing(NearestText):
    """An empty card."""

    def evaluate(self, run: EvaluationRun) -> Card:
        return Card(evaluator="")


@broken(EvaluatorSpec, caught_by="writes_its_pictures", says="the card names the picture 'gone.png', and there is no such file")
class GonePicture(NearestText):
    """A picture that nobody drew."""

    def evaluate(self, run: EvaluationRun) -> Card:
        return attrs.evolve(super().evaluate(run), pictures=("gone.png",))


@broken(EvaluatorSpec, caught_by="writes_its_pictures", says="the picture 'cut.png' cannot be opened")
class CutPicture(NearestText):
    """A picture that was not written to its end."""

    def evaluate(self, run: EvaluationRun) -> Card:
        card = super().evaluate(run)
        content = (run.folder / card.pictures[0]).read_bytes()
        (run.folder / "cut.png").write_bytes(content[:60])
        return attrs.evolve(card, pictures=("cut.png",))


@broken(EvaluatorSpec, caught_by="repeats_its_numbers", says="the second time")
class Draws(NearestText):
    """The number hangs on the random state."""

    def evaluate(self, run: EvaluationRun) -> Card:
        card = super().evaluate(run)
        with torch.random.fork_rng([]):
            return attrs.evolve(card, rows=(attrs.evolve(card.rows[0], value=torch.rand(()).item()),))


@broken(EvaluatorSpec, caught_by="trains_in_a_model", says="it failed on a model of the kit's stub components: KeyError: 'nothing'")
class Fails(NearestText):
    """It works with no model."""

    def evaluate(self, run: EvaluationRun) -> Card:
        raise KeyError("nothing")
