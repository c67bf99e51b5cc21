"""The composed MPMA model: what reaches what, which passes run, and that every variant trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medvlp_core.model.build import build_model
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.plan import ModelPlan

PlanOf = Callable[[str], ModelPlan]

VARIANTS = {
    "default": "",
    "memory_softmax": "model: {fusion: {memory: cmn_softmax}}",
    "memory_slots": "model: {fusion: {memory: kv_slots}}",
    "early": "model: {fusion: {position: early}}",
    "early_pooled_and_cross": "model: {fusion: {position: early, fuse: pooled_and_cross, layers: 1}}",
    "clean_alignment": "model: {alignments: {gla: {align_text: clean, align_image: clean, same_text: ignore}}}",
    "gloria": "model: {alignments: {gla: {local_kind: gloria, same_word: ignore}}}",
    "global_only": "model: {alignments: {gla: {granularity: global}}}",
    "linear_head": "model: {decoders: {report: {head: linear, positions: nonpad}}}",
    "no_alignment": "model: {alignments: null}",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_every_parameter(plan_of: PlanOf, batch: Batch, name: str) -> None:
    torch.set_default_dtype(torch.float64)  # parts that make tensors of their own must follow
    try:
        model = build_model(plan_of(VARIANTS[name]), seed=0)
        out = model(batch)
        assert out.loss.isfinite()
        out.loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    lost = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    assert lost == []


def test_the_alignment_does_not_train_the_memory_nor_the_fusion(plan_of: PlanOf, batch: Batch) -> None:
    model = build_model(plan_of(""), seed=0).double()
    losses = model(batch).losses
    (losses["gla.global"] + losses["gla.local"]).backward(retain_graph=True)
    assert model.fusion is not None
    assert all(p.grad is None for p in model.fusion.parameters())
    assert model.image_encoder is not None
    assert model.text_encoder is not None
    assert any(p.grad is not None for p in model.image_encoder.parameters())
    assert any(p.grad is not None for p in model.text_encoder.parameters())
    losses["report.mlm"].backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.fusion.named_parameters() if "slots" in name)


@pytest.mark.parametrize("position", ["late", "early"])
def test_the_text_that_gla_sees_does_not_depend_on_the_image(plan_of: PlanOf, batch: Batch, position: str) -> None:
    model = build_model(plan_of(f"model: {{fusion: {{position: {position}}}}}"), seed=0).double().eval()
    seen: list[torch.Tensor] = []
    model.alignments["gla"].register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs["text_tokens"]), with_kwargs=True)
    outputs = []
    for image in (batch["image"], batch["image"].flip(0)):
        torch.manual_seed(0)
        outputs.append(model({**batch, "image": image}))
    assert torch.equal(seen[0], seen[1])
    assert not torch.isclose(outputs[0].losses["report.mlm"], outputs[1].losses["report.mlm"], rtol=1e-9), "the fusion's text does"


def test_one_text_pass_by_default_and_one_more_where_it_is_asked_for(plan_of: PlanOf) -> None:
    def passes(changes: str) -> list[str]:
        calls = [call for call in plan_of(changes).calls if call.path in ("model.image_encoder", "model.text_encoder")]
        return sorted(f"{call.name} {call.view}" for call in calls if call.name != "embed")

    assert passes("") == ["encode masked", "forward masked"]
    assert passes(VARIANTS["early"]) == ["encode masked", "forward masked", "fused masked"]
    assert passes("model: {alignments: {gla: {align_text: clean}}}") == ["encode clean", "encode masked", "forward masked"]


def test_padding_content_changes_no_loss(plan_of: PlanOf, batch: Batch) -> None:
    model = build_model(plan_of(""), seed=0).double().eval()
    torch.manual_seed(0)
    before = model(batch).losses
    torch.manual_seed(0)
    changed = {**batch, "token_ids": batch["token_ids"].masked_fill(~batch["text_is_valid"], 17)}
    for name, value in model(changed).losses.items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize("row", [0, 2])
def test_a_single_pair_is_finite_even_without_words(plan_of: PlanOf, batch: Batch, row: int) -> None:
    model = build_model(plan_of(""), seed=0).double()
    single = {name: value[row : row + 1] for name, value in batch.items()}
    out = model(single)
    out.loss.backward()
    assert out.losses["gla.global"].item() == 0.0
    assert out.losses["image.reconstruction"] > 0
    assert (out.losses["report.mlm"].item() == 0.0) is (row == 2)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_mixed_precision_stays_close(plan_of: PlanOf, batch: Batch, name: str) -> None:
    model = build_model(plan_of(VARIANTS[name]), seed=0).eval()
    batch = batch | {name: batch[name].float() for name in ("image", "image_target")}
    torch.manual_seed(0)
    wanted = model(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for term, value in wanted.losses.items():
        torch.testing.assert_close(out.losses[term], value, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("granularity", ["both", "global"])
def test_a_fusion_without_attention_leaves_the_maps_to_the_alignment(plan_of: PlanOf, batch: Batch, granularity: str) -> None:
    pooled = f"model: {{fusion: {{fuse: pooled_add}}, alignments: {{gla: {{granularity: {granularity}}}}}}}"
    model = build_model(plan_of(pooled), seed=0).double().eval()
    maps = model.attention_maps(batch)
    if granularity == "global":
        assert maps is None, "no part has anything to tell"
        return
    assert maps is not None
    found = model.attention_maps_and_provider(batch)
    assert found is not None
    assert found[1] == "model.alignments.gla"
    assert (maps[batch["text_is_valid"]].std(dim=-1) > 1e-6).all(), "gla's own, not a uniform map of the fusion"
