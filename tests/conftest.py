"""Fixtures for all tests: the plug-in host with the bundles of this repository, and a small complete recipe."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores; and a width of 80 that only xdist's workers have would fold what commands print.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("COLUMNS", None)
# Kernels are tested in Triton's interpreter, which is chosen when Triton is imported: before any other test does that. Then the
# variable goes again, so that commands and pages show what a user sees.
os.environ["TRITON_INTERPRET"] = "1"
with contextlib.suppress(ImportError):  # there are builds for Linux only
    import triton.runtime.interpreter
    from triton_patch import patch_language_once

    patch_language_once(triton.runtime.interpreter)
del os.environ["TRITON_INTERPRET"]

import pytest

from medvlp_core.errors import Diagnostics
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import PluginHost, load_plugins
from medvlp_core.recipe.load import Override, load_recipe, parse_override

#: A complete MPMA-like model that trains in milliseconds a step.
MICRO = """\
medvlp: 1
data: {use: open_cxr.pairs, sources: [nih]}
tokenizer: {use: standard.wordpiece, vocab_size: 300, max_length: 32}
model:
  masking: {use: mpma.paired_masking}
  image_encoder:
    {use: standard.timm_vit, model: vit_tiny_patch16_224, image_size: 32, channels: 1, patch_size: 8, width: 32, depth: 1, heads: 2}
  text_encoder: {use: standard.bert, width: 32, layers: 1, heads: 2}
  fusion: {use: mpma.memory_fusion, slots: 8, topk: 2, heads: 2, layers: 1}
  alignments:
    gla: {use: mpma.global_local, dim: 8}
  decoders:
    image: {use: mpma.image_decoder, target_size: 64, width: 16, depth: 1, heads: 2}
    report: {use: mpma.report_decoder}
train: {steps: 4, batch_size: 4}
"""


@pytest.fixture(scope="session")
def host() -> PluginHost:
    """The installed bundles."""
    found = load_plugins()
    assert not found.broken
    return found


@pytest.fixture(scope="session")
def micro() -> str:
    """The text of the micro recipe."""
    return MICRO


PlanText = Callable[..., tuple[ModelPlan | None, Diagnostics]]


@pytest.fixture
def plan_text(host: PluginHost, tmp_path: Path) -> PlanText:
    """Plan a recipe given as text, with overrides such as ``"set train.steps=2"``; returns the plan and the report."""

    def plan(text: str = MICRO, *overrides: str) -> tuple[ModelPlan | None, Diagnostics]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        diagnostics = Diagnostics()
        parsed: list[Override] = []
        for override in overrides:
            kind, _, rest = override.partition(" ")
            found = parse_override(kind, rest, diagnostics)  # type: ignore[arg-type]
            assert found is not None
            parsed.append(found)
        recipe = load_recipe(path, presets=host.presets, overrides=parsed, diagnostics=diagnostics)
        return compose(recipe, host, diagnostics), diagnostics

    return plan


@pytest.fixture(scope="session")
def save_untrained(host: PluginHost) -> Callable[..., Path]:
    """Write a recipe's model with the random weights of a seed as a run folder: all that loading needs, in a second."""

    def save(recipe: Path, folder: Path, seed: int = 0) -> Path:
        import torch

        from medvlp_core.model.build import build_run
        from medvlp_core.planning.compose import plan_recipe
        from medvlp_core.training.checkpoint import save_checkpoint
        from medvlp_core.training.describe_run import run_metadata
        from medvlp_core.training.state import TrainState

        plan = plan_recipe(recipe, host=host)
        built = build_run(plan, seed=seed)
        state = TrainState.fresh(built.model, plan.train, torch.device("cpu"))
        checkpoint = folder / "checkpoints" / "step-0000000"
        checkpoint.parent.mkdir(parents=True)
        metadata = run_metadata(built, torch.device("cpu"))
        save_checkpoint(checkpoint, plan=plan, state=state, tokenizer=built.pipeline.tokenizer, metadata=metadata, progress={})
        return folder

    return save
