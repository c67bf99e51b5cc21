"""MA-CMF: its variants, what may reach what, and its attention maps."""

from __future__ import annotations

import attrs
import pytest
import torch
from medvlp_mpma.fusion import MemoryFusion
from medvlp_mpma.specs import MemoryFusionSpec
from torch import Tensor

from medvlp_core.nn.interfaces import HasAttentionMaps

SMALL = MemoryFusionSpec(slots=6, topk=2, heads=2, layers=2, ffn_ratio=2.0, dropout=0.0)
VARIANTS = [
    attrs.evolve(SMALL, memory=memory, fuse=fuse, position=position)
    for memory in ("cmn_topk", "cmn_softmax", "kv_slots", "none")
    for fuse in ("cross_attention", "pooled_add", "pooled_and_cross")
    for position in ("late", "early")
    if not (memory == "kv_slots" and fuse == "pooled_add")
]


def label(spec: MemoryFusionSpec) -> str:
    return f"{spec.memory}-{spec.fuse}-{spec.position}"


def build(spec: MemoryFusionSpec, text_width: int = 8, image_width: int = 12) -> MemoryFusion:
    torch.manual_seed(0)
    return MemoryFusion(spec, {"Dt": text_width, "Di": image_width}).double()


def needs(spec: MemoryFusionSpec, batch: int = 2, image_width: int = 12, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    is_valid = torch.tensor([[True, True, True, False], [True, False, False, False]])[:batch]
    return {
        "text_tokens" if spec.position == "late" else "text_embeddings": torch.randn(batch, 4, 8).double(),
        "text_is_valid": is_valid,
        "image_tokens": torch.randn(batch, 5, image_width).double(),
    }


def fused(module: MemoryFusion, spec: MemoryFusionSpec, arguments: dict[str, Tensor]) -> Tensor:
    out = module(**arguments)
    given = out.fused_text_tokens if spec.position == "late" else out.fused_text_embeddings
    other = out.fused_text_embeddings if spec.position == "late" else out.fused_text_tokens
    assert other is None
    assert given is not None
    return given


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_every_variant_fuses_and_learns(spec: MemoryFusionSpec) -> None:
    assert list(spec.problems()) == []
    module, arguments = build(spec), needs(spec)
    out = fused(module, spec, arguments)
    assert out.shape == (2, 4, 8)
    (out * torch.randn_like(out)).sum().backward()
    dead = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # Keys' biases shift all scores of a query alike, and softmax does not see that.
    assert [name for name in dead if not name.endswith("key.bias")] == []


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_padding_is_never_attended_to_and_rows_do_not_mix(spec: MemoryFusionSpec) -> None:
    module, arguments = build(spec), needs(spec)
    name = "text_tokens" if spec.position == "late" else "text_embeddings"
    is_valid = arguments["text_is_valid"]
    before = fused(module, spec, arguments)
    changed = {**arguments, name: arguments[name].masked_fill(~is_valid.unsqueeze(-1), 7.0)}
    torch.testing.assert_close(fused(module, spec, changed)[is_valid], before[is_valid])
    single = {key: value[:1] for key, value in arguments.items()}
    torch.testing.assert_close(fused(module, spec, single), before[:1])


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_every_report_token_sees_the_image(spec: MemoryFusionSpec) -> None:
    module, arguments = build(spec), needs(spec)
    other = {**arguments, "image_tokens": arguments["image_tokens"].roll(1, dims=0)}
    difference = (fused(module, spec, other) - fused(module, spec, arguments)).abs().amax(dim=-1)
    assert (difference > 1e-6).all()


@pytest.mark.parametrize("spec", [spec for spec in VARIANTS if spec.has_layers], ids=label)
def test_attention_maps_sum_to_one(spec: MemoryFusionSpec) -> None:
    module, arguments = build(spec), needs(spec)
    assert isinstance(module, HasAttentionMaps)
    maps = module.attention_maps(**arguments)
    assert maps is not None
    assert maps.shape == (2, 4, 5)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 4).double())
    assert (maps.std(dim=-1) > 1e-6).all()


@pytest.mark.parametrize("spec", [spec for spec in VARIANTS if not spec.has_layers], ids=label)
def test_pooled_add_attends_to_nothing_and_has_no_maps(spec: MemoryFusionSpec) -> None:
    assert build(spec).attention_maps(**needs(spec)) is None


def test_the_order_of_patches_means_nothing() -> None:
    for spec in VARIANTS:
        module, arguments = build(spec), needs(spec)
        shuffled = {**arguments, "image_tokens": arguments["image_tokens"][:, torch.randperm(5)]}
        torch.testing.assert_close(fused(module, spec, shuffled), fused(module, spec, arguments))


def test_the_default_follows_its_equations_step_by_step() -> None:
    spec = attrs.evolve(SMALL, layers=1)
    module, arguments = build(spec), needs(spec)
    text, image = arguments["text_tokens"], module.image_map(arguments["image_tokens"])
    assert module.memory is not None
    text, image = text + module.memory(text), image + module.memory(image)
    layer = module.layers[0]
    normed = layer.self_norm(text)
    text = text + layer.self_attention(normed, normed, arguments["text_is_valid"])
    text = text + layer.cross_attention(layer.text_norm(text), layer.image_norm(image))
    text = text + layer.feed_forward(layer.feed_forward_norm(text))
    torch.testing.assert_close(fused(module, spec, arguments), module.norm(text))


def test_pooled_add_is_a_linear_map_of_the_mean_patch() -> None:
    spec = attrs.evolve(SMALL, memory="none", fuse="pooled_add", position="early")
    for image_width in (12, 8):
        module, arguments = build(spec, image_width=image_width), needs(spec, image_width=image_width)
        assert [name for name, _ in module.named_parameters()] == ["pooled.weight", "pooled.bias"]
        assert module.pooled is not None
        mean_of_maps = module.pooled(arguments["image_tokens"]).mean(dim=1, keepdim=True)
        torch.testing.assert_close(fused(module, spec, arguments), arguments["text_embeddings"] + mean_of_maps)


def test_the_memory_is_one_for_both_modalities() -> None:
    module = build(SMALL)
    assert sum("slots" in name for name, _ in module.named_parameters()) == 1
    assert module.memory is not None
    calls: list[int] = []
    module.memory.register_forward_hook(lambda _module, inputs, _output: calls.append(inputs[0].shape[1]))
    module(**needs(SMALL))
    assert calls == [4 + 5], "report tokens and image tokens query the same matrix, in one call"


def test_slots_as_keys_need_an_attention() -> None:
    spec = attrs.evolve(SMALL, memory="kv_slots", fuse="pooled_add")
    [(field, text, hint)] = spec.problems()
    assert field == "memory"
    assert "pooled_add has none" in text
    assert hint is not None


def test_heads_must_divide_the_width_only_where_there_are_heads() -> None:
    assert SMALL.contract().require[0].field == "heads"
    assert attrs.evolve(SMALL, memory="none", fuse="pooled_add").contract().require == ()
