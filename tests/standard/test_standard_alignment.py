"""Alignments against slow float64 loops; padding, single pairs, empty reports."""

from __future__ import annotations

import math

import pytest
import torch
from medvlp_standard.alignment.gloria import Gloria
from medvlp_standard.alignment.info_nce import InfoNce
from medvlp_standard.alignment.mgca import Mgca
from medvlp_standard.alignment.siglip import SigLip, sigmoid_pair_loss
from medvlp_standard.specs.alignment import GloriaSpec, InfoNceSpec, MgcaSpec, SigLipSpec
from torch import Tensor, nn

from medvlp_core.spec.contract import AtLeast

DIMS = {"Di": 6, "Dt": 8, "P": 1}
EVERY = [
    (InfoNce, InfoNceSpec(dim=5)),
    (InfoNce, InfoNceSpec(dim=5, projection="mlp", image_pool="cls", text_pool="mean")),
    (SigLip, SigLipSpec(dim=5, text_pool="mean")),
    (Gloria, GloriaSpec(dim=5)),
    (Gloria, GloriaSpec(dim=5, projection="mlp", aggregate_words=False)),
    (Mgca, MgcaSpec(dim=5)),
    (Mgca, MgcaSpec(dim=5, projection="linear", aggregate_words=False)),
]
LOCAL = EVERY[3:]


def build(module_class: type, spec: object) -> nn.Module:
    torch.manual_seed(0)
    return module_class(spec, DIMS).double()


def inputs(module: nn.Module | None = None) -> dict[str, Tensor]:
    """Three pairs; words of 1, 2, 1 pieces, of 3 and 1 pieces, and a word of one piece; the rest is padding."""
    generator = torch.Generator().manual_seed(1)
    word_ids = torch.tensor([[-1, 0, 1, 1, 2, -1], [-1, 0, 0, 0, 1, -1], [-1, 0, -1, -1, -1, -1]])
    given = {
        "image_tokens": torch.randn(3, 4, 6, generator=generator, dtype=torch.float64),
        "image_prefix": torch.randn(3, 1, 6, generator=generator, dtype=torch.float64),
        "text_tokens": torch.randn(3, 6, 8, generator=generator, dtype=torch.float64),
        "text_is_valid": torch.tensor([[True] * 5 + [False], [True] * 5 + [False], [True] * 2 + [False] * 4]),
        "word_ids": word_ids,
    }
    if isinstance(module, (InfoNce, SigLip)):
        del given["word_ids"]
    return given


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}


# ----------------------------------------------------------------------------------------------------------- loop references


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def cross_entropy(scores: list[float], target: int) -> float:
    return -math.log(softmax(scores)[target])


def words_of_report(given: dict[str, Tensor], b: int) -> list[Tensor]:
    """One vector for each word: the sum of its pieces."""
    words: dict[int, Tensor] = {}
    for position, word in enumerate(given["word_ids"][b].tolist()):
        if word >= 0 and bool(given["text_is_valid"][b, position]):
            words[word] = words.get(word, torch.zeros(8).double()) + given["text_tokens"][b, position]
    return [words[word] for word in sorted(words)]


def projected(module: nn.Module, given: dict[str, Tensor]) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    patches = [[module.patch_projection(v).detach() for v in row] for row in given["image_tokens"]]
    words = [[module.word_projection(t).detach() for t in words_of_report(given, b)] for b in range(len(patches))]
    return patches, words


def gloria_local(patches: list[list[Tensor]], words: list[list[Tensor]]) -> float:
    size = len(patches)
    logits = [[0.0] * size for _ in range(size)]
    for b in range(size):
        for c in range(size):
            over_words = [softmax([float(v @ t) for t in words[c]]) for v in patches[b]]
            total = 0.0
            for j, t in enumerate(words[c]):
                weights = softmax([4.0 * row[j] for row in over_words])
                context = sum(w * v for w, v in zip(weights, patches[b], strict=True))
                total += math.exp(5.0 * cosine(t, context))
            logits[b][c] = 10.0 * math.log(total)
    columns = [list(column) for column in zip(*logits, strict=True)]
    return sum(cross_entropy(logits[b], b) + cross_entropy(columns[b], b) for b in range(size)) / size


