"""The caption decoder: the loss from the formula, words that see only the past, and texts written by three ways that agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from medvlp_standard.caption import CaptionDecoder
from medvlp_standard.specs.decoders import CaptionDecoderSpec
from torch import Tensor

from medvlp_core.errors import DataError, SpecError
from medvlp_core.model.build import BuiltRun, build_run
from medvlp_core.nn.batch import Batch, Output
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.plugins.host import PluginHost
from medvlp_core.testing.behaviour_checks import sees_only_the_past
from medvlp_core.testing.checks import CheckFailed
from medvlp_core.testing.subject import Subject

DIMS = {"Di": 6, "V": 20, "L": 9, "End": 4}
EXAMPLE = Path(__file__).parents[2] / "examples" / "configs" / "captioning.yaml"
MICRO = """\
medvlp: 1
data: {use: open_cxr.pairs, sources: [nih]}
tokenizer: {use: standard.wordpiece, vocab_size: 300, max_length: 32, end_of_text: true}
model:
  image_encoder:
    {use: standard.timm_vit, model: vit_tiny_patch16_224, image_size: 32, channels: 1, patch_size: 8, width: 32, depth: 1, heads: 2}
  text_encoder: {use: standard.bert, width: 32, layers: 1, heads: 2}
  alignments: {clip: {use: standard.info_nce}}
  decoders: {caption: {use: standard.caption_decoder, width: 64, layers: 2, heads: 2, dropout: 0.0}}
