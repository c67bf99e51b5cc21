"""Pictures and text of masked reports with the predicted words."""

from __future__ import annotations

import textwrap
from typing import Any

import attrs
import torch

from medvlp_core.evaluate.protocol import Card, EvaluationRun
from medvlp_core.interfaces import Dims, Evaluator
from medvlp_standard.evaluators.common import batches, restore
from medvlp_standard.evaluators.drawing import RIGHT_COLOUR, WRONG_COLOUR, new_figure, save, show_gray, to_gray
from medvlp_standard.specs.evaluators import MaskedReportPicturesSpec

LINE = 96  # characters of a drawn line: a monospaced 10-point font in the picture's 8.5 inches of text


@attrs.frozen
class Piece:
    """One token as shown: ``predicted`` is None where nothing was hidden."""

    truth: str
    predicted: str | None

    @property
    def is_right(self) -> bool:
        """Whether the hidden token was predicted."""
        return self.truth == self.predicted

    @property
    def text(self) -> str:
        """``lungs`` if visible, ``[lungs]`` if predicted rightly, ``[heart|lungs]`` if ``lungs`` was predicted as ``heart``."""
        if self.predicted is None:
            return self.truth
        return f"[{self.truth}]" if self.is_right else f"[{self.predicted}|{self.truth}]"


class MaskedReportPictures(Evaluator):
    """The radiograph, and its report with hidden words as predicted: green = right, red = wrong (predicted|true)."""

    def __init__(self, spec: MaskedReportPicturesSpec, dims: Dims) -> None:
        self.spec = spec

    def evaluate(self, run: EvaluationRun) -> Card:
        """A picture, and the same as ``masked_reports.txt``."""
        batch = next(batches(run, run.split, max_pairs=self.spec.reports))
        logits, is_hidden = restore(run, "word_logits", batch, seed=run.seed)
        predicted = torch.zeros_like(batch.token_ids)
        predicted[is_hidden] = logits.argmax(dim=-1)
        reports = []
        for row in range(len(batch.image)):
            shown = (batch.word_ids[row] >= 0) & batch.text_is_valid[row]
            truth = run.pipeline.tokenizer.token_strings(batch.token_ids[row][shown].tolist())
            guess = run.pipeline.tokenizer.token_strings(predicted[row][shown].tolist())
            hidden = is_hidden[row][shown].tolist()
            reports.append([Piece(one, two if gone else None) for one, two, gone in zip(truth, guess, hidden, strict=True)])
        records = run.pipeline.records(run.split)
        ids = [records[index].id for index in batch.record_index.tolist()]
        self._write_text(run, ids, reports)
        figure, axes = new_figure(11.0, 2.2 * len(reports), len(reports), 2, ratios=(1, 4))
        for row, (name, pieces) in enumerate(zip(ids, reports, strict=True)):
            show_gray(axes[row, 0], to_gray(run, batch.image[row]), name)
            draw_report(axes[row, 1], pieces)
        return Card(evaluator="", pictures=(save(figure, run, "masked_reports.png"), "masked_reports.txt"))

    def _write_text(self, run: EvaluationRun, ids: list[str], reports: list[list[Piece]]) -> None:
        lines = ["[word] = hidden and predicted rightly; [predicted|word] = hidden and predicted wrongly", ""]
        for name, pieces in zip(ids, reports, strict=True):
            hidden = [piece for piece in pieces if piece.predicted is not None]
            right = sum(piece.is_right for piece in hidden)
            lines += [f"{name}: {right} of {len(hidden)} hidden word pieces right"]
            lines += [*textwrap.wrap(" ".join(piece.text for piece in pieces), 110), ""]
        (run.folder / "masked_reports.txt").write_text("\n".join(lines), encoding="utf-8")


def draw_report(axis: Any, pieces: list[Piece], *, lines: int = 11) -> None:
    """Write the pieces as flowing text in a fixed-width font; what does not fit into ``lines`` is left out."""
    axis.set_axis_off()
    axis.set_xlim(0, LINE)
    axis.set_ylim(lines, 0)
    row, column = 0, 0
    for piece in pieces:
        text = piece.text
        if column + len(text) > LINE and column > 0:
            row, column = row + 1, 0
        if row >= lines:
            break
        colour = "0.25" if piece.predicted is None else RIGHT_COLOUR if piece.is_right else WRONG_COLOUR
        weight = "normal" if piece.predicted is None else "bold"
        axis.text(column, row, text, family="monospace", fontsize=10, color=colour, weight=weight, va="top", parse_math=False)
        column += len(text) + 1
