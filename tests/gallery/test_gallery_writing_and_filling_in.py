"""Systems that write or fill in: CoCa, the masked autoencoder by regions, Code and Pixels."""

from __future__ import annotations

import pytest
import torch
from gallery_runs import batch_of, changed, dots, info_nce, log_softmax, loss, mean, run_of, step, turned, unit

# --------------------------------------------------------------------------------------------------------------------- CoCa


def test_coca_writes_the_next_word_and_contrasts_the_summary() -> None:
    run = run_of("coca")
    batch = batch_of(run)
    losses, ports = step(run.model, batch)
    errors = []
    for row in range(6):
        for place in range(int(batch["text_is_valid"][row].sum()) - 1):
            logits = ports["caption.next_word_logits"][row, place].tolist()
            errors.append(-log_softmax(logits)[int(batch["token_ids"][row, place + 1])])
    assert float(losses["caption.caption"]) == pytest.approx(mean(errors), rel=1e-9)
    head = run.model.alignments["contrast"]
    images = [unit(head.image_projection.weight @ one[0]) for one in ports["contrast_pool.pooled"]]
    texts = [unit(head.other_projection.weight @ one) for one in ports["text_encoder.text_summary"]]
    expected = info_nce(dots(images, texts, float(head.scale())))
    assert float(losses["contrast.global"]) == pytest.approx(expected, rel=1e-9)


def test_coca_knows_the_past_alone_when_it_writes() -> None:
    run = run_of("coca")
    batch = batch_of(run)
    place = 5
    ids = batch["token_ids"].clone()
    ids[:, place] = (ids[:, place] + 1) % 100
    before, after = (step(run.model, one)[1] for one in (batch, changed(batch, token_ids=ids)))
    assert torch.equal(before["caption.next_word_logits"][:, :place], after["caption.next_word_logits"][:, :place])
    assert not torch.equal(before["caption.next_word_logits"][:, place], after["caption.next_word_logits"][:, place])
    assert not torch.equal(before["text_encoder.text_summary"], after["text_encoder.text_summary"])


def test_coca_writes_another_text_of_another_image() -> None:
    run = run_of("coca")
    batch = batch_of(run)
    assert loss(run.model, batch, "caption.caption") != loss(run.model, turned(batch, "image"), "caption.caption")


def test_coca_writes_word_by_word_through_the_model() -> None:
    run = run_of("coca")
    run.model.eval()
    batch = batch_of(run, range(3))
    begun = {"image": batch["image"], **{name: batch[name][:, :1] for name in ("token_ids", "text_is_valid", "word_ids")}}
    texts = run.model.generate(begun, max_length=8)
    assert texts.token_ids.shape[0] == 3
    given = {**begun, "token_ids": texts.token_ids[:, :4], "text_is_valid": torch.ones(3, 4, dtype=torch.bool)}
    given["word_ids"] = given["token_ids"] * 0
    logits = run.model.ports(given, "caption.next_word_logits")["caption.next_word_logits"]
    assert texts.token_ids[:, 4].tolist() == logits[:, 3].argmax(dim=-1).tolist()


# ---------------------------------------------------------------------------------------------------------- masked autoencoder


