"""Blocks: which they are, and that computing them another way changes no number."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from medvlp_core.data.order import DataOrder
from medvlp_core.model.build import BuiltRun, build_run
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.parallel import layers_of, prepare


@pytest.fixture
def built(host: PluginHost, tmp_path: Path, micro: str) -> BuiltRun:
    path = tmp_path / "micro.yaml"
    path.write_text(micro)
    return build_run(plan_recipe(path, host=host), seed=0)


def gradients(built: BuiltRun, *, is_training: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
    order = DataOrder(count=len(built.pipeline.records("train")), batch_size=4, seed=0)
    batch = next(iter(built.pipeline.training_batches(order, range(1))))
    model = built.model.train(is_training)
    model.zero_grad()
    torch.manual_seed(1)
    loss = model(batch).loss
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def test_blocks_of_real_encoders_are_found(built: BuiltRun) -> None:
    kinds = [type(layer).__name__ for layer in layers_of(built.model)]
    assert {"Block", "BertLayer"} <= set(kinds)
    assert layers_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == [], "plain layers are no blocks"


CNN = "{use: standard.timm_cnn, model: resnet10t, image_size: 64, channels: 1}"


@pytest.mark.parametrize("encoder", ["timm_vit", "timm_cnn"])
def test_recomputing_changes_no_number(host: PluginHost, tmp_path: Path, micro: str, encoder: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(micro if encoder == "timm_vit" else re.sub(r"(?<=image_encoder:)\s+{use: [^}]*}", f" {CNN}", micro))
    found = []
    for activation_checkpointing in (False, True):
        built = build_run(plan_recipe(path, host=host), seed=0)
        prepare(built.model, TrainSpec(steps=1, activation_checkpointing=activation_checkpointing))
        loss, gradient = gradients(built)
        found.append((loss, gradient, dict(built.model.named_buffers()), set(built.model.state_dict())))
    (loss, before, buffers, names), (again, after, buffers_after, names_after) = found
    assert again == loss
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "dropout too"
    assert len(buffers) > (10 if encoder == "timm_cnn" else 0)
    assert all(torch.equal(buffers[name], buffers_after[name]) for name in buffers), "batch norms count a pass once"
    assert names == names_after


def test_compiled_blocks_give_the_same(built: BuiltRun) -> None:
    """Those of one encoder, for compiling takes long; without dropout, which the compiler draws from another stream."""
    loss, before = gradients(built, is_training=False)
    names = set(built.model.state_dict())
    prepare(built.model.image_encoder, TrainSpec(steps=1, compile=True))
    again, after = gradients(built, is_training=False)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-5)
    assert set(built.model.state_dict()) == names
