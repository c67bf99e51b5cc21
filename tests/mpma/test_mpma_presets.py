"""The presets: the paper-scale model has the sizes of the works that it copies, and both recipes plan."""

from __future__ import annotations

import pytest
import torch

from medvlp_core.errors import Diagnostics
from medvlp_core.model.build import build_model
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import PluginHost, load_plugins
from medvlp_core.recipe.load import parse_override


@pytest.fixture(scope="module")
def base(host: PluginHost) -> ModelPlan:
    """``mpma:base`` with a vocabulary of its declared size, without learning one."""
    changes = (("use", "tokenizer=micro.tokenizer"), ("set", "tokenizer.vocabulary=30000"), ("set", "tokenizer.length=100"))
    overrides = [parse_override(kind, text, Diagnostics()) for kind, text in changes]  # type: ignore[arg-type]
    return plan_recipe("mpma:base", [one for one in overrides if one is not None], host=host)


def count(module: torch.nn.Module | None) -> int:
    assert module is not None
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_base_model_has_the_published_sizes(base: ModelPlan) -> None:
    with torch.device("meta"):  # sizes only: no memory, no random numbers
        model = build_model(base, seed=0)
    vit_b16 = 86_567_656  # timm's vit_base_patch16_224 with its classifier of 1000 classes
    assert count(model.image_encoder) == vit_b16 - (768 * 1000 + 1000)
    assert model.text_encoder is not None
    bert_base_layer = 7_087_872  # (109,482,240 of BERT-base - its embeddings and pooler) / 12
    layers = [module for name, module in model.text_encoder.named_modules() if name.rpartition(".")[0].endswith(".layer")]
    assert [count(layer) for layer in layers] == [bert_base_layer] * 6
    sizes = {name: p.shape for name, p in model.named_parameters()}
    assert sizes["fusion.memory.slots"] == (2048, 768)
    assert sizes["decoders.image.to_pixels.weight"] == (3072, 768), "cells of 32 x 32 pixels and 3 channels"
    assert sizes["decoders.report.to_words.weight"] == (30000, 768)
    assert model.masking is not None
    assert model.masking.visible == 49


def test_losses_weigh_one_and_each_encoder_runs_once(base: ModelPlan) -> None:
    assert base.losses == {"gla.global": 1.0, "gla.local": 1.0, "image.reconstruction": 1.0, "report.mlm": 1.0}
    heads = ["model.alignments.gla", "model.decoders.image", "model.decoders.report"]
    encoders = ["model.image_encoder @masked", "model.text_encoder.embed @masked", "model.text_encoder.encode @masked"]
    assert sorted(map(str, base.calls)) == sorted([*encoders, "model.fusion @masked", "model.masking @masked", *heads])


@pytest.mark.parametrize("preset", ["mpma:base", "mpma:small"])
def test_the_shipped_presets_plan_with_the_installed_bundles(preset: str) -> None:
    plan = plan_recipe(preset, host=load_plugins())
    assert plan.skipped == ()
    assert (plan.components.get("data") is None) is (preset == "mpma:base"), "the paper-scale recipe brings no data"
