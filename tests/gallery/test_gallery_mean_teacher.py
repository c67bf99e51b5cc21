"""The mean teacher that segments volumes by prompts."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from gallery_runs import batch_of, changed, log_softmax, loss, mean, perturb, run_of, softmax, step

from medvlp_core import plan

ROWS = (0, 1, 2)


def test_mean_teacher_segments_where_masks_are_known_and_agrees_everywhere() -> None:
    run = run_of("mean_teacher", "data.size=8", "model.parts.net.size=8")
    perturb(run.model.parts["teacher_net"])
    batch = batch_of(run, ROWS)
    assert batch["image"].shape == (3, 1, 8, 8, 8)
    assert batch["organs_is_known"].tolist() == [True, False, True]
    assert batch["prompts_token_ids"].shape[0] == 3
    losses, ports = step(run.model, batch)
    student, teacher = ports["classifier.class_logits"], ports["teacher_classifier.class_logits"]
    places = [(d, h, w) for d in range(8) for h in range(8) for w in range(8)]
    supervised, distances = [], []
    for row in range(3):
        overlap, sizes, entropy = [0.0] * 3, [0.0] * 3, []
        for place in places:
            at = (row, slice(None), *place)
            scores, truth = student[at].tolist(), int(batch["organs"][(row, *place)])
            entropy.append(-log_softmax(scores)[truth])
            for k, (p, q) in enumerate(zip(softmax(scores), softmax(teacher[at].tolist()), strict=True)):
                distances.append((p - q) ** 2)
                overlap[k] += p * (k == truth)
                sizes[k] += p + (k == truth)
        dice = mean([(2 * overlap[k] + 1) / (sizes[k] + 1) for k in (1, 2)])
        supervised.append(0.5 * (mean(entropy) + 1 - dice))
    assert float(losses["segmentation.supervised"]) == pytest.approx(mean([supervised[0], supervised[2]]), rel=1e-9)
    assert float(losses["segmentation.consistency"]) == pytest.approx(mean(distances), rel=1e-9)


def test_mean_teacher_knows_a_class_by_its_prompt() -> None:
    run = run_of("mean_teacher")
    batch = batch_of(run, ROWS)
    _, ports = step(run.model, batch)
    classifier = run.model.parts["classifier"]
    tokens, valid = ports["text_encoder.text_tokens"], batch["prompts_is_valid"]
    for k in range(3):
        text = classifier.text_projection(tokens[k][valid[k]].mean(dim=0))
        voxel = ports["net.voxel_vectors"][1, :, 2, 3, 4]
        assert float(ports["classifier.class_logits"][1, k, 2, 3, 4]) == pytest.approx(float(voxel @ text) / math.sqrt(8))
    ids = changed(batch, prompts_token_ids=batch["prompts_token_ids"].roll(1, dims=0))
    assert loss(run.model, ids, "segmentation.supervised") != loss(run.model, batch, "segmentation.supervised")


def test_mean_teacher_needs_masks_of_known_volumes_and_the_teacher_of_all() -> None:
    run = run_of("mean_teacher")
    batch = batch_of(run, ROWS)
    name, known = "segmentation.supervised", batch["organs_is_known"][:, None, None, None]
    before = loss(run.model, batch, name)
    for where, differs in ((known, True), (~known, False)):
        other = changed(batch, organs=torch.where(where, 2 - batch["organs"], batch["organs"]))
        assert (loss(run.model, other, name) != before) is differs
    consistency = loss(run.model, batch, "segmentation.consistency")
    assert consistency > 0  # the noise
    perturb(run.model.parts["teacher_net"])
    assert loss(run.model, batch, "segmentation.consistency") != consistency
    assert loss(run.model, batch, name) == before


def test_mean_teacher_adds_noise_to_the_teachers_volume_in_training_alone() -> None:
    run = run_of("mean_teacher")
    batch = batch_of(run, ROWS)
    noise = step(run.model, batch)[1]["noise.noisy_image"] - batch["image"]
    assert 0 < float(noise.abs().max()) <= 0.2 + 1e-12
    run.model.eval()
    assert torch.equal(step(run.model, batch)[1]["noise.noisy_image"], batch["image"])
    assert loss(run.model, batch, "segmentation.consistency") == 0  # the teacher begins as its student


@pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="MONAI is not installed")
def test_mean_teacher_with_monais_net() -> None:
    change = "model.parts.net={use: gallery.monai_unet, size: 16, width: 8, channels: [4, 8]}"
    run = run_of("mean_teacher", change)
    assert float(step(run.model, batch_of(run, ROWS))[0]["segmentation.supervised"]) > 0


def test_monais_net_is_planned_without_monai() -> None:
    assert plan("gallery:mean_teacher", ["model.parts.net={use: gallery.monai_unet, size: 16, width: 8, channels: [4, 8]}"])
