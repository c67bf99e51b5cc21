"""The core's own loop: a causal text tower with a head for the next word writes as the plain loop would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_writers import WRITER, writers_host

from medvlp_core.errors import SpecError
from medvlp_core.model.build import BuiltRun, build_run
from medvlp_core.model.generation import NextToken
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.compose import plan_recipe

END = 4


def built_of(folder: Path, *, text: str = WRITER) -> BuiltRun:
    (folder / "writer.yaml").write_text(text, encoding="utf-8")
    found = build_run(plan_recipe(folder / "writer.yaml", host=writers_host()), seed=0)
    with torch.no_grad():
        for weight in found.model.decoders.parameters():
            weight.mul_(8.0)  # so that it does not say the same for every image
    found.model.eval()
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltRun:
    return built_of(tmp_path_factory.mktemp("writer"))


@pytest.fixture(scope="module")
def batch(built: BuiltRun) -> Batch:
    return next(iter(built.pipeline.loader("val", batch_size=5)))


def plain_loop(built: BuiltRun, batch: Batch, row: int, prompt: int, length: int) -> list[int]:
    """The whole model for every token, each row for itself."""
    ids = batch["token_ids"][row : row + 1, :prompt]
    while ids.shape[1] < length and (ids.shape[1] == prompt or int(ids[0, -1]) != END):
        one = {"image": batch["image"][row : row + 1], "token_ids": ids, "text_is_valid": torch.ones_like(ids, dtype=torch.bool)}
        logits = built.model.ports({**one, "word_ids": ids}, "next_word_logits")["next_word_logits"]
        ids = torch.cat([ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return ids[0].tolist()


@pytest.mark.parametrize(("prompt", "length"), [(1, 32), (1, 2), (3, 12)])
def test_it_writes_what_the_plain_loop_writes(built: BuiltRun, batch: Batch, prompt: int, length: int) -> None:
    found = built.model.generate({"image": batch["image"], "token_ids": batch["token_ids"][:, :prompt]}, max_length=length)
    wanted = [plain_loop(built, batch, row, prompt, length) for row in range(5)]
    assert found.token_ids.shape[1] == max(map(len, wanted))
    for ids, is_valid, text in zip(found.token_ids, found.is_valid, wanted, strict=True):
        assert ids[is_valid].tolist() == text
    assert length == 2 or len({tuple(text) for text in wanted}) > 1, "the images do not matter"


def test_an_end_stops_a_text_and_stands_in_it(built: BuiltRun, batch: Batch) -> None:
    free = built.model.generate({"image": batch["image"], "token_ids": batch["token_ids"][:, :1]}, end_id=-1).token_ids
    assert free.shape == (5, 32)
    end = int(free[0, 5])
    ids, is_valid = built.model.generate({"image": batch["image"], "token_ids": batch["token_ids"][:, :1]}, end_id=end)
    for row in range(5):
        places = (free[row, 1:] == end).nonzero()
        last = int(places[0]) + 2 if len(places) else 32
        assert int(is_valid[row].sum()) == last
        assert torch.equal(ids[row, :last], free[row, :last])
        assert (ids[row, last:] == end).all()


def test_only_what_the_ids_reach_runs_again(built: BuiltRun, batch: Batch) -> None:
    counts = {"image_encoder": 0, "decoders": 0}
    parts = {"image_encoder": built.model.image_encoder, "decoders": built.model.decoders["lm"]}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    handles = [part.register_forward_hook(count(name)) for name, part in parts.items() if part is not None]
    built.model.generate({"image": batch["image"], "token_ids": batch["token_ids"][:, :1]}, end_id=-1, max_length=7)
    for handle in handles:
        handle.remove()
    assert counts == {"image_encoder": 1, "decoders": 6}


def test_draws_have_the_probabilities_of_the_model(built: BuiltRun, batch: Batch) -> None:
    rows = 4000
    one = {"image": batch["image"][:1].expand(rows, -1, -1, -1), "token_ids": batch["token_ids"][:1, :1].expand(rows, -1)}
    drawn = built.model.generate(one, max_length=2, do_sample=True, temperature=3.0, top_k=4, seed=0).token_ids[:, 1]
    ids = batch["token_ids"][:1, :1]
    given = {
        "image": batch["image"][:1],
        "token_ids": ids,
        "text_is_valid": torch.ones_like(ids, dtype=torch.bool),
        "word_ids": ids,
    }
    logits = built.model.ports(given, "next_word_logits")["next_word_logits"][0, -1].detach()
    best = logits.topk(4)
    wanted = torch.zeros(300).scatter(0, best.indices, (best.values / 3.0).softmax(0))
    found = torch.bincount(drawn, minlength=300) / rows
    assert (found - wanted).abs().max() < 0.03
    assert set(drawn.tolist()) <= set(best.indices.tolist())


@given(st.integers(1, 12), st.floats(0.05, 1.0), st.floats(0.2, 3.0), st.integers(0, 99))
def test_what_is_drawn_from_is_what_is_said(top_k: int, top_p: float, temperature: float, seed: int) -> None:
    logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    found = NextToken(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p).probabilities(logits)
    for row in range(3):
        ranked = sorted(range(12), key=lambda place, row=row: -float(logits[row, place]))[:top_k]  # type: ignore[misc]
        scores = (logits[row, ranked] / temperature).softmax(dim=0)
        kept: list[int] = []
        total = 0.0
        for place, score in zip(ranked, scores.tolist(), strict=True):
            if kept and total >= top_p - 1e-6:
                break
            kept.append(place)
            total += score
        is_there = (found[row] > 0).nonzero().flatten().tolist()
        assert set(is_there) <= set(kept) or abs(total - top_p) < 1e-4
        assert found[row].sum().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 1.5}])
def test_numbers_out_of_range_are_refused(built: BuiltRun, batch: Batch, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        built.model.generate({"image": batch["image"], "token_ids": batch["token_ids"][:, :1]}, do_sample=True, **wrong)


def test_a_head_that_asks_for_words_cannot_write(tmp_path: Path) -> None:
    built = built_of(tmp_path, text=WRITER.replace("{use: toy.next_word}", "{use: toy.next_word, asks_for_words: true}"))
    batch = next(iter(built.pipeline.loader("val", batch_size=2)))
    with pytest.raises(SpecError, match=r"\[MV201\] model.decoders.lm takes word_ids, which nobody knows of a text"):
        built.model.generate({"image": batch["image"], "token_ids": batch["token_ids"][:, :1]})


def test_a_tower_that_sees_all_of_a_text_is_refused_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"\[MV204\] model.decoders.lm \(toy.next_word\) may see a text only up to each position"):
        built_of(tmp_path, text=WRITER.replace("{use: toy.causal_text}", "{use: toy.causal_text, sees: all}"))