def mgca_side(units: list[Tensor], others: list[Tensor]) -> float:
    units, others = ([x / x.norm() for x in group] for group in (units, others))
    counterparts = []
    for x in units:
        weights = softmax([float(x @ y) / 0.1 for y in others])
        mixed = sum(w * y for w, y in zip(weights, others, strict=True))
        counterparts.append(mixed / mixed.norm())
    scores = [[float(x @ c) / 0.1 for c in counterparts] for x in units]
    columns = [list(column) for column in zip(*scores, strict=True)]
    count = len(units)
    return 0.5 * sum(cross_entropy(scores[j], j) + cross_entropy(columns[j], j) for j in range(count)) / count


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_gloria_local_loss_equals_the_loop(projection: str) -> None:
    module = build(Gloria, GloriaSpec(dim=5, projection=projection))
    given = inputs()
    assert values(module(**given).losses)["local"] == pytest.approx(gloria_local(*projected(module, given)), rel=1e-9)


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_mgca_local_loss_equals_the_loop(projection: str) -> None:
    module = build(Mgca, MgcaSpec(dim=5, projection=projection))
    given = inputs()
    pairs = zip(*projected(module, given), strict=True)
    wanted = sum(mgca_side(words, patches) + mgca_side(patches, words) for patches, words in pairs) / 3
    assert values(module(**given).losses)["local"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("module_class", "spec", "scale"), [(Gloria, GloriaSpec(), 10), (Mgca, MgcaSpec(), 1 / 0.07)])
def test_global_losses_equal_the_loop(module_class: type, spec: object, scale: float) -> None:
    module, given = build(module_class, spec), inputs()
    image = module.embed_image(given["image_tokens"], given["image_prefix"]).detach()
    text = module.embed_text(given["text_tokens"], given["text_is_valid"]).detach()
    scores = [[scale * cosine(v, t) for t in text] for v in image]
    columns = [list(column) for column in zip(*scores, strict=True)]
    wanted = sum(cross_entropy(scores[b], b) + cross_entropy(columns[b], b) for b in range(3)) / 3
    assert values(module(**given).losses)["global"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("is_ignoring", [False, True])
def test_siglip_equals_the_loop(is_ignoring: bool) -> None:
    torch.manual_seed(0)
    image, text = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    is_ignored = torch.eye(4).bool() if is_ignoring else None  # the diagonal must count all the same
    if is_ignored is not None:
        is_ignored[1, 3] = is_ignored[3, 1] = True
    total = 0.0
    for b in range(4):
        for c in range(4):
            if b != c and is_ignored is not None and is_ignored[b, c]:
                continue
            logit = 2.0 * float(image[b] @ text[c]) - 1.5
            total -= math.log(1 / (1 + math.exp(-logit if b == c else logit)))
    got = sigmoid_pair_loss(image, text, torch.tensor(2.0), torch.tensor(-1.5), is_ignored)
    assert float(got) == pytest.approx(total / 4, rel=1e-9)


def test_siglip_starts_at_the_papers_scale_and_bias() -> None:
    module = SigLip(SigLipSpec(), DIMS)
    assert float(module.log_scale.exp().detach()) == pytest.approx(10.0)
    assert float(module.bias.detach()) == -10.0


# ---------------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize(("module_class", "spec"), EVERY)
def test_losses_are_the_declared_ones_and_embeddings_are_unit_vectors(module_class: type, spec: object) -> None:
    module = build(module_class, spec)
    given = inputs(module)
    assert tuple(module(**given).losses) == spec.calls()["forward"].losses
    for vectors in (
        module.embed_image(given["image_tokens"], given["image_prefix"]),
        module.embed_text(given["text_tokens"], given["text_is_valid"]),
    ):
        assert vectors.shape == (3, 5)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3).double())


