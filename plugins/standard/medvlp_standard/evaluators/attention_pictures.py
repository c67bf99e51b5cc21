"""Pictures of where words look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp_core import Dims
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import Card, EvaluationRun, Evaluator, split_obstacle
from medvlp_standard.evaluators.common import batches
from medvlp_standard.evaluators.drawing import name_row, new_figure, save, show_gray, to_gray
from medvlp_standard.specs.evaluators import AttentionPicturesSpec

#: English words that say nothing about an image, and the headings of reports.
_STOP_WORDS = (
    "a about above after all also an and any are as at be been before below both but by can could did do does each either else "
    "few for from further had has have if in into is it its may might more most neither nor of on or other out over own same "
    "seen should since so some such than that the their them then there these they this those to too under until up upon very "
    "no not was we were what when where which while who will with within without would you findings impression question answer"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())


class AttentionPictures(Evaluator):
    """Attention from words to patches over the radiograph, on clean inputs.

    Shown are content words: whole words of letters, without stop words and without words that the tokenizer cut into pieces.
    Of these the words whose maps differ most from the mean map of their report (largest KL divergence): a map that all words
    share says nothing about a word. Each map has its own colour scale; its title gives the largest weight as a multiple of the
    uniform weight 1/N.
    """

    def __init__(self, spec: AttentionPicturesSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """The split has no pairs."""
        return split_obstacle(pipeline, split)

    def evaluate(self, run: EvaluationRun) -> Card:
        """One picture; none if no part of the model has attention maps."""
        batch = next(batches(run, run.split, max_pairs=self.spec.images))
        found = run.model.attention_maps_and_provider(batch)
        if found is None:
            return Card(evaluator="", note="no attention maps: neither the fusion nor an alignment of this model has any.")
        maps, provider = found[0].float(), run.plan.components[found[1]].label
        rows, columns = run.port_dims("image_grid")
        if maps.shape[-1] != rows * columns:
            return Card(
                evaluator="", note=f"no pictures: the maps cover {maps.shape[-1]} tokens, not the {rows} x {columns} patches."
            )
        count, height, width = len(batch["image"]), batch["image"].shape[-2], batch["image"].shape[-1]
        figure, axes = new_figure(1.8 * (self.spec.words + 1), 2.0 * count + 0.5, count, self.spec.words + 1)
        caption = (
            f"Attention from a word to the patches, of {provider}.\n"
            f"(1.5x): the largest weight is 1.5 times the mean weight, 1/{rows * columns}. Each map has its own colour scale."
        )
        figure.suptitle(caption, fontsize=9, x=0.01, ha="left", parse_math=False)
        for row in range(count):
            gray = to_gray(run, batch["image"][row])
            show_gray(axes[row, 0], gray, "input" if row == 0 else "")
            name_row(axes[row, 0], run.pipeline.records(run.split)[int(batch["record_index"][row])].id)
            words = run.pipeline.tokenizer.token_strings(batch["token_ids"][row].tolist())
            is_word = (batch["word_ids"][row] >= 0) & batch["text_is_valid"][row]
            is_word &= torch.tensor(are_content_words(words), device=is_word.device)
            chosen = telling_words(maps[row], is_word, self.spec.words).tolist()
            for axis in axes[row, 1 + len(chosen) :]:
                axis.set_axis_off()
            for axis, position in zip(axes[row, 1:], chosen, strict=False):
                grid = maps[row, position].reshape(1, 1, rows, columns)
                heat = F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[0, 0]
                show_gray(axis, gray, f"{words[position]}  ({float(grid.max()) * rows * columns:.1f}x)")
                axis.imshow(heat.cpu().numpy(), cmap="inferno", alpha=0.5)
        return Card(evaluator="", pictures=(save(figure, run, "attention.png"),))


def are_content_words(strings: Sequence[str]) -> list[bool]:
    """Which tokens are whole words with a meaning of their own.

    Not: stop words, numbers, punctuation, single letters, continuation pieces (``##``), and first pieces of a longer word.

    Example:
        >>> are_content_words(["the", "lungs", "are", "hyper", "##inflated", "."])
        [False, True, False, False, False, False]
    """
    is_cut = [following.startswith("##") for following in [*strings[1:], ""]]
    return [
        word.isalpha() and len(word) > 1 and word.lower() not in STOP_WORDS and not cut
        for word, cut in zip(strings, is_cut, strict=True)
    ]


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
