"""Pictures and text of masked reports with the predicted words."""

from __future__ import annotations

import textwrap
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from medvlp_core import Dims
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import Card, EvaluationRun, Evaluator, split_obstacle
from medvlp_standard.evaluators.common import batches, reconstruct
from medvlp_standard.evaluators.drawing import (
    RIGHT_COLOUR,
    VISIBLE_COLOUR,
    WRONG_COLOUR,
    character_width,
    empty_figure,
    save,
    show_gray,
    to_gray,
)
from medvlp_standard.specs.evaluators import MaskedReportPicturesSpec

LINE = 88  # characters of a drawn line
LINES = 11  # of a report; what does not fit is left out
FAMILY, SIZE = "DejaVu Sans Mono", 9.0  # comes with matplotlib, so that every machine draws the same
LINE_HEIGHT = 0.165  # inches
IMAGE, GAP = 1.1, 0.15  # inches: side of the radiograph, and what is left free around it


@attrs.frozen
class Piece:
    """One token as shown: ``predicted`` is None where nothing was masked."""

    truth: str
    predicted: str | None

    @property
    def is_right(self) -> bool:
        """Whether the masked token was predicted."""
        return self.truth == self.predicted

    @property
    def text(self) -> str:
        """``lungs`` if visible, ``[lungs]`` if predicted rightly, ``[heart|lungs]`` if ``lungs`` was predicted as ``heart``."""
        if self.predicted is None:
            return self.truth
        return f"[{self.truth}]" if self.is_right else f"[{self.predicted}|{self.truth}]"


class MaskedReportPictures(Evaluator):
    """The radiograph, and its report with masked words as predicted: green = right, red = wrong (predicted|true)."""

    def __init__(self, spec: MaskedReportPicturesSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """The split has no pairs."""
        return split_obstacle(pipeline, split)

    def evaluate(self, run: EvaluationRun) -> Card:
        """A picture, and the same as ``masked_reports.txt``."""
        batch = next(batches(run, run.split, max_pairs=self.spec.reports))
        logits, is_masked = reconstruct(run, "word_logits", batch, seed=run.seed)
        predicted = torch.zeros_like(batch["token_ids"])
        predicted[is_masked] = logits.argmax(dim=-1)
        reports = []
        for row in range(len(batch["image"])):
            shown = (batch["word_ids"][row] >= 0) & batch["text_is_valid"][row]
            truth = run.pipeline.tokenizer.token_strings(batch["token_ids"][row][shown].tolist())
            guess = run.pipeline.tokenizer.token_strings(predicted[row][shown].tolist())
            masked = is_masked[row][shown].tolist()
            reports.append([Piece(one, two if gone else None) for one, two, gone in zip(truth, guess, masked, strict=True)])
        records = run.pipeline.records(run.split)
        ids = [records[index].id for index in batch["record_index"].tolist()]
        self._write_text(run, ids, reports)
        blocks = [lay_out(pieces) for pieces in reports]
        grays = [to_gray(run, image) for image in batch["image"]]
        return Card(evaluator="", pictures=(save(draw(ids, grays, blocks), run, "masked_reports.png"), "masked_reports.txt"))

    def _write_text(self, run: EvaluationRun, ids: list[str], reports: list[list[Piece]]) -> None:
        lines = ["[word] = masked and predicted rightly; [predicted|word] = masked and predicted wrongly", ""]
        for name, pieces in zip(ids, reports, strict=True):
            masked = [piece for piece in pieces if piece.predicted is not None]
            right = sum(piece.is_right for piece in masked)
            lines += [f"{name}: {right} of {len(masked)} masked word pieces right"]
            lines += [*textwrap.wrap(" ".join(piece.text for piece in pieces), 110), ""]
        (run.folder / "masked_reports.txt").write_text("\n".join(lines), encoding="utf-8")


def lay_out(pieces: list[Piece]) -> list[tuple[int, int, Piece]]:
    """``(line, column, piece)`` of flowing text in characters, with one space between pieces."""
    placed, line, column = [], 0, 0
    for piece in pieces:
        if column + len(piece.text) > LINE and column > 0:
            line, column = line + 1, 0
        if line >= LINES:
            break
        placed.append((line, column, piece))
        column += len(piece.text) + 1
    return placed


def draw(ids: list[str], grays: list[npt.NDArray[np.float64]], blocks: list[list[tuple[int, int, Piece]]]) -> Any:
    """A legend line, then for each report its id, the radiograph and the text; as wide and high as these are."""
    step = character_width(FAMILY, SIZE)
    ends = [column + len(piece.text) for block in blocks for _, column, piece in block]
    left = 2 * GAP + IMAGE
    width = left + step * max([*ends, 48]) + GAP  # 48: the legend
    lines = [1 + max([line + 1 for line, _, _ in block], default=0) for block in blocks]  # one for the id
    heights = [max(IMAGE, count * LINE_HEIGHT) + GAP for count in lines]
    height = LINE_HEIGHT + 2 * GAP + sum(heights)
    figure = empty_figure(width, height)

    def write(x: float, y: float, text: str, colour: str) -> None:
        style = {"family": FAMILY, "size": SIZE, "color": colour, "va": "top", "parse_math": False}
        figure.text(x / width, 1 - y / height, text, **style)

    x = left
    for text, colour in (
        ("green = right", RIGHT_COLOUR),
        ("red = [predicted|true]", WRONG_COLOUR),
        ("grey = visible", VISIBLE_COLOUR),
    ):
        write(x, GAP, text, colour)
        x += step * (len(text) + 3)
    top = LINE_HEIGHT + 2 * GAP
    for name, gray, block, high in zip(ids, grays, blocks, heights, strict=True):
        axis = figure.add_axes((GAP / width, 1 - (top + IMAGE) / height, IMAGE / width, IMAGE / height))
        show_gray(axis, gray)
        write(left, top, name, "0.55")
        for line, column, piece in block:
            colour = VISIBLE_COLOUR if piece.predicted is None else RIGHT_COLOUR if piece.is_right else WRONG_COLOUR
            write(left + step * column, top + LINE_HEIGHT * (line + 1), piece.text, colour)
        top += high
    return figure
