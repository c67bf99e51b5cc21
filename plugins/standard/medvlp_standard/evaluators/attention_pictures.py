"""Pictures of where words look."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp_core.evaluate.protocol import Card, EvaluationRun
from medvlp_core.interfaces import Dims, Evaluator
from medvlp_standard.evaluators.common import batches
from medvlp_standard.evaluators.drawing import new_figure, save, show_gray, to_gray
from medvlp_standard.specs.evaluators import AttentionPicturesSpec


class AttentionPictures(Evaluator):
    """Attention from words to patches over the radiograph, on clean inputs.

    Shown are the words whose maps differ most from the mean map of their report (largest KL divergence): a map that all words
    share says nothing about a word. Each map has its own colour scale; its title gives the largest weight as a multiple of the
    uniform weight 1/N.
    """

    def __init__(self, spec: AttentionPicturesSpec, dims: Dims) -> None:
        self.spec = spec

    def evaluate(self, run: EvaluationRun) -> Card:
        """One picture; none if no part of the model has attention maps."""
        batch = next(batches(run, run.split, max_pairs=self.spec.images))
        maps = run.model.attention_maps(batch)
        if maps is None:
            return Card(evaluator="", note="no attention maps: neither the fusion nor an alignment of this model has any")
        rows, columns = run.port_dims("image_grid")
        if maps.shape[-1] != rows * columns:
            return Card(
                evaluator="", note=f"no pictures: the maps cover {maps.shape[-1]} tokens, not the {rows} x {columns} patches"
            )
        maps = maps.float()
        count, height, width = len(batch.image), batch.image.shape[-2], batch.image.shape[-1]
        figure, axes = new_figure(1.9 * (self.spec.words + 1), 2.15 * count, count, self.spec.words + 1)
        for row in range(count):
            gray = to_gray(run, batch.image[row])
            show_gray(axes[row, 0], gray, run.pipeline.records(run.split)[int(batch.record_index[row])].id)
            words = run.pipeline.tokenizer.token_strings(batch.token_ids[row].tolist())
            is_word = (batch.word_ids[row] >= 0) & batch.text_is_valid[row]
            is_word &= torch.tensor([any(map(str.isalnum, word)) for word in words], device=is_word.device)
            chosen = telling_words(maps[row], is_word, self.spec.words).tolist()
            for axis in axes[row, 1 + len(chosen) :]:
                axis.set_axis_off()
            for axis, position in zip(axes[row, 1:], chosen, strict=False):
                grid = maps[row, position].reshape(1, 1, rows, columns)
                heat = F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[0, 0]
                show_gray(axis, gray, f"{words[position]}  ({float(grid.max()) * rows * columns:.1f}x)")
                axis.imshow(heat.cpu().numpy(), cmap="inferno", alpha=0.5)
        return Card(evaluator="", pictures=(save(figure, run, "attention.png"),))


def telling_words(maps: Tensor, is_word: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` words whose maps diverge most from the mean map, in reading order.

    ``KL(map_l || mean)`` with the mean over words. Of equal maps the first is taken.

    Shape:
        maps (L, N), is_word (L,) bool; result (at most count,) int64.
    """
    words = maps.clamp(min=1e-12)
    mean = words[is_word].mean(dim=0)
    divergence = (words * (words / mean).log()).sum(dim=-1).masked_fill(~is_word, -torch.inf)
    order = divergence.argsort(descending=True, stable=True)[: min(count, int(is_word.sum()))]
    return order.sort().values
