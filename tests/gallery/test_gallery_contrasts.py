"""The systems of the gallery whose loss is a contrast of pairs: eCLIP, MedCLIP, BioViL-T."""

from __future__ import annotations

import math

import pytest
import torch
from gallery_runs import (
    batch_of,
    changed,
    dots,
    info_nce,
    log_softmax,
    loss,
    mean,
    perturb,
    run_of,
    softmax,
    step,
    turned,
    unit,
)
from medvlp_gallery.eclip import mixing_probability
from torch import Tensor

# -------------------------------------------------------------------------------------------------------------------- eCLIP


def test_eclip_is_a_contrast_with_the_mixed_pairs_appended() -> None:
    run = run_of("eclip")
    batch = batch_of(run, range(9), progress=0.4)
    losses, ports = step(run.model, batch)
    is_mixed = ports["mixup.is_mixed"].tolist()
    assert 0 < sum(is_mixed) < 9
    assert not any(mixed and not known for mixed, known in zip(is_mixed, batch["heatmap_is_known"].tolist(), strict=True))
    head = run.model.alignments["clip"]
    images = [unit(head.image_projection.weight @ one.mean(dim=0)) for one in ports["image_encoder.image_tokens"]]
    images += [
        unit(head.image_projection.weight @ one.mean(dim=0))
        for one, mixed in zip(ports["expert.image_tokens"], is_mixed, strict=True)
        if mixed
    ]
    texts = []
    for tokens, is_valid in zip(ports["text_encoder.text_tokens"], batch["text_is_valid"], strict=True):
        texts.append(unit(head.text_projection.weight @ tokens[is_valid].mean(dim=0)))
    texts += [text for text, mixed in zip(list(texts), is_mixed, strict=True) if mixed]
    expected = info_nce(dots(images, texts, float(head.scale())))
    assert float(losses["clip.global"]) == pytest.approx(expected, rel=1e-9)
    differences = (ports["mixup.identity_image"] - batch["image"]).flatten().tolist()
    assert float(losses["clip.reconstruction"]) == pytest.approx(mean([one**2 for one in differences]), rel=1e-9)


def test_eclip_processes_an_image_by_what_an_expert_looked_at() -> None:
    run = run_of("eclip")
    batch = batch_of(run, range(9), progress=0.4)
    _, ports = step(run.model, batch)
    mixup = run.model.parts["mixup"]
    row = int(ports["mixup.is_mixed"].int().argmax())
    image, heat = batch["image"][row, 0], batch["heatmap"][row]
    places = [(r, c) for r in range(0, 64, 16) for c in range(0, 64, 16)]
    asked = torch.stack([mixup.embed(image[r : r + 16, c : c + 16].flatten()) for r, c in places])
    asking = torch.stack([mixup.embed((image * heat)[r : r + 16, c : c + 16].flatten()) for r, c in places])
    query, key, value = (
        x @ w.T + b
        for x, w, b in zip(
            (asking, asked, asked), mixup.attention.in_proj_weight.chunk(3), mixup.attention.in_proj_bias.chunk(3), strict=True
        )
    )
    found = []
    for n in range(len(places)):
        answer = []
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            weights = softmax([float(query[n, part] @ key[m, part]) / math.sqrt(8) for m in range(len(places))])
            answer.append(sum(w * value[m, part] for m, w in enumerate(weights)))
        found.append(mixup.to_pixels(mixup.attention.out_proj(torch.cat(answer))))
    processed = torch.zeros(64, 64, dtype=torch.float64)
    for (r, c), patch in zip(places, found, strict=True):
        processed[r : r + 16, c : c + 16] = patch.detach().reshape(16, 16)
    mixed = ports["mixup.mixed_image"][row, 0]
    share = float(((mixed - processed) * (image - processed)).sum() / (image - processed).square().sum())
    assert 0 <= share <= 1
    torch.testing.assert_close(mixed, share * image + (1 - share) * processed)
    unmixed = ~ports["mixup.is_mixed"]
    assert torch.equal(ports["mixup.mixed_image"][unmixed], batch["image"][unmixed])


def test_eclip_mixes_by_a_curriculum_and_never_in_evaluation() -> None:
    found = [
        float(mixing_probability(torch.tensor(p, dtype=torch.float64), 0.05, 0.5)) for p in (0, 0.09, 0.1, 0.25, 0.4, 0.6, 0.9)
    ]
    assert found == pytest.approx([0, 0, 0.05, 0.275, 0.5, 0.275, 0.05])
    run = run_of("eclip")
    assert not step(run.model, batch_of(run, progress=0.05))[1]["mixup.is_mixed"].any()
    run.model.eval()
    assert not step(run.model, batch_of(run, range(9), progress=0.4))[1]["mixup.is_mixed"].any()


def test_eclip_with_other_heat_maps_has_another_loss() -> None:
    run = run_of("eclip", "inputs.may_lack=null", "data.absent=[]")
    batch = batch_of(run, range(9), progress=0.4)
    assert loss(run.model, batch, "clip.global") != loss(run.model, turned(batch, "heatmap"), "clip.global")


# ------------------------------------------------------------------------------------------------------------------ MedCLIP