def test_mae_hd_masks_more_inside_the_lungs_and_scores_masked_patches() -> None:
    run = run_of("mae_hd")
    batch = batch_of(run)
    assert "token_ids" not in batch
    losses, ports = step(run.model, batch)
    is_masked = ports["image_is_masked@masked"]
    lungs = batch["lungs"].flatten(1)
    assert batch["lungs"].shape == (6, 10, 10)
    visible = (~is_masked).sum(dim=1)
    assert visible.tolist() == [int(100 * (1 - 0.4 * 0.95 - 0.6 * 0.85) + 1e-9)] * 6
    for row in range(6):
        inside, outside = float(lungs[row].sum()), float((~lungs[row]).sum())
        expected = 11 * 0.05 * inside / (0.05 * inside + 0.15 * outside)
        assert int((~is_masked[row] & lungs[row]).sum()) == pytest.approx(expected, abs=0.5)
    errors = []
    for row, patch in is_masked.nonzero().tolist():
        top, left = 16 * (patch // 10), 16 * (patch % 10)
        pixels = batch["image"][row, 0, top : top + 16, left : left + 16].flatten()
        target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
        errors.append(float((ports["pixels.patch_prediction"][row, patch] - target).square().mean()))
    assert float(losses["pixels.reconstruction"]) == pytest.approx(mean(errors), rel=1e-9)


def test_mae_hd_with_other_lungs_has_another_loss() -> None:
    run = run_of("mae_hd")
    batch = batch_of(run)
    other = changed(batch, lungs=batch["lungs"].roll(3, dims=1))
    assert loss(run.model, batch, "pixels.reconstruction") != loss(run.model, other, "pixels.reconstruction")


@pytest.mark.parametrize("fill", [True, False])
def test_mae_hd_takes_a_region_of_all_or_nothing(fill: bool) -> None:
    run = run_of("mae_hd")
    batch = batch_of(run)
    ports = step(run.model, changed(batch, lungs=torch.full_like(batch["lungs"], fill)))[1]
    assert (~ports["image_is_masked@masked"]).sum(dim=1).tolist() == [11] * 6


# ------------------------------------------------------------------------------------------------------------ Code and Pixels


def test_code_and_pixels_contrasts_whole_tables_and_fills_in_masked_cells() -> None:
    run = run_of("code_and_pixels")
    batch = batch_of(run)
    assert "token_ids" not in batch
    losses, ports = step(run.model, batch)
    is_masked, known = ports["cell_is_masked@masked"], batch["table_is_known"]
    assert is_masked.any()
    assert not (is_masked & ~known).any()
    assert not known.all()
    errors = [
        float(ports["cells.cell_prediction"][row, cell] - batch["table"][row, cell]) ** 2
        for row, cell in is_masked.nonzero().tolist()
    ]
    assert float(losses["cells.cells"]) == pytest.approx(mean(errors), rel=1e-9)
    decoder = run.model.decoders["cells"]
    row, cell = is_masked.nonzero()[0].tolist()
    guess = ports["table_encoder.cell_tokens@masked"][row, cell] @ decoder.weight[cell] + decoder.bias[cell]
    assert float(guess) == pytest.approx(float(ports["cells.cell_prediction"][row, cell]))
    head = run.model.alignments["contrast"]
    images = [unit(head.image_projection.weight @ one.mean(dim=0)) for one in ports["image_encoder.image_tokens"]]
    tables = [unit(head.other_projection.weight @ one) for one in ports["table_encoder.table_vector"]]
    expected = info_nce(dots(images, tables, float(head.scale())))
    assert float(losses["contrast.global"]) == pytest.approx(expected, rel=1e-9)


def test_code_and_pixels_sees_no_masked_and_no_unknown_cell() -> None:
    run = run_of("code_and_pixels")
    batch = batch_of(run)
    _, ports = step(run.model, batch)
    is_unseen = ports["cell_is_masked@masked"] | ~batch["table_is_known"]
    other = changed(batch, table=torch.where(is_unseen, batch["table"] + 7, batch["table"]))
    again = step(run.model, other)[1]
    assert torch.equal(again["table_encoder.cell_tokens@masked"], ports["table_encoder.cell_tokens@masked"])
    unknown = changed(batch, table=torch.where(batch["table_is_known"], batch["table"], batch["table"] + 7))
    assert loss(run.model, unknown, "contrast.global") == loss(run.model, batch, "contrast.global")


@pytest.mark.parametrize("name", ["contrast.global", "cells.cells"])
def test_code_and_pixels_with_other_tables_has_another_loss(name: str) -> None:
    run = run_of("code_and_pixels")
    batch = batch_of(run)
    assert loss(run.model, batch, name) != loss(run.model, turned(batch, "table"), name)
