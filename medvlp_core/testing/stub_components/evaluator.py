"""An evaluator with one number, its baseline and a picture."""

from __future__ import annotations

import torch
from PIL import Image

from medvlp_core import Dims
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import Card, EvaluationRun, Evaluator, Row, split_obstacle
from medvlp_core.nn import TokenBatch
from medvlp_core.runtime import to_device
from medvlp_core.testing.stub_components.specs import EvaluatorSpec

PICTURE = "similarities.png"


class NearestText(Evaluator):
    """Share of the images whose nearest text has the same words as their own; chance is the share of such texts."""

    def __init__(self, spec: EvaluatorSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """No such split, or no pairs in it."""
        return split_obstacle(pipeline, split)

    def evaluate(self, run: EvaluationRun) -> Card:
        """One row, one picture."""
        dataset = run.pipeline.dataset(run.split, is_training=False)
        items = [dataset[index] for index in range(min(len(dataset), self.spec.pairs))]
        batch = to_device(run.pipeline.collate()(items), run.device)
        with torch.no_grad():
            images = run.model.embed_image(batch["image"])
            texts = run.model.embed_text(TokenBatch(batch["token_ids"], batch["text_is_valid"], batch["word_ids"]))
        scores = (images @ texts.t()).cpu()
        gray = ((scores + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy()
        Image.fromarray(gray).resize((128, 128), Image.Resampling.NEAREST).save(run.folder / PICTURE)
        texts_of = [run.pipeline.records(run.split)[item.row].text for item in items]
        is_own = torch.tensor([[one == other for other in texts_of] for one in texts_of])
        hits = is_own.gather(1, scores.argmax(dim=1, keepdim=True)).float()
        row = Row(
            metric="nearest text is its own",
            value=hits.mean().item(),
            count=len(items),
            baselines={"chance": is_own.float().mean().item()},
        )
        return Card(evaluator="", rows=(row,), pictures=(PICTURE,))