def test_medclip_is_a_cross_entropy_with_the_similarities_of_labels() -> None:
    run = run_of("medclip")
    batch = batch_of(run)
    losses, ports = step(run.model, batch)
    head = run.model.alignments["matching"]
    images = [unit(head.image_projection.weight @ one.mean(dim=0)) for one in ports["image_encoder.image_tokens"]]
    texts = [
        unit(head.text_projection.weight @ one[valid].mean(dim=0))
        for one, valid in zip(ports["text_encoder.text_tokens"], batch["text_is_valid"], strict=True)
    ]
    labels, text_labels = ([unit(row) if row.any() else row for row in batch[name]] for name in ("labels", "text_labels"))
    total = 0.0
    for a, b, la, lb in ((images, texts, labels, text_labels), (texts, images, text_labels, labels)):
        for i in range(6):
            target = softmax([float(la[i] @ lb[j]) for j in range(6)])
            scores = log_softmax([float(head.scale()) * float(a[i] @ b[j]) for j in range(6)])
            total -= sum(y * s for y, s in zip(target, scores, strict=True)) / 6
    assert float(losses["matching.semantic"]) == pytest.approx(total / 2, rel=1e-9)


@pytest.mark.parametrize("name", ["labels", "text_labels"])
def test_medclip_with_other_labels_has_another_loss(name: str) -> None:
    run = run_of("medclip")
    batch = batch_of(run)
    other = changed(batch, **{name: 1 - batch[name]})
    assert loss(run.model, batch, "matching.semantic") != loss(run.model, other, "matching.semantic")


# ----------------------------------------------------------------------------------------------------------------- BioViL-T


def expected_gloria(images: list[Tensor], words: list[list[Tensor]]) -> float:
    """``1/2 [CE(10 S) + CE(10 S^T)]`` with ``S_bc = log sum_j exp(5 cos(t_j, c_j))``, written out for every word and patch."""
    scores = []
    for patches in images:
        row = []
        for report in words:
            products = dots(report, list(patches))
            over_words = [softmax([products[j][n] for j in range(len(report))]) for n in range(len(patches))]
            total = 0.0
            for j, word in enumerate(report):
                weights = softmax([4 * over_words[n][j] for n in range(len(patches))])
                context = sum(w * patches[n] for n, w in enumerate(weights))
                total += math.exp(5 * float(unit(word) @ unit(context)))  # type: ignore[arg-type]
            row.append(10 * math.log(total))
        scores.append(row)
    return info_nce(scores)


def test_biovil_t_contrasts_what_is_seen_and_what_has_changed() -> None:
    run = run_of("biovil_t")
    batch = batch_of(run)
    assert batch["prior_is_known"].tolist() == [True, True, False] * 2
    losses, ports = step(run.model, batch)
    temporal, head = run.model.parts["temporal"], run.model.alignments["contrast"]
    tokens = []
    for row in range(6):
        now, before = (temporal.project(ports[f"{one}.image_tokens"][row]) for one in ("image_encoder", "prior_encoder"))
        at = temporal.positions
        joint = torch.cat([now + at + temporal.times[0], before + at + temporal.times[1]])[None]
        for block in temporal.blocks:
            joint = block(joint)
        change = joint[0, : len(now)] if batch["prior_is_known"][row] else temporal.absent.expand(len(now), -1)
        tokens.append(torch.cat([now, change], dim=1).detach())
    torch.testing.assert_close(ports["temporal.temporal_tokens"], torch.stack(tokens))
    patches = [one @ head.patch_projection.weight.T for one in tokens]
    words = []
    for row in range(6):
        ids, states = batch["word_ids"][row], ports["text_encoder.text_tokens"][row]
        words.append([head.word_projection.weight @ states[ids == word].sum(dim=0) for word in range(int(ids.max()) + 1)])
    assert float(losses["contrast.local"]) == pytest.approx(2 * expected_gloria(patches, words), rel=1e-8)
    images = [unit(head.heads.image_projection.weight @ one.mean(dim=0)) for one in tokens]
    texts = [
        unit(head.heads.text_projection.weight @ ports["text_encoder.text_tokens"][row][batch["text_is_valid"][row]].mean(dim=0))
        for row in range(6)
    ]
    assert float(losses["contrast.global"]) == pytest.approx(2 * info_nce(dots(images, texts, 10)), rel=1e-9)


def test_biovil_t_with_other_priors_has_another_loss_and_absent_ones_do_not_count() -> None:
    run = run_of("biovil_t")
    batch = batch_of(run)
    known = batch["prior_is_known"][:, None, None, None]
    first = loss(run.model, batch, "contrast.global")
    assert loss(run.model, changed(batch, prior=torch.where(known, -batch["prior"], batch["prior"])), "contrast.global") != first
    assert loss(run.model, changed(batch, prior=torch.where(known, batch["prior"], -batch["prior"])), "contrast.global") == first


def test_biovil_t_has_one_image_encoder() -> None:
    run = run_of("biovil_t")
    assert not any(name.startswith("parts.prior_encoder") for name in run.model.state_dict())
    batch = batch_of(run)
    before = step(run.model, batch)[1]["prior_encoder.image_tokens"]
    assert run.model.image_encoder is not None
    perturb(run.model.image_encoder)
    assert not torch.equal(step(run.model, batch)[1]["prior_encoder.image_tokens"], before)
