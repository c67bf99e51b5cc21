"""GLA: its losses, and what it must not see. The local losses themselves: tests/core/nn/test_nn_contrastive.py."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from medvlp_mpma.alignment import GlobalLocal
from medvlp_mpma.specs import GlobalLocalSpec
from torch import Tensor

from medvlp_core.nn.contrastive import gloria_loss, tokenwise_loss
from medvlp_core.nn.interfaces import HasAttentionMaps

SPEC = GlobalLocalSpec(dim=6)
VARIANTS = [
    attrs.evolve(SPEC, granularity=granularity, local_kind=kind)
    for granularity, kind in (("both", "tokenwise"), ("both", "gloria"), ("global", "tokenwise"), ("local", "tokenwise"))
]


def label(spec: GlobalLocalSpec) -> str:
    return f"{spec.granularity}-{spec.local_kind}"


def build(spec: GlobalLocalSpec) -> GlobalLocal:
    torch.manual_seed(0)
    return GlobalLocal(spec, {"Di": 10, "Dt": 8}).double()


def needs(batch: int = 3, requires_grad: bool = False) -> dict[str, Tensor]:
    """Reports of [CLS] and four, two and no words; the second word of the first is hidden."""
    torch.manual_seed(1)
    word_ids = torch.tensor([[-1, 0, 1, 2, 3], [-1, 0, 1, -1, -1], [-1, -1, -1, -1, -1]])[:batch]
    is_valid = word_ids >= 0
    is_valid[:, 0] = True
    is_masked = torch.zeros_like(is_valid)
    is_masked[0, 2] = True
    return {
        "image_tokens": torch.randn(batch, 7, 10).double().requires_grad_(requires_grad),
        "text_tokens": torch.randn(batch, 5, 8).double().requires_grad_(requires_grad),
        "text_is_valid": is_valid,
        "word_ids": word_ids,
        "text_is_masked": is_masked,
    }


# ------------------------------------------------------------------------------------------------------------------ module


def test_the_global_loss_is_the_symmetric_cross_entropy() -> None:
    module, arguments = build(attrs.evolve(SPEC, granularity="global")), needs()
    image = module.embed_image(arguments["image_tokens"])
    text = module.embed_text(arguments["text_tokens"], arguments["text_is_valid"], arguments["word_ids"])
    assert image.shape == text.shape == (3, 6)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3).double())
    logits = (image @ text.T / 0.07).tolist()
    wanted = 0.0
    for b in range(3):
        row, column = logits[b], [logits[c][b] for c in range(3)]
        wanted += sum(math.log(sum(math.exp(value) for value in values)) - values[b] for values in (row, column)) / 6
    assert module(**arguments).losses["global"].item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_declared_terms_are_emitted_and_every_parameter_learns(spec: GlobalLocalSpec) -> None:
    module = build(spec)
    losses = module(**needs()).losses
    assert tuple(losses) == spec.calls()["forward"].losses
    sum(losses.values(), torch.zeros(())).backward()
    dead = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_pair_and_empty_reports_stay_finite(spec: GlobalLocalSpec, batch: int) -> None:
    module, arguments = build(spec), needs(3, requires_grad=True)
    arguments = {name: value[3 - batch :].detach().requires_grad_(value.requires_grad) for name, value in arguments.items()}
    losses = module(**arguments).losses  # with batch 1 the only report is the empty one
    if batch == 1:
        assert [value.item() for value in losses.values()] == [0.0] * len(losses)
    sum(losses.values(), torch.zeros(())).backward()
    for name in ("image_tokens", "text_tokens"):
        grad = arguments[name].grad
        assert grad is None or grad.isfinite().all()


def test_the_local_loss_is_the_chosen_one_on_heads_of_its_own() -> None:
    arguments = needs()
    is_word = arguments["text_is_valid"] & (arguments["word_ids"] >= 0) & ~arguments["text_is_masked"]
    module = build(attrs.evolve(SPEC, tau_local=0.3))
    assert module.local_heads is not None
    patches, words = module.local_heads(arguments["image_tokens"], arguments["text_tokens"])
    torch.testing.assert_close(module(**arguments).losses["local"], tokenwise_loss(patches, words, is_word, 0.3))
    module = build(
        attrs.evolve(SPEC, local_kind="gloria", gloria_attention_scale=2.0, gloria_word_scale=3.0, gloria_logit_scale=7.0)
    )
    wanted = gloria_loss(patches, words, is_word, attention_scale=2.0, word_scale=3.0, logit_scale=7.0)
    torch.testing.assert_close(module(**arguments).losses["local"], wanted)


def test_a_single_pair_with_words_has_a_local_loss() -> None:
    losses = build(SPEC)(**needs(1)).losses
    assert losses["global"].item() == 0.0
    assert losses["local"].item() > 0.0


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_padding_masked_and_special_tokens_have_no_say(spec: GlobalLocalSpec) -> None:
    module, arguments = build(spec), needs()
    is_word = arguments["text_is_valid"] & (arguments["word_ids"] >= 0) & ~arguments["text_is_masked"]
    matters = is_word.clone()
    matters[:, 0] = True  # [CLS] is the report's vector in the global loss
    changed = {**arguments, "text_tokens": arguments["text_tokens"].masked_fill(~matters.unsqueeze(-1), 50.0)}
    before, after = module(**arguments).losses, module(**changed).losses
    for name in before:
        torch.testing.assert_close(after[name], before[name])
    if "local" in before:
        visible = {**arguments, "text_is_masked": torch.zeros_like(arguments["text_is_masked"])}
        assert not torch.isclose(module(**visible).losses["local"], before["local"]), "the masked word did count"


def test_equal_texts_and_words_can_be_ignored() -> None:
    arguments = needs(2)
    ids = torch.tensor([[2, 9, 5, 9, 6], [2, 9, 5, 0, 0]])
    arguments["text_is_masked"] = torch.zeros(2, 5).bool()
    module = build(attrs.evolve(SPEC, same_word="ignore"))
    assert module(**arguments, token_ids=ids).losses["local"] < build(SPEC)(**arguments).losses["local"]
    assert torch.equal(module(**arguments, token_ids=ids).losses["global"], build(SPEC)(**arguments).losses["global"])

    arguments["text_is_valid"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).bool()
    losses = build(attrs.evolve(SPEC, same_text="ignore"))(**arguments, token_ids=ids).losses
    assert losses["global"].item() == 0.0


def test_clean_ids_are_needed_only_to_find_equal_ones() -> None:
    assert "token_ids" not in SPEC.calls()["forward"].needs
    for field in ("same_word", "same_text"):
        assert attrs.evolve(SPEC, **{field: "ignore"}).calls()["forward"].needs["token_ids"].view == "clean"


def test_views_follow_the_parameters() -> None:
    needed = attrs.evolve(SPEC, align_image="clean", align_text="clean").calls()["forward"].needs
    assert needed["image_tokens"].view == needed["text_tokens"].view == "clean"
    assert "text_is_masked" not in needed
    assert SPEC.calls()["forward"].needs["text_tokens"].view == "masked"


@pytest.mark.parametrize("spec", [spec for spec in VARIANTS if spec.has_local], ids=label)
def test_attention_maps_sum_to_one(spec: GlobalLocalSpec) -> None:
    module, arguments = build(spec), needs()
    assert isinstance(module, HasAttentionMaps)
    maps = module.attention_maps(**arguments)
    assert maps is not None
    assert maps.shape == (3, 5, 7)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(3, 5).double())
    assert (maps[0, [1, 3, 4]].std(dim=-1) > 1e-6).all()


def test_without_a_local_loss_there_are_no_maps() -> None:
    assert build(attrs.evolve(SPEC, granularity="global")).attention_maps(**needs()) is None


def test_the_temperature_is_learned_and_bounded() -> None:
    module = build(attrs.evolve(SPEC, tau_global=0.01))
    assert module.scale is not None
    with torch.no_grad():
        module.scale.log_scale += 5.0
    assert module.scale().item() == pytest.approx(100.0)


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_losses_are_computed_in_full_precision_under_autocast(spec: GlobalLocalSpec) -> None:
    module, arguments = build(spec).float(), needs()
    arguments = {name: value.float() if value.is_floating_point() else value for name, value in arguments.items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = module(**arguments).losses
        module.attention_maps(**arguments)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    for name, value in module(**arguments).losses.items():
        torch.testing.assert_close(losses[name], value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_the_vectors_take_what_their_calls_say(spec: GlobalLocalSpec) -> None:
    module, arguments, calls = build(spec), needs(), spec.calls()
    words = ["text_tokens"] if spec.has_global else ["text_tokens", "text_is_valid", "word_ids"]
    assert {name: list(calls[name].needs) for name in ("embed_image", "embed_text")} == {
        "embed_image": ["image_tokens"],
        "embed_text": words,
    }
    for name in ("embed_image", "embed_text"):
        vectors = getattr(module, name)(**{argument: arguments[argument] for argument in calls[name].needs})
        assert vectors.shape == (3, 6)
        torch.testing.assert_close(vectors[:2].norm(dim=-1), torch.ones(2).double())
