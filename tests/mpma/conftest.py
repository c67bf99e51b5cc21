"""Micro plans of the MPMA presets, with a stand-in for the tokenizer so that nothing has to be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import attrs
import medvlp_mpma.plugin
import medvlp_standard.plugin
import pytest
import torch

from medvlp_core.nn.batch import Batch
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import Contract, TensorSpec
from medvlp_core.spec.roles import Role

VOCABULARY, MASK_ID, LENGTH = 40, 3, 9

MICRO = """
medvlp: 1
extends: mpma:base
tokenizer: {use: micro.tokenizer}
model:
  image_encoder: {image_size: 32, patch_size: 8, width: 16, depth: 2, heads: 2}
  text_encoder: {width: 12, layers: 2, heads: 2, ffn_width: 24}
  fusion: {slots: 10, topk: 3, heads: 2, ffn_ratio: 2.0}
  alignments: {gla: {dim: 6}}
  decoders: {image: {target_size: 64, width: 16, depth: 2, heads: 2}}
train: {epochs: null, steps: 1}
"""


@component("micro.tokenizer", role=Role.TOKENIZER, build="micro:Never")
@attrs.frozen(kw_only=True)
class MicroTokenizerSpec(ComponentSpec):
    """A tokenizer that is planned and never built."""

    length: int = param(LENGTH, help="tokens", at_least=2)
    vocabulary: int = param(VOCABULARY, help="token ids", at_least=5)

    def contract(self) -> Contract:
        """Numbers that a trained tokenizer would report."""
        return Contract(
            gives={
                "token_ids": f"B {self.length}:int",
                "text_is_valid": f"B {self.length}:bool",
                "word_ids": f"B {self.length}:int",
                "vocabulary": TensorSpec.parse(f"{self.vocabulary} {MASK_ID}:shape"),
            }
        )

    @classmethod
    def examples(cls) -> tuple[MicroTokenizerSpec, ...]:
        """One is enough here."""
        return (cls(), cls(length=4))


@hookimpl
def _register(registry) -> None:  # type: ignore[no-untyped-def]
    registry.add(MicroTokenizerSpec)


@pytest.fixture(scope="session")
def host() -> PluginHost:
    """The two bundles and the stand-in, and nothing else that is installed."""
    micro = SimpleNamespace(MEDVLP_INTERFACE=2, medvlp_register_components=_register)
    found = PluginHost.from_modules({"standard": medvlp_standard.plugin, "mpma": medvlp_mpma.plugin, "micro": micro})
    assert found.broken == ()
    return found


@pytest.fixture
def plan_of(tmp_path: Path, host: PluginHost) -> Callable[[str], ModelPlan]:
    """Plan the micro recipe with some YAML laid over it."""

    def plan(changes: str = "") -> ModelPlan:
        (tmp_path / "micro.yaml").write_text(MICRO)
        (tmp_path / "variant.yaml").write_text(f"medvlp: 1\nextends: micro.yaml\n{changes}")
        return plan_recipe(tmp_path / "variant.yaml", host=host)

    return plan


@pytest.fixture
def batch() -> Batch:
    """Three pairs in float64: a full report, a short one with a word of three pieces, and an empty one ([CLS] alone)."""
    torch.manual_seed(0)
    word_ids = torch.tensor([[-1, 0, 1, 2, 3, 3, 4, 5, 6], [-1, 0, 1, 1, 1, 2, -1, -1, -1], [-1, -1, -1, -1, -1, -1, -1, -1, -1]])
    text_is_valid = word_ids >= 0
    text_is_valid[:, 0] = True
    token_ids = torch.randint(4, VOCABULARY, word_ids.shape).masked_fill(~text_is_valid, 0)
    token_ids[:, 0] = 2
    image_target = torch.randn(3, 3, 64, 64).double()
    image = torch.nn.functional.interpolate(image_target, size=32, mode="bicubic")
    tokens = {"token_ids": token_ids, "text_is_valid": text_is_valid, "word_ids": word_ids}
    return {"image": image, "image_target": image_target, **tokens, "record_index": torch.arange(3)}