train: {steps: 4, batch_size: 4}
"""


def decoder(seed: int = 0, **parameters: object) -> CaptionDecoder:
    torch.manual_seed(seed)
    spec = CaptionDecoderSpec(width=16, layers=2, heads=2, **parameters)  # type: ignore[arg-type]
    return CaptionDecoder(spec, DIMS).eval()


def inputs(rows: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor([9, 6, 2])[:rows, None]
    is_valid = torch.arange(9) < lengths
    ids = torch.randint(5, 20, (rows, 9))
    ids[:, 0] = 2
    return {"image_tokens": torch.randn(rows, 5, 6), "token_ids": ids.masked_fill(~is_valid, 0), "text_is_valid": is_valid}


def test_the_loss_is_the_mean_log_probability_of_the_next_words() -> None:
    part, given = decoder().double(), inputs()
    given["image_tokens"] = given["image_tokens"].double()
    output = part(**given)
    logits = output.ports["next_word_logits"].detach()
    assert logits.shape == (3, 9, 20)
    terms = []
    for row in range(3):
        for place in range(8):
            if given["text_is_valid"][row, place + 1]:
                scores = [float(one) for one in logits[row, place]]
                terms.append(math.log(sum(map(math.exp, scores))) - scores[int(given["token_ids"][row, place + 1])])
    assert len(terms) == 8 + 5 + 1
    assert output.losses["caption"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_a_later_word_changes_no_earlier_logits_and_padding_none() -> None:
    part, given = decoder(), inputs()
    first = part(**given).ports["next_word_logits"]
    for place in range(1, 9):
        ids = given["token_ids"].clone()
        ids[:, place:] = (ids[:, place:] + 3) % 20
        second = part(**{**given, "token_ids": ids}).ports["next_word_logits"]
        assert torch.equal(second[:, :place], first[:, :place])
        assert not torch.equal(second[0, place:], first[0, place:])
    other = given["token_ids"].masked_fill(~given["text_is_valid"], 7)
    assert torch.equal(part(**{**given, "token_ids": other}).losses["caption"], part(**given).losses["caption"])


def test_the_words_depend_on_the_image() -> None:
    part, given = decoder(), inputs()
    other = {**given, "image_tokens": given["image_tokens"].flip(0)}
    assert not torch.allclose(part(**given).losses["caption"], part(**other).losses["caption"])


def test_a_text_of_one_token_has_the_loss_0() -> None:
    given = {name: value[:, :1] if name != "image_tokens" else value for name, value in inputs().items()}
    assert decoder()(**given).losses["caption"].item() == 0.0


def greedy(part: CaptionDecoder, image_tokens: Tensor, length: int = 9) -> Tensor:
    """Token after token, each row for itself."""
    rows = []
    for image in image_tokens:
        ids = torch.tensor([[2]])
        while ids.shape[1] < length and int(ids[0, -1]) != 4:
            is_valid = torch.ones_like(ids, dtype=torch.bool)
            logits = part(image[None], ids, is_valid).ports["next_word_logits"]
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        rows.append(torch.nn.functional.pad(ids[0], (0, length - ids.shape[1]), value=4))
    return torch.stack(rows)


def test_greedy_texts_are_those_of_the_plain_loop_and_of_one_beam() -> None:
    given = inputs()
    start = given["token_ids"][:, :1]
    for seed in range(4):
        part = decoder(seed)
        for weight in part.parameters():
            weight.data.mul_(2.0)  # so that it does not say the same everywhere
        wanted = greedy(part, given["image_tokens"])
        assert torch.equal(part.generate(given["image_tokens"], start), wanted)
        assert torch.equal(part.generate(given["image_tokens"], start, num_beams=1), wanted)
        assert torch.equal(part.generate(given["image_tokens"], start, max_length=5), greedy(part, given["image_tokens"], 5))


def log_probability(part: CaptionDecoder, image_tokens: Tensor, ids: Tensor) -> Tensor:
    logits = part(image_tokens, ids, torch.ones_like(ids, dtype=torch.bool)).ports["next_word_logits"].log_softmax(-1)
    ends = (ids == 4).cumsum(1) - (ids == 4).long()
    return (logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0] * (ends[:, 1:] == 0)).sum(1)


def test_a_search_with_every_beam_finds_the_likeliest_text() -> None:
    part, given = decoder(num_beams=20, length_penalty=0.0), inputs()
    for weight in part.parameters():
        weight.data.mul_(2.0)
    image, start = given["image_tokens"][:1], given["token_ids"][:1, :1]
    found = part.generate(image, start, max_length=3)
    every = torch.tensor([[2, 4, 4], *([2, a, b] for a in range(20) for b in range(20) if a != 4)])
    scores = log_probability(part, image.expand(len(every), -1, -1), every)
    assert torch.equal(found[0], every[scores.argmax()])


def test_samples_follow_the_seed_and_the_temperature() -> None:
    part, given = decoder(do_sample=True), inputs()
    start = given["token_ids"][:, :1]

    def sample(seed: int, **options: float) -> Tensor:
        torch.manual_seed(seed)
        return part.generate(given["image_tokens"], start, **options)  # type: ignore[arg-type]

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))
    assert torch.equal(sample(0, temperature=1e-6), part.generate(given["image_tokens"], start, do_sample=False))
    assert torch.equal(sample(0, top_p=1e-6), part.generate(given["image_tokens"], start, do_sample=False))


def test_the_kit_catches_a_decoder_that_peeks_at_the_next_word(host: PluginHost, monkeypatch: pytest.MonkeyPatch) -> None:
    sees_only_the_past(Subject(host, "standard.caption_decoder"))
    right = CaptionDecoder.forward

    def peeking(self: CaptionDecoder, image_tokens: Tensor, token_ids: Tensor, text_is_valid: Tensor) -> Output:
        found = right(self, image_tokens, token_ids, text_is_valid)
        logits = found.ports["next_word_logits"]
        answer = torch.nn.functional.one_hot(token_ids.roll(-1, dims=1), logits.shape[-1])
        return Output(ports={"next_word_logits": logits + 0.01 * answer}, losses=found.losses)

    monkeypatch.setattr(CaptionDecoder, "forward", peeking)
    with pytest.raises(CheckFailed, match="next_word_logits is declared with sees='past', and up to position 0 it is another"):
        sees_only_the_past(Subject(host, "standard.caption_decoder"))


# --------------------------------------------------------------------------------------------------------- in a whole model


@pytest.fixture(scope="module")
def trained(host: PluginHost, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuiltRun, Batch]:
    """A micro model that has learned some texts of the shipped data by heart, and their batch."""
    path = tmp_path_factory.mktemp("caption") / "micro.yaml"
    path.write_text(MICRO, encoding="utf-8")
    built = build_run(plan_recipe(path, host=host), seed=0)
    whole = next(iter(built.pipeline.loader("train", batch_size=64)))
    texts = {tuple(ids.tolist()): row for row, ids in enumerate(whole["token_ids"])}
    rows = torch.tensor(sorted(texts.values())[:6])
    batch = {name: value[rows] if value.ndim else value for name, value in whole.items()}
    assert len(rows) == 6
    longest = int(batch["text_is_valid"].sum(dim=1).max())
    batch |= {name: batch[name][:, :longest] for name in ("token_ids", "text_is_valid", "word_ids")}
    optimizer = torch.optim.AdamW(built.model.parameters(), lr=3e-3)
    built.model.train()
    for _ in range(200):
        optimizer.zero_grad()
        built.model(batch).loss.backward()
        optimizer.step()
    built.model.eval()
    return built, batch


def begun(batch: Batch, tokens: int = 1) -> Batch:
    return {"image": batch["image"], "token_ids": batch["token_ids"][:, :tokens]}


@pytest.mark.parametrize("options", [{}, {"uses_own": False}, {"num_beams": 3}], ids=["own", "loop", "beams"])
def test_a_trained_model_writes_back_what_it_has_learned(trained: tuple[BuiltRun, Batch], options: dict[str, Any]) -> None:
    built, batch = trained
    ids, is_valid = built.model.generate(begun(batch), **options)
    assert torch.equal(is_valid, batch["text_is_valid"])
    assert torch.equal(ids[is_valid], batch["token_ids"][is_valid])


@pytest.mark.parametrize("seed", range(3))
def test_the_loop_writes_what_transformers_writes(trained: tuple[BuiltRun, Batch], seed: int) -> None:
    built, batch = trained
    torch.manual_seed(seed)
    other = {**begun(batch), "image": torch.randn_like(batch["image"])}
    for length in (None, 5, 32):
        own = built.model.generate(other, max_length=length)
        loop = built.model.generate(other, max_length=length, uses_own=False)
        assert torch.equal(own.is_valid, loop.is_valid)
        assert torch.equal(own.token_ids, loop.token_ids)
        assert own.token_ids.shape[1] <= (length or 32)


def test_a_text_continues_its_prompt(trained: tuple[BuiltRun, Batch]) -> None:
    built, batch = trained
    ids, is_valid = built.model.generate(begun(batch, 3))
    assert torch.equal(ids[is_valid], batch["token_ids"][batch["text_is_valid"]])


def test_images_are_encoded_once(trained: tuple[BuiltRun, Batch]) -> None:
    built, batch = trained
    seen: list[int] = []
    assert built.model.image_encoder is not None
    handle = built.model.image_encoder.register_forward_hook(lambda *_: seen.append(1))
    built.model.generate(begun(batch), uses_own=False)
    handle.remove()
    assert len(seen) == 1


def test_draws_depend_on_the_seed_alone(trained: tuple[BuiltRun, Batch]) -> None:
    built, batch = trained
    for uses_own in (True, False):
        drawn: dict[str, Any] = {"do_sample": True, "temperature": 5.0, "uses_own": uses_own}
        state = torch.get_rng_state()
        first, second, third = (built.model.generate(begun(batch), seed=seed, **drawn).token_ids for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, second)
        assert first.shape != third.shape or not torch.equal(first, third)


def test_what_cannot_be_written_is_said(trained: tuple[BuiltRun, Batch]) -> None:
    built, batch = trained
    with pytest.raises(DataError, match=r"\[MV505\] a text starts with token_ids"):
        built.model.generate({"image": batch["image"]})
    with pytest.raises(DataError, match=r"\[MV505\] text_is_valid: prompts must be equally long"):
        built.model.generate(batch)
    with pytest.raises(SpecError, match=r"\[MV201\] writing one token after another has no option num_beams"):
        built.model.generate(begun(batch), uses_own=False, num_beams=2)
    with pytest.raises(SpecError, match=r"\[MV201\] model.image_encoder takes image, which the batch does not hold"):
        built.model.generate({"token_ids": batch["token_ids"][:, :1]}, uses_own=False)
    with pytest.raises(ValueError, match="max_length must be above 1 and at most 32, found 33"):
        built.model.generate(begun(batch), max_length=33)
    with pytest.raises(SpecError, match=r"\[MV201\] this model does not give the port other.next_word_logits"):
        built.model.generate(begun(batch), decoder="other")


def test_a_tokenizer_that_ends_no_text_is_refused(plan_text: Any) -> None:
    plan, diagnostics = plan_text(MICRO, "set tokenizer.end_of_text=false")
    assert plan is None
    (problem,) = diagnostics.errors
    text = "model.decoders.caption (standard.caption_decoder) needs end_of_text, and no component gives it"
    assert (problem.code, problem.text) == ("MV201", text)


def test_the_example_trains_and_its_decoder_gets_every_gradient(host: PluginHost) -> None:
    built = build_run(plan_recipe(EXAMPLE, host=host), seed=0)
    assert list(built.plan.losses.items()) == [("clip.global", 1.0), ("caption.caption", 2.0)]
    assert not built.plan.warnings
    batch = next(iter(built.pipeline.loader("train", batch_size=8)))
    optimizer = torch.optim.AdamW(built.model.parameters(), lr=2e-3)
    found = []
    for _ in range(8):
        optimizer.zero_grad()
        output = built.model(batch)
        output.loss.backward()
        optimizer.step()
        found.append({name: float(value.detach()) for name, value in output.losses.items()})
    assert all(found[-1][name] < found[0][name] for name in found[0])
    assert [name for name, one in built.model.named_parameters() if one.grad is None] == []
