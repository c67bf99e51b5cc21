"""GLA: both granularities against slow loops, and what it must not see."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from medvlp_mpma.alignment import GlobalLocal
from medvlp_mpma.specs import GlobalLocalSpec
from torch import Tensor

from medvlp_core.contrast import equal_texts, gloria_loss, tokenwise_loss
from medvlp_core.interfaces import HasAttentionMaps

SPEC = GlobalLocalSpec(dim=6)
VARIANTS = [
    attrs.evolve(SPEC, granularity=granularity, local_kind=kind)
    for granularity, kind in (("both", "tokenwise"), ("both", "gloria"), ("global", "tokenwise"), ("local", "tokenwise"))
]


def label(spec: GlobalLocalSpec) -> str:
    return f"{spec.granularity}-{spec.local_kind}"


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


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


# ------------------------------------------------------------------------------------------------------------- token-wise


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def one_side_by_loops(units: Tensor, others: Tensor, tau: float, ids: list[int] | None = None) -> float:
    counterparts = []
    for x in units:
        weights = softmax([float(x @ y) / tau for y in others])
        mixed = sum(weight * y for weight, y in zip(weights, others, strict=True))
        assert isinstance(mixed, Tensor)
        counterparts.append(mixed / mixed.norm())
    total, count = 0.0, len(units)
    for j in range(count):
        allowed = [k for k in range(count) if k == j or ids is None or ids[k] != ids[j]]
        own = float(units[j] @ counterparts[j]) / tau
        row = sum(math.exp(float(units[j] @ counterparts[k]) / tau) for k in allowed)
        column = sum(math.exp(float(units[k] @ counterparts[j]) / tau) for k in allowed)
        total += 0.5 * (math.log(row) - own + math.log(column) - own)
    return total / count


def test_tokenwise_equals_loops() -> None:
    patches, words = unit(3, 4, 6), unit(3, 5, 6)
    is_word = torch.tensor([[0, 1, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    wanted = [
        0.5 * (one_side_by_loops(words[b][is_word[b]], patches[b], 0.1) + one_side_by_loops(patches[b], words[b][is_word[b]], 0.1))
        for b in (0, 1)
    ]
    found = tokenwise_loss(patches, words, is_word, 0.1)
    assert found.item() == pytest.approx(sum(wanted) / 2, rel=1e-10), "the report without words does not count"


def test_tokenwise_without_the_same_word_as_a_negative_equals_loops() -> None:
    patches, words = unit(1, 4, 6), unit(1, 4, 6, seed=3)
    ids = torch.tensor([[7, 9, 7, 7]])
    is_word = torch.ones(1, 4, dtype=torch.bool)
    found = tokenwise_loss(patches, words, is_word, 0.2, ids.unsqueeze(1) == ids.unsqueeze(2))
    wanted = 0.5 * (one_side_by_loops(words[0], patches[0], 0.2, [7, 9, 7, 7]) + one_side_by_loops(patches[0], words[0], 0.2))
    assert found.item() == pytest.approx(wanted, rel=1e-10)
    assert found < tokenwise_loss(patches, words, is_word, 0.2)


# ------------------------------------------------------------------------------------------------------------------ gloria


def gloria_by_loops(patches: Tensor, words: Tensor, is_word: Tensor, same: Tensor | None = None) -> float:
    kept = [b for b in range(len(words)) if is_word[b].any()]
    scores = {}
    for b in kept:
        for c in kept:
            report, image = words[c][is_word[c]], patches[b]
            over_words = [softmax([float(v @ t) for t in report]) for v in image]
            fits = []
            for j, t in enumerate(report):
                weights = softmax([4.0 * over_words[n][j] for n in range(len(image))])
                context = sum(weight * v for weight, v in zip(weights, image, strict=True))
                assert isinstance(context, Tensor)
                fits.append(5.0 * float(t @ context / (t.norm() * context.norm())))
            scores[b, c] = 10.0 * math.log(sum(math.exp(fit) for fit in fits))
    total = 0.0
    for b in kept:
        allowed = [c for c in kept if c == b or same is None or not same[b, c]]
        for row in ([scores[b, c] for c in allowed], [scores[c, b] for c in allowed]):
            highest = max(row)
            total += 0.5 * (highest + math.log(sum(math.exp(value - highest) for value in row)) - scores[b, b])
    return total / len(kept)


@pytest.mark.parametrize("ignores_equal_texts", [False, True])
def test_gloria_equals_loops(ignores_equal_texts: bool) -> None:
    torch.manual_seed(0)
    patches, words = torch.randn(4, 5, 6).double(), torch.randn(4, 3, 6).double()
    is_word = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]]).bool()
    same = torch.eye(4).bool()
    same[0, 3] = same[3, 0] = True
    found = gloria_loss(
        patches,
        words,
        is_word,
        attention_scale=4.0,
        word_scale=5.0,
        logit_scale=10.0,
        is_same_text=same if ignores_equal_texts else None,
    )
    wanted = gloria_by_loops(patches, words, is_word, same if ignores_equal_texts else None)
    assert found.item() == pytest.approx(wanted, rel=1e-10)


# ------------------------------------------------------------------------------------------------------------------ module


def test_the_global_loss_is_the_symmetric_cross_entropy() -> None:
    module, arguments = build(attrs.evolve(SPEC, granularity="global")), needs()
    image = module.embed_image(arguments["image_tokens"], torch.zeros(3, 0, 10))
    text = module.embed_text(arguments["text_tokens"], arguments["text_is_valid"], arguments["word_ids"])
    assert image.shape == text.shape == (3, 6)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3).double())
    logits = (image @ text.T / 0.07).tolist()
    wanted = 0.0
    for b in range(3):
        row, column = logits[b], [logits[c][b] for c in range(3)]
        wanted -= (math.log(softmax(row)[b]) + math.log(softmax(column)[b])) / 6
    assert module(**arguments)["global"].item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_declared_terms_are_emitted_and_every_parameter_learns(spec: GlobalLocalSpec) -> None:
    module = build(spec)
    losses = module(**needs())
    assert tuple(losses) == spec.contract().losses
    sum(losses.values(), torch.zeros(())).backward()
    dead = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_pair_and_empty_reports_stay_finite(spec: GlobalLocalSpec, batch: int) -> None:
    module, arguments = build(spec), needs(3, requires_grad=True)
    arguments = {name: value[3 - batch :].detach().requires_grad_(value.requires_grad) for name, value in arguments.items()}
    losses = module(**arguments)  # with batch 1 the only report is the empty one
    if batch == 1:
        assert [value.item() for value in losses.values()] == [0.0] * len(losses)
    sum(losses.values(), torch.zeros(())).backward()
    for name in ("image_tokens", "text_tokens"):
        grad = arguments[name].grad
        assert grad is None or grad.isfinite().all()


def test_a_single_pair_with_words_has_a_local_loss() -> None:
    losses = build(SPEC)(**needs(1))
    assert losses["global"].item() == 0.0
    assert losses["local"].item() > 0.0


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_padding_hidden_and_special_tokens_have_no_say(spec: GlobalLocalSpec) -> None:
    module, arguments = build(spec), needs()
    is_word = arguments["text_is_valid"] & (arguments["word_ids"] >= 0) & ~arguments["text_is_masked"]
    matters = is_word.clone()
    matters[:, 0] = True  # [CLS] is the report's vector in the global loss
    changed = {**arguments, "text_tokens": arguments["text_tokens"].masked_fill(~matters.unsqueeze(-1), 50.0)}
    before, after = module(**arguments), module(**changed)
    for name in before:
        torch.testing.assert_close(after[name], before[name])
    if "local" in before:
        visible = {**arguments, "text_is_masked": torch.zeros_like(arguments["text_is_masked"])}
        assert not torch.isclose(module(**visible)["local"], before["local"]), "the hidden word did count"


def test_equal_texts_and_words_can_be_ignored() -> None:
    arguments = needs(2)
    ids = torch.tensor([[2, 9, 5, 9, 6], [2, 9, 5, 0, 0]])
    arguments["text_is_masked"] = torch.zeros(2, 5).bool()
    module = build(attrs.evolve(SPEC, same_word="ignore"))
    assert module(**arguments, token_ids=ids)["local"] < build(SPEC)(**arguments)["local"]
    assert torch.equal(module(**arguments, token_ids=ids)["global"], build(SPEC)(**arguments)["global"])

    arguments["text_is_valid"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]).bool()
    assert equal_texts(ids, arguments["text_is_valid"]).all(), "padding does not count"
    losses = build(attrs.evolve(SPEC, same_text="ignore"))(**arguments, token_ids=ids)
    assert losses["global"].item() == 0.0


def test_clean_ids_are_needed_only_to_find_equal_ones() -> None:
    assert "token_ids" not in SPEC.contract().needs
    for field in ("same_word", "same_text"):
        assert attrs.evolve(SPEC, **{field: "ignore"}).contract().needs["token_ids"].view == "clean"


def test_views_follow_the_parameters() -> None:
    needed = attrs.evolve(SPEC, align_image="clean", align_text="clean").contract().needs
    assert needed["image_tokens"].view == needed["text_tokens"].view == "clean"
    assert "text_is_masked" not in needed
    assert SPEC.contract().needs["text_tokens"].view == "masked"


@pytest.mark.parametrize("spec", VARIANTS, ids=label)
def test_attention_maps_sum_to_one(spec: GlobalLocalSpec) -> None:
    module, arguments = build(spec), needs()
    assert isinstance(module, HasAttentionMaps)
    maps = module.attention_maps(**arguments)
    assert maps.shape == (3, 5, 7)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(3, 5).double())
    of_words = maps[0, [1, 3, 4]]
    assert (of_words.std(dim=-1) > 1e-6).all().item() is spec.has_local


def test_the_temperature_is_learned_and_bounded() -> None:
    module = build(attrs.evolve(SPEC, tau_global=0.01))
    assert module.scale is not None
    with torch.no_grad():
        module.scale.log_scale += 5.0
    assert module.scale().item() == pytest.approx(100.0)


def test_losses_are_computed_in_full_precision_under_autocast() -> None:
    module, arguments = build(SPEC).float(), needs()
    arguments = {name: value.float() if value.is_floating_point() else value for name, value in arguments.items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = module(**arguments)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    for name, value in module(**arguments).items():
        torch.testing.assert_close(losses[name], value, rtol=0.05, atol=0.05)
