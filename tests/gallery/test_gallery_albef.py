"""ALBEF: a teacher, queues, hard negatives through the model's own fusion, masked words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from gallery_runs import batch_of, dots, log_softmax, loss, mean, perturb, run_of, softmax, step
from rich.console import Console

from medvlp_core import build, plan, pretrain


def test_albef_contrasts_with_teacher_and_queue_and_softens_the_targets() -> None:
    run = run_of("albef")
    perturb(run.model.parts["teacher_image"])
    batch = batch_of(run)
    losses, ports = step(run.model, batch)
    head = run.model.alignments["itc"]
    scale, alpha, total = float(head.scale()), 0.4, 0.0
    student = [list(ports[f"itc.{one}_embedding"]) for one in ("image", "text")]
    teacher = [list(ports[f"teacher_itc.{one}_embedding"]) for one in ("image", "text")]
    columns = [teacher[0] + list(head.image_queue), teacher[1] + list(head.text_queue)]
    for own, other in ((0, 1), (1, 0)):
        for i in range(6):
            (soft,) = dots([teacher[own][i]], columns[other], scale)
            target = [alpha * y + (1 - alpha) * (j == i) for j, y in enumerate(softmax(soft))]
            (scores,) = dots([student[own][i]], columns[other], scale)
            total -= sum(y * s for y, s in zip(target, log_softmax(scores), strict=True)) / 6
    assert float(losses["itc.contrast"]) == pytest.approx(total / 2, rel=1e-9)


def test_albef_matches_pairs_against_hard_negatives_of_its_own_fusion() -> None:
    run = run_of("albef")
    batch = batch_of(run)
    losses, ports = step(run.model, batch)
    images, texts = ports["image_encoder.image_tokens"], ports["text_encoder.text_tokens"]
    for given, own in (("negatives.other_image_tokens", images), ("negatives.other_text_tokens", texts)):
        for row in range(6):
            places = [other for other in range(6) if torch.equal(ports[given][row], own[other])]
            assert places
            assert row not in places
    fusion, score = run.model.fusion, run.model.decoders["itm"].to_score
    assert fusion is not None
    negatives = ports["negatives.other_text_tokens"], ports["negatives.other_text_is_valid"]
    fused = [
        fusion(text_tokens=texts, text_is_valid=batch["text_is_valid"], image_tokens=images),
        fusion(text_tokens=texts, text_is_valid=batch["text_is_valid"], image_tokens=ports["negatives.other_image_tokens"]),
        fusion(text_tokens=negatives[0], text_is_valid=negatives[1], image_tokens=images),
    ]
    errors = []
    for kind, one in enumerate(fused):
        for row in range(6):
            chance = 1 / (1 + math.exp(-float(score(one.fused_text_tokens[row, 0]))))
            errors.append(-math.log(chance if kind == 0 else 1 - chance))
    assert float(losses["itm.matching"]) == pytest.approx(mean(errors), rel=1e-9)


def test_albef_masks_words_without_a_second_pass_of_the_image() -> None:
    calls = [str(call) for call in plan("gallery:albef").calls]
    assert "model.image_encoder" in calls
    assert not any(call.startswith(("model.image_encoder @", "model.parts.with")) and "@" in call for call in calls)
    run = run_of("albef")
    batch = batch_of(run)
    losses, ports = step(run.model, batch)
    is_masked = ports["text_is_masked@masked"]
    assert is_masked.any()
    head, errors = run.model.decoders["mlm"], []
    for row, place in is_masked.nonzero().tolist():
        logits = head.to_vocabulary(head.transform(ports["fusion.fused_text_tokens@masked"][row, place]))
        errors.append(-log_softmax(logits.tolist())[int(batch["token_ids"][row, place])])
    assert float(losses["mlm.mlm"]) == pytest.approx(mean(errors), rel=1e-9)


def test_albef_scores_any_pair() -> None:
    run = run_of("albef")
    run.model.eval()
    batch = batch_of(run)
    del batch["progress"]
    texts = {name: batch[name] for name in ("token_ids", "text_is_valid", "word_ids")}
    scores = run.model.score({"image": batch["image"]}, texts)
    assert scores.shape == (6, 6)
    own = run.model.ports(batch, "itm.match_score")["itm.match_score"]
    torch.testing.assert_close(scores.diagonal(), own)


@pytest.mark.parametrize("what", ["teacher_image", "teacher_text", "teacher_itc", "queue"])
def test_albef_with_another_teacher_or_queue_has_another_loss(what: str) -> None:
    run = run_of("albef")
    batch = batch_of(run)
    before = loss(run.model, batch, "itc.contrast")
    if what == "queue":
        run.model.alignments["itc"].image_queue.copy_(run.model.alignments["itc"].image_queue.roll(1, dims=1))
    else:
        perturb(run.model.alignments[what] if what == "teacher_itc" else run.model.parts[what])
    assert loss(run.model, batch, "itc.contrast") != before


def test_albef_keeps_the_vectors_of_earlier_steps_and_its_teacher_follows(tmp_path: Path) -> None:
    recipe = plan("gallery:albef", ["train.steps=2"])
    before = build(recipe).model
    first = {name: value.clone() for name, value in before.state_dict().items()}
    result = pretrain(recipe, out=tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert result is not None
    after = result.built.model.state_dict()
    for name in ("image_queue", "text_queue"):
        old, new = (state[f"alignments.itc.{name}"] for state in (first, after))
        assert torch.equal(new[16:], old[:16])
        torch.testing.assert_close(new[:16].norm(dim=1), torch.ones(16))
    followed = "parts.teacher_image.model.patch_embed.proj.weight"
    matching = [name for name in after if name.startswith("parts.teacher_image.") and name.endswith("weight")]
    name = followed if followed in after else matching[0]
    source = name.replace("parts.teacher_image", "image_encoder")
    assert not torch.equal(after[name], first[name])
    assert (after[name] - first[name]).norm() < (after[source] - first[source]).norm()
