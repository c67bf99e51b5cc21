"""The table of timm facts agrees with the installed timm."""

from __future__ import annotations

import json
from pathlib import Path

import medvlp_standard
import pytest
import timm
import torch
from medvlp_standard.timm_facts import CnnFacts, VitFacts, base_name, cnn_facts, misspelt, vit_facts

TABLE_FILE = Path(medvlp_standard.__file__).parent / "timm_table.json"
TABLE = json.loads(TABLE_FILE.read_text())

VITS = [
    "vit_base_patch16_224",
    "vit_tiny_patch16_224",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_base_patch32_clip_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    *sorted(TABLE["vit"])[::13],
]
CNNS = ["resnet18", "resnet50", "convnext_tiny", "densenet121", "efficientnet_b0", *sorted(TABLE["cnn"])[::23]]


def meta_model(name: str, **options: bool | int) -> torch.nn.Module:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    with torch.device("meta"):
        return timm.create_model(name, **options)


@pytest.mark.parametrize("name", VITS)
def test_vit_rows_are_true(name: str) -> None:
    facts, model = vit_facts(name), meta_model(name, num_classes=0)
    assert facts is not None
    assert facts.width == model.embed_dim
    assert (facts.patch, facts.patch) == model.patch_embed.patch_size
    assert (facts.image_size, facts.image_size) == model.patch_embed.img_size
    assert facts.prefix == model.num_prefix_tokens
    assert facts.depth == len(model.blocks)


@pytest.mark.parametrize("name", CNNS)
def test_cnn_rows_are_true(name: str) -> None:
    facts, info = cnn_facts(name), meta_model(name, features_only=True).feature_info
    assert facts is not None
    assert list(facts.channels) == info.channels()
    assert list(facts.reductions) == info.reduction()


def test_known_sizes_from_the_papers() -> None:
    assert vit_facts("vit_base_patch16_224") == VitFacts(768, 16, 224, 1, 12, 12)
    assert vit_facts("vit_large_patch16_224") == VitFacts(1024, 16, 224, 1, 24, 16)
    assert cnn_facts("resnet50") == CnnFacts((64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32))


def test_a_weights_tag_does_not_matter() -> None:
    assert base_name("vit_base_patch16_224.augreg_in21k") == "vit_base_patch16_224"
    assert vit_facts("vit_base_patch16_224.mae") == vit_facts("vit_base_patch16_224") is not None


def test_only_near_names_count_as_misspelt() -> None:
    assert misspelt("vit_base_patch16_224", "vit") is None
    assert misspelt("vit_bsae_patch16_224", "vit") == "vit_base_patch16_224"
    assert misspelt("resnet_50", "cnn") == "resnet50"
    assert misspelt("my_own_network", "vit") is None


def test_the_table_stays_small_and_sorted() -> None:
    assert TABLE_FILE.stat().st_size < 300_000
    assert len(TABLE["vit"]) > 100
    assert len(TABLE["cnn"]) > 100
    assert list(TABLE["vit"]) == sorted(TABLE["vit"])
