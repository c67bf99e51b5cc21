"""``medvlp explain --code``: to the bit what the model computes, for every preset and every recipe that ships."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import medvlp_mpma.plugin
import medvlp_open_cxr.plugin
import medvlp_standard.plugin
import pytest
import torch
from torch import Tensor, nn

from medvlp_core.describe.code import forward_source
from medvlp_core.errors import Diagnostics
from medvlp_core.model.build import build_run
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import Override, parse_override

EXAMPLES = Path(__file__).parents[3] / "examples"
FEW_WORDS = ["set tokenizer.vocab_size=300"]
#: Paper scale in sizes that take a second, on data that ships.
TINY = [
    "use data=open_cxr.pairs",
    *FEW_WORDS,
    *(f"set model.image_encoder.{size}" for size in ("image_size=32", "patch_size=8", "width=32", "depth=1", "heads=2")),
    *(f"set model.text_encoder.{size}" for size in ("width=32", "layers=1", "heads=2", "ffn_width=64")),
    *(f"set model.fusion.{size}" for size in ("slots=8", "topk=2", "heads=2", "layers=1")),
    *(f"set model.decoders.image.{size}" for size in ("target_size=64", "width=16", "depth=1", "heads=2")),
]
RECIPES = {path.relative_to(EXAMPLES).as_posix(): FEW_WORDS for path in EXAMPLES.rglob("*.yaml")}
RECIPES |= {"mpma:small": FEW_WORDS, "mpma:base": TINY, "configs/mpma.yaml": TINY}


@pytest.fixture(scope="module")
def with_acme() -> Any:
    """The installed bundles, and the one of the tutorial."""
    sys.path.insert(0, str(EXAMPLES / "acme_fusion"))
    import acme_fusion.plugin

    installed = {"standard": medvlp_standard.plugin, "mpma": medvlp_mpma.plugin, "open_cxr": medvlp_open_cxr.plugin}
    found = PluginHost.from_modules({**installed, "acme_fusion": acme_fusion.plugin})  # type: ignore[dict-item]
    assert found.broken == ()
    yield found
    sys.path.remove(str(EXAMPLES / "acme_fusion"))


def overrides(texts: list[str]) -> list[Override]:
    diagnostics = Diagnostics()
    found = [parse_override(*text.partition(" ")[::2], diagnostics) for text in texts]  # type: ignore[arg-type]
    diagnostics.raise_errors()
    return [one for one in found if one is not None]


def written(plan: ModelPlan) -> Any:
    """The printed function."""
    space: dict[str, Any] = {}
    exec(compile(forward_source(plan), "forward.py", "exec"), space)
    return space["forward"]


def one_step(model: nn.Module, forward: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor | None]]:
    """Loss, terms, gradients and what became of the buffers, with the same masks and dropout each time; then all is as before."""
    before = copy.deepcopy(model.state_dict())
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(7)
    loss, losses = forward(model, batch)
    loss.backward()
    left: dict[str, Tensor | None] = {name: value.clone() for name, value in model.named_buffers()}
    left |= {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return loss, losses, left


def assert_bit_equal(plan: ModelPlan, rows: int = 4) -> None:
    built = build_run(plan, seed=0)
    batch = next(iter(built.pipeline.loader("val", batch_size=rows)))
    loss, losses, gradients = one_step(built.model, lambda model, batch: model(batch)[:2], batch)
    hand_loss, hand_losses, hand_gradients = one_step(built.model, written(plan), batch)
    assert list(hand_losses) == list(losses) == list(plan.losses)
    assert torch.equal(hand_loss, loss)
    assert all(torch.equal(hand_losses[name], losses[name]) for name in losses)
    assert hand_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        other = hand_gradients[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or (other is not None and torch.equal(gradient, other)), name
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("source", sorted(RECIPES))
def test_the_printed_forward_is_the_models_to_the_bit(source: str, with_acme: PluginHost) -> None:
    recipe = source if ":" in source else EXAMPLES / source
    assert_bit_equal(plan_recipe(recipe, overrides(RECIPES[source]), host=with_acme))


def test_every_preset_of_the_bundles_here_is_tried(with_acme: PluginHost) -> None:
    files = {Path(path).name for name, path in with_acme.presets.items() if name not in RECIPES}
    assert files <= {Path(source).name for source in RECIPES}


VARIANTS = {
    "an early fusion beside an alignment": ["set model.fusion.position=early"],
    "a clean text pass beside the masked one": ["set model.alignments.gla.align_text=clean"],
    "weights of losses": ["set losses.gla.local=0.3", "set losses.image.reconstruction=0", "set losses.report.mlm=1e-3"],
    "no masking": [
        "unset model.decoders",
        "use model.alignments.gla=standard.info_nce",
        "unset model.masking",
        "unset model.fusion",
    ],
    "an alignment on masked tokens": ["use model.alignments.gla=standard.gloria", "set model.alignments.gla.view=masked"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_micro_model(name: str, plan_text: Any, micro: str) -> None:
    plan, diagnostics = plan_text(micro, *VARIANTS[name])
    assert not diagnostics.has_errors
    assert_bit_equal(plan)


#: Names of slots that are words of Python, or that the printed function uses itself.
AWKWARD = [
    ("gla", "losses"),
    ("image", "lambda"),
    ("report", "batch"),
    ("gla", "model"),
    ("image", "image_encoder_masked"),
    ("report", "loss"),
]


@pytest.mark.parametrize(("old", "new"), AWKWARD)
def test_any_name_of_a_slot_can_be_written(old: str, new: str, plan_text: Any, micro: str) -> None:
    plan, diagnostics = plan_text(micro.replace(f"    {old}:", f"    {new}:"))
    assert not diagnostics.has_errors
    assert_bit_equal(plan)


def test_the_code_is_read_from_top_to_bottom(plan_text: Any) -> None:
    plan, _ = plan_text()
    lines = forward_source(plan).splitlines()
    assert lines[0] == "def forward(model, batch):"
    assert lines[1].startswith("    masking = model.masking(token_ids=batch[")
    assert len([line for line in lines if "model." in line]) == len(plan.calls)
    assert lines[-1] == "    return loss, losses"


def test_parts_that_share_or_follow_are_written_as_calls_of_their_own() -> None:
    from toy_parts import BASE, PIXELS, built, planned, synthetic_batch

    from medvlp_core.spec.contract import Contract

    own = Contract(needs={"image_tokens": "B S Di"}, losses=("loss",))
    parts = {
        "model.parts.again": (None, {"share": "model.image_encoder", "needs": {"image": "image"}}),
        "model.parts.teacher": (None, {"follow": "model.image_encoder", "decay": 0.9}),
        "model.decoders.pixels": PIXELS,
        "model.decoders.own": (own, {"needs": {"image_tokens": "again.image_tokens"}}),
        "model.decoders.taught": (own, {"needs": {"image_tokens": "teacher.image_tokens"}}),
    }
    plan = planned({**BASE, **parts})
    model, batch = built(plan), synthetic_batch()
    loss, losses, gradients = one_step(model, lambda model, batch: model(batch)[:2], batch)
    hand_loss, hand_losses, hand_gradients = one_step(model, written(plan), batch)
    assert torch.equal(loss, hand_loss)
    assert list(losses) == list(hand_losses)
    assert all((one is None) == (hand_gradients[name] is None) for name, one in gradients.items())
    assert all(one is None or torch.equal(one, hand_gradients[name]) for name, one in gradients.items())  # type: ignore[arg-type]