@pytest.mark.parametrize(("module_class", "spec"), EVERY)
def test_neither_padding_content_nor_padding_length_changes_a_loss(module_class: type, spec: object) -> None:
    module = build(module_class, spec)
    given = inputs(module)
    before = values(module(**given).losses)
    is_valid = given["text_is_valid"]
    given["text_tokens"] = given["text_tokens"].masked_fill(~is_valid.unsqueeze(-1), 31.0)
    assert values(module(**given).losses) == pytest.approx(before, rel=1e-9)
    given["text_tokens"] = torch.cat([given["text_tokens"], torch.full((3, 3, 8), -7.0).double()], dim=1)
    given["text_is_valid"] = torch.cat([is_valid, torch.zeros(3, 3).bool()], dim=1)
    if "word_ids" in given:
        given["word_ids"] = torch.cat([given["word_ids"], torch.full((3, 3), -1)], dim=1)
    assert values(module(**given).losses) == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize(("module_class", "spec"), EVERY)
@pytest.mark.parametrize("case", ["one pair", "one empty report", "all reports empty", "one pair with an empty report"])
def test_small_batches_and_empty_reports_stay_finite(module_class: type, spec: object, case: str) -> None:
    module = build(module_class, spec)
    given = inputs(module)
    empty = {"one pair": [], "one empty report": [1], "all reports empty": [0, 1, 2]}.get(case, [0])
    for b in empty:
        given["text_is_valid"][b, 1:] = False
        if "word_ids" in given:
            given["word_ids"][b] = -1
    if case.startswith("one pair"):
        given = {name: value[:1] for name, value in given.items()}
    for name in ("image_tokens", "text_tokens"):
        given[name].requires_grad_()
    losses = module(**given).losses
    sum(losses.values()).backward()
    found = values(losses)
    assert all(math.isfinite(value) for value in found.values())
    gradients = [given["image_tokens"].grad, given["text_tokens"].grad, *(p.grad for p in module.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)
    if case.startswith("one pair") and not isinstance(module, SigLip):
        assert found["global"] == 0.0
    if len(empty) == len(given["image_tokens"]) and "local" in found:
        assert found["local"] == 0.0
    if case == "one pair" and isinstance(module, Mgca):
        assert found["local"] > 0.0


@pytest.mark.parametrize(("module_class", "spec"), LOCAL)
def test_a_pair_with_an_empty_report_leaves_the_local_loss_of_the_others_alone(module_class: type, spec: object) -> None:
    module, given = build(module_class, spec), inputs()
    given["word_ids"][1] = -1
    others = {name: value[[0, 2]] for name, value in given.items()}
    assert values(module(**given).losses)["local"] == pytest.approx(values(module(**others).losses)["local"], rel=1e-9)


@pytest.mark.parametrize(("module_class", "spec"), LOCAL)
def test_masked_words_are_kept_out_of_the_local_loss(module_class: type, spec: object) -> None:
    module, given = build(module_class, spec), inputs()
    is_masked = torch.zeros(3, 6, dtype=torch.bool)
    is_masked[0, 2:4] = True
    before = values(module(**given, text_is_masked=is_masked).losses)
    given["text_tokens"] = given["text_tokens"].clone()
    given["text_tokens"][0, 2:4] += 5.0
    assert values(module(**given, text_is_masked=is_masked).losses)["local"] == pytest.approx(before["local"], rel=1e-9)
    assert values(module(**given).losses)["local"] != pytest.approx(before["local"], rel=1e-3)


def test_only_the_sum_of_a_words_pieces_matters_when_words_are_aggregated() -> None:
    given = inputs()
    moved = given | {"text_tokens": given["text_tokens"].clone()}
    moved["text_tokens"][0, 2] += 1.0
    moved["text_tokens"][0, 3] -= 1.0
    for is_aggregating in (True, False):
        module = build(Gloria, GloriaSpec(dim=5, aggregate_words=is_aggregating))
        same = values(module(**given).losses)["local"] == pytest.approx(values(module(**moved).losses)["local"], rel=1e-9)
        assert same is is_aggregating


# ---------------------------------------------------------------------------------------------------------------- same texts


@pytest.mark.parametrize(("module_class", "spec_class"), [(InfoNce, InfoNceSpec), (SigLip, SigLipSpec)])
def test_pairs_with_the_same_report_are_no_negatives_if_asked(module_class: type, spec_class: type) -> None:
    spec = spec_class(dim=5, same_text="ignore")
    assert "token_ids" in spec.calls()["forward"].needs
    assert "token_ids" not in spec_class(dim=5).calls()["forward"].needs
    module = build(module_class, spec)
    given = inputs(module)
    for name in ("text_tokens", "text_is_valid"):
        given[name][1] = given[name][0]
    different = torch.arange(18).reshape(3, 6)
    same = different[[0, 0, 2]]
    kept = values(module(**given, token_ids=same).losses)["global"]
    assert kept < values(module(**given, token_ids=different).losses)["global"]
    assert values(module(**given, token_ids=different).losses) == values(module(**given).losses)


# ------------------------------------------------------------------------------------------------------- maps and contracts


@pytest.mark.parametrize(("module_class", "spec"), LOCAL)
def test_attention_maps_are_distributions_shared_by_the_pieces_of_a_word(module_class: type, spec: object) -> None:
    module, given = build(module_class, spec), inputs()
    given["word_ids"][2] = -1
    maps = module.attention_maps(**given).detach()
    assert maps.shape == (3, 6, 4)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(3, 6).double())
    assert torch.equal(maps[:, 0], torch.full((3, 4), 0.25).double())  # [CLS]
    assert torch.equal(maps[2], torch.full((6, 4), 0.25).double())  # a report without words
    assert bool((maps[0, 2] == maps[0, 3]).all()) is spec.aggregate_words
    assert not torch.allclose(maps[0, 1], maps[0, 4])


