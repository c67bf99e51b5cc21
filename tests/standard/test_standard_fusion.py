"""Fusions: what reaches the text, padding, attention maps."""

from __future__ import annotations

import pytest
import torch
from medvlp_standard.fusion import ConcatAttention, CrossAttention, NoFusion, PooledAdd, heads_for
from medvlp_standard.specs.fusion import ConcatAttentionSpec, CrossAttentionSpec, NoFusionSpec, PooledAddSpec
from torch import Tensor

DIMS = {"Dt": 8, "Di": 6, "L": 5}
ATTENTIVE = [
    (CrossAttention, CrossAttentionSpec(layers=2, heads=2, ffn_ratio=2.0)),
    (ConcatAttention, ConcatAttentionSpec(layers=2, heads=2, ffn_ratio=2.0)),
]


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "text_tokens": torch.randn(2, 5, 8, generator=generator),
        "text_is_valid": torch.tensor([[True] * 5, [True, True, False, False, False]]),
        "image_tokens": torch.randn(2, 7, 6, generator=generator),
    }


def test_no_fusion_hands_the_text_on() -> None:
    text = torch.randn(2, 5, 8)
    assert NoFusion(NoFusionSpec(), DIMS)(text_tokens=text).fused_text_tokens is text


@pytest.mark.parametrize(("position", "kind"), [("early", "text_embeddings"), ("late", "text_tokens")])
def test_pooled_add_equals_the_formula_with_the_mean_on_either_side_of_the_projection(position: str, kind: str) -> None:
    torch.manual_seed(0)
    fusion = PooledAdd(PooledAddSpec(position=position), DIMS)
    text, image = torch.randn(2, 5, 8), torch.randn(2, 7, 6)
    features = fusion(image_tokens=image, **{kind: text})
    filled = f"fused_{kind}"
    assert [name for name, value in features._asdict().items() if value is not None] == [filled]
    projected_first = (image @ fusion.project.weight.t() + fusion.project.bias).mean(dim=1)
    torch.testing.assert_close(getattr(features, filled), text + projected_first[:, None])
    assert {kind, "image_tokens"} == set(PooledAddSpec(position=position).contract().needs)


@pytest.mark.parametrize(("module_class", "spec"), ATTENTIVE)
def test_the_image_reaches_every_text_position(module_class: type, spec: object) -> None:
    torch.manual_seed(0)
    fusion = module_class(spec, DIMS).eval()
    given = inputs()
    before = fusion(**given).fused_text_tokens
    after = fusion(**(given | {"image_tokens": given["image_tokens"] + 1.5 * torch.randn(2, 7, 6)})).fused_text_tokens
    assert before.shape == (2, 5, 8)
    assert ((before - after).abs().amax(dim=-1)[given["text_is_valid"]] > 1e-4).all()


@pytest.mark.parametrize(("module_class", "spec"), ATTENTIVE)
def test_padding_content_changes_no_valid_output(module_class: type, spec: object) -> None:
    torch.manual_seed(0)
    fusion = module_class(spec, DIMS).eval()
    given = inputs()
    is_valid = given["text_is_valid"]
    text = given["text_tokens"].masked_fill(~is_valid.unsqueeze(-1), 77.0)
    before, after = fusion(**given), fusion(**(given | {"text_tokens": text}))
    torch.testing.assert_close(after.fused_text_tokens[is_valid], before.fused_text_tokens[is_valid])
    if before.fused_image_tokens is not None:
        torch.testing.assert_close(after.fused_image_tokens, before.fused_image_tokens)


@pytest.mark.parametrize(("module_class", "spec"), ATTENTIVE)
def test_a_row_alone_equals_the_row_in_its_batch_cut_to_its_length(module_class: type, spec: object) -> None:
    torch.manual_seed(0)
    fusion = module_class(spec, DIMS).eval()
    given = inputs()
    local_only = {name: value[1:] for name, value in given.items()}
    local_only |= {"text_tokens": local_only["text_tokens"][:, :2], "text_is_valid": local_only["text_is_valid"][:, :2]}
    torch.testing.assert_close(fusion(**local_only).fused_text_tokens, fusion(**given).fused_text_tokens[1:, :2])


@pytest.mark.parametrize(("module_class", "spec"), ATTENTIVE)
def test_attention_maps_are_distributions_over_patches(module_class: type, spec: object) -> None:
    torch.manual_seed(0)
    fusion = module_class(spec, DIMS).eval()
    given = inputs()
    maps = fusion.attention_maps(**given)
    assert maps.shape == (2, 5, 7)
    torch.testing.assert_close(maps.sum(dim=-1)[given["text_is_valid"]], torch.ones(7))
    # Swapping two patches swaps their weights: the maps belong to patches, not to places.
    order = torch.tensor([0, 1, 5, 3, 4, 2, 6])
    swapped = fusion.attention_maps(**(given | {"image_tokens": given["image_tokens"][:, order]}))
    torch.testing.assert_close(swapped, maps[:, :, order])


def test_cross_attention_layers_follow_the_written_order() -> None:
    torch.manual_seed(0)
    fusion = CrossAttention(CrossAttentionSpec(layers=1, heads=2, ffn_ratio=2.0, dropout=0.0), DIMS)
    given = inputs()
    (layer,) = fusion.layers
    x = given["text_tokens"]
    normed = layer.self_norm(x)
    x = x + layer.self_attention(normed, normed, given["text_is_valid"])
    x = x + layer.cross_attention(layer.cross_norm(x), layer.memory_norm(given["image_tokens"]))
    x = x + layer.feed_forward(layer.feed_forward_norm(x))
    torch.testing.assert_close(fusion(**given).fused_text_tokens, fusion.norm(x))


def test_joint_attention_tells_the_modalities_apart_and_returns_both() -> None:
    torch.manual_seed(0)
    fusion = ConcatAttention(ConcatAttentionSpec(layers=1, heads=2, ffn_ratio=2.0, dropout=0.0), DIMS)
    given = inputs()
    features = fusion(**given)
    assert features.fused_image_tokens.shape == (2, 7, 8)
    features.fused_text_tokens.sum().backward()
    assert fusion.modality.grad is not None
    assert (fusion.modality.grad.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (64, 1), (128, 2), (192, 3), (200, 2), (384, 6), (768, 12), (509, 1)])
def test_heads_that_are_not_given_follow_the_width(width: int, heads: int) -> None:
    assert heads_for(width) == heads
    assert width % heads == 0
    for module_class, spec in ((CrossAttention, CrossAttentionSpec(layers=1)), (ConcatAttention, ConcatAttentionSpec(layers=1))):
        assert spec.contract().require == ()
        fusion = module_class(spec, {"Dt": width, "Di": 6, "L": 5})
        out = fusion(text_tokens=torch.randn(1, 2, width), text_is_valid=torch.ones(1, 2).bool(), image_tokens=torch.randn(1, 7, 6))
        assert out.fused_text_tokens.shape == (1, 2, width)
    assert CrossAttentionSpec(heads=3).contract().require


def test_a_text_of_one_token_and_a_batch_of_one_work() -> None:
    for module_class, spec in ATTENTIVE:
        fusion = module_class(spec, DIMS)
        out = fusion(text_tokens=torch.randn(1, 1, 8), text_is_valid=torch.ones(1, 1).bool(), image_tokens=torch.randn(1, 7, 6))
        assert torch.isfinite(out.fused_text_tokens).all()
