"""EGMA: sentences and patches, and where a radiologist looked."""

from __future__ import annotations

import math

import pytest
import torch
from gallery_runs import Ports, batch_of, changed, dots, info_nce, loss, mean, run_of, step, unit
from torch import Tensor

from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn import Batch

Vectors = list[list[Tensor]]


def vectors(model: ComposedModel, ports: Ports, batch: Batch) -> tuple[Vectors, Vectors]:
    """Patches and sentences of each record."""
    head = model.alignments["gaze_alignment"]
    patches = [[unit(head.image_projection.weight @ one) for one in tokens] for tokens in ports["image_encoder.image_tokens"]]
    sentences = [
        [
            unit(head.text_projection.weight @ tokens[row, s][valid].mean(dim=0))
            for s, valid in enumerate(batch["sentences_is_valid"][row])
            if valid.any()
        ]
        for row, tokens in enumerate([ports["text_encoder.text_tokens"]] * len(patches))
    ]
    return patches, sentences


def multi_label(scores: list[float], is_positive: list[bool]) -> float:
    """``log(1 + sum_neg e^s) + log(1 + sum_pos e^-s)``."""
    negatives = sum(math.exp(one) for one, yes in zip(scores, is_positive, strict=True) if not yes)
    positives = sum(math.exp(-one) for one, yes in zip(scores, is_positive, strict=True) if yes)
    return math.log1p(negatives) + math.log1p(positives)


def test_egma_is_three_losses_of_sentences_and_patches() -> None:
    run = run_of("egma")
    batch = batch_of(run, (0, 1, 2, 3, 4, 5))
    assert batch["gaze_is_known"].tolist() == [True, True, False] * 2
    losses, ports = step(run.model, batch)
    patches, sentences = vectors(run.model, ports, batch)
    assert [len(one) for one in sentences] == [3, 3, 3, 2, 3, 3]
    scale = float(run.model.alignments["gaze_alignment"].scale())
    fine, mapping = [], []
    for row in range(6):
        found, count, cells = dots(sentences[row], patches[row]), len(sentences[row]), len(patches[row])
        heat = batch["gaze"][row].flatten(1).tolist() if batch["gaze_is_known"][row] else [[0.0] * cells] * count
        if batch["gaze_is_known"][row]:
            by_sentence = [multi_label([scale * x for x in found[s]], [h > 0 for h in heat[s]]) for s in range(count)]
            by_patch = [
                multi_label([scale * found[s][n] for s in range(count)], [heat[s][n] > 0 for s in range(count)])
                for n in range(cells)
            ]
            fine.append(0.5 * (mean(by_sentence) + mean(by_patch)))
        ranges = [(min(one), max(one) - min(one)) for one in found]
        weights = [
            [float(found[s][n] - low >= span / cells) + heat[s][n] for n in range(cells)] for s, (low, span) in enumerate(ranges)
        ]
        as_sentences, as_patches = [], []
        for n in range(cells):
            total = sum(weights[s][n] for s in range(count))
            as_sentences.append(sum(weights[s][n] * sentences[row][s] for s in range(count)) / max(total, 1e-6))
        for s in range(count):
            as_patches.append(sum(weights[s][n] * patches[row][n] for n in range(cells)) / sum(weights[s]))
        of_patches = inside(patches[row], as_sentences, scale)  # type: ignore[arg-type]
        mapping.append(0.5 * (of_patches + inside(sentences[row], as_patches, scale)))  # type: ignore[arg-type]
    scores = []
    for image in patches:
        row_scores = []
        for report in sentences:
            found = dots(report, image)
            by_patch = mean([max(found[s][n] for s in range(len(report))) for n in range(len(image))])
            row_scores.append(scale * 0.5 * (by_patch + mean([max(one) for one in found])))
        scores.append(row_scores)
    expected = {"fine": mean(fine), "instance": info_nce(scores), "mapping": mean(mapping)}
    for name, value in expected.items():
        assert float(losses[f"gaze_alignment.{name}"]) == pytest.approx(value, rel=1e-8), name


def inside(units: list[Tensor], mapped: list[Tensor], scale: float) -> float:
    """The contrast of units with what they are as means of the others, twice the mean of both directions."""
    mapped = [unit(one) if one.any() else one for one in mapped]
    return info_nce(dots(units, mapped, scale))


def test_egma_with_other_gaze_has_another_loss() -> None:
    run = run_of("egma")
    batch = batch_of(run)
    other = changed(batch, gaze=batch["gaze"].flip(-1))
    for name in ("fine", "mapping"):
        assert loss(run.model, batch, f"gaze_alignment.{name}") != loss(run.model, other, f"gaze_alignment.{name}")
    unknown = ~batch["gaze_is_known"][:, None, None, None]
    other = changed(batch, gaze=torch.where(unknown, torch.ones_like(batch["gaze"]), batch["gaze"]))
    assert loss(run.model, batch, "gaze_alignment.fine") == loss(run.model, other, "gaze_alignment.fine")


@pytest.mark.parametrize("rows", [(2, 5), (3, 2)])
def test_egma_takes_batches_whose_longest_report_has_no_gaze(rows: tuple[int, ...]) -> None:
    run = run_of("egma")
    batch = batch_of(run, rows)
    assert batch["gaze"].shape[1] == batch["sentences_is_valid"].shape[1] == 3
    assert all(bool(one.isfinite()) for one in step(run.model, batch)[0].values())