def test_mgca_map_is_the_softmax_of_cosines_at_its_temperature() -> None:
    module, given = build(Mgca, MgcaSpec(dim=5)), inputs()
    patches, words = projected(module, given)
    wanted = softmax([cosine(v, words[0][1]) / 0.1 for v in patches[0]])
    assert module.attention_maps(**given)[0, 2].tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("spec_class", [InfoNceSpec, SigLipSpec, GloriaSpec, MgcaSpec])
def test_contracts_name_the_view_and_the_pool(spec_class: type) -> None:
    calls = spec_class(view="masked", image_pool="cls").calls()
    masked, clean = calls["forward"], spec_class().calls()["forward"]
    assert {masked.needs[port].view for port in ("image_tokens", "image_prefix", "text_tokens")} == {"masked"}
    assert masked.require == (AtLeast("P", 1, field="image_pool"),)
    assert clean.require == ()
    assert {need.view for call in ("embed_image", "embed_text") for need in calls[call].needs.values()} == {None}, "of any view"
    assert list(calls["embed_image"].needs) == ["image_tokens", "image_prefix"]
    assert list(spec_class().calls()["embed_image"].needs) == ["image_tokens"], "the prefix is pooled by cls only"
    assert calls["embed_image"].require == masked.require
    assert calls["embed_image"].gives["image_embedding"].dims == calls["embed_text"].gives["text_embedding"].dims == ("B", 128)
    assert (masked.mixes_rows, calls["embed_image"].mixes_rows, calls["embed_text"].mixes_rows) == (True, False, False)
    assert ("text_is_masked" in masked.needs) is (spec_class in (GloriaSpec, MgcaSpec))
    assert "text_is_masked" not in clean.needs


@pytest.mark.parametrize(("module_class", "spec"), EVERY)
def test_bf16_autocast_stays_close_to_float64(module_class: type, spec: object) -> None:
    module = build(module_class, spec)
    given = inputs(module)
    given["text_is_valid"][1, 1:] = False
    if "word_ids" in given:
        given["word_ids"][1] = -1
    exact = values(module(**given).losses)
    module.float()
    given = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = module(**given).losses
        if isinstance(module, (Gloria, Mgca)):
            module.attention_maps(**given)
    sum(losses.values()).backward()
    assert {value.dtype for value in losses.values()} == {torch.float32}, "contrasts are computed in full precision"
    assert values(losses) == pytest.approx(exact, rel=0.1, abs=0.05)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize(("module_class", "spec"), EVERY)
def test_every_parameter_learns(module_class: type, spec: object) -> None:
    module = build(module_class, spec)
    sum(module(**inputs(module)).losses.values()).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
