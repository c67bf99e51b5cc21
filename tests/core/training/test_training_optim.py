"""Which parameters decay, and the learning rate."""

import math
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medvlp_core.model.build import build_model
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.optim import WeightEMA, learning_rate_at, make_optimizer, parameter_groups


class Parts(nn.Module):
    """One of everything that components hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.conv = nn.Conv2d(1, 2, 3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.words = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.words.weight
        self.pos_embed = nn.Parameter(torch.zeros(1, 7, 4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.mask_token = nn.Parameter(torch.zeros(4))
        self.slots = nn.Parameter(torch.zeros(6, 4))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def test_only_matrices_decay() -> None:
    model = Parts()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05)
    decayed = {names[id(parameter)] for parameter in groups[0]["params"]}
    kept = {names[id(parameter)] for parameter in groups[1]["params"]}
    assert groups[0]["weight_decay"] == 0.05
    assert groups[1]["weight_decay"] == 0.0
    assert decayed == {"linear.weight", "conv.weight", "attention.in_proj_weight", "attention.out_proj.weight"}
    assert kept == set(names.values()) - decayed - {"frozen.weight", "frozen.bias"}
    assert {"words.weight", "pos_embed", "cls_token", "slots", "log_scale", "tied.bias"} <= kept


def test_the_optimizer_takes_the_recipe() -> None:
    optimizer = make_optimizer(Parts(), TrainSpec(steps=1, learning_rate=0.01, betas=(0.8, 0.9), weight_decay=0.2))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_warm_up_and_cosine() -> None:
    spec = TrainSpec(steps=100, learning_rate=2.0, warmup_fraction=0.1)
    rates = [learning_rate_at(step, 100, spec) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert learning_rate_at(0, 1, attrs.evolve(spec, warmup_fraction=0.0)) == 2.0
    constant = attrs.evolve(spec, schedule="constant")
    assert [learning_rate_at(step, 100, constant) for step in (4, 9, 10, 55, 99)] == [1.0, 2.0, 2.0, 2.0, 2.0]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.floats(0, 0.99))
def test_the_rate_rises_then_falls_and_stays_positive(steps: int, warmup: float) -> None:
    spec = TrainSpec(steps=steps, learning_rate=1.0, warmup_fraction=warmup)
    rates = [learning_rate_at(step, steps, spec) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1.0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_average_is_that_of_torch() -> None:
    torch.manual_seed(0)
    model = Parts()
    ours = WeightEMA(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)  # its first update is a copy
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.update(model)
        theirs.update_parameters(model)
    expected = {name: value for name, value in theirs.module.named_parameters() if value.requires_grad}
    assert ours.weights.keys() == expected.keys()
    for name, value in ours.weights.items():
        torch.testing.assert_close(value, expected[name].detach())


def test_the_average_and_the_weights_change_places_and_back() -> None:
    model = nn.Linear(2, 2)
    ema = WeightEMA(model, 0.5)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    second = model.weight.detach().clone()
    ema.swap(model)
    assert torch.equal(model.weight, first)
    ema.swap(model)
    assert torch.equal(model.weight, second)


def test_early_layers_learn_more_slowly(host: PluginHost, tmp_path: Path, micro: str) -> None:
    """A ViT of three blocks and a BERT of two, by hand: what is before the blocks counts as one more."""
    recipe = tmp_path / "deep.yaml"
    recipe.write_text(
        micro.replace("depth: 1, heads: 2}\n  text", "depth: 3, heads: 2}\n  text").replace(
            "layers: 1, heads: 2}\n  fus", "layers: 2, heads: 2}\n  fus"
        )
    )
    model = build_model(plan_recipe(recipe, host=host), seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05, 0.5)
    scale = {names[id(one)]: group["lr_scale"] for group in groups for one in group["params"]}
    assert scale.keys() == {name for name, one in model.named_parameters() if one.requires_grad}

    def of(part: str) -> set[float]:
        found = {value for name, value in scale.items() if part in name}
        assert found, part
        return found

    assert of("image_encoder.vit.patch_embed.") == of("image_encoder.vit.pos_embed") == {0.5**4}
    assert [of(f"image_encoder.vit.blocks.{number}.") for number in range(3)] == [{0.5**3}, {0.5**2}, {0.5**1}]
    assert of("image_encoder.vit.norm.") == {1.0}
    assert of("text_encoder") == {0.5**3, 0.5**2, 0.5}
    assert [of(f"layer.{number}.") for number in range(2)] == [{0.5**2}, {0.5}]
    assert of("embeddings.word_embeddings") == {0.5**3}
    assert of("fusion.") == of("alignments.") == of("decoders.") == {1.0}
    decays = {names[id(one)]: group["weight_decay"] for group in groups for one in group["params"]}
    assert {value for name, value in decays.items() if "norm" in name.lower() or name.endswith("bias") or "slots" in name} == {0.0}


def test_an_encoder_without_layers_learns_at_the_full_rate() -> None:
    model = nn.ModuleDict({"image_encoder": nn.Sequential(nn.Conv2d(1, 4, 3), nn.LayerNorm(4)), "head": nn.Linear(4, 2)})
    assert {group["lr_scale"] for group in parameter_groups(model, 0.05, 0.5)} == {1.0}
