"""Which parameters decay, and the learning rate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medvlp_core.blocks import TrainSpec
from medvlp_core.train.optim import learning_rate_at, make_optimizer, parameter_groups


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
    rates = [learning_rate_at(step, 100, peak=2.0, warmup_fraction=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert learning_rate_at(0, 1, peak=2.0, warmup_fraction=0.0) == 2.0


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.floats(0, 0.99))
def test_the_rate_rises_then_falls_and_stays_positive(steps: int, warmup: float) -> None:
    rates = [learning_rate_at(step, steps, peak=1.0, warmup_fraction=warmup) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1.0 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
