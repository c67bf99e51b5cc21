"""Scores of all pairs: those of the plain double loop, with as few calls as that allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_writers import MATCHER, writers_host

from medvlp_core.errors import SpecError
from medvlp_core.model.build import BuiltRun, build_run
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.compose import plan_recipe

TOKENS = ("token_ids", "text_is_valid", "word_ids")


def built_of(folder: Path, text: str = MATCHER) -> BuiltRun:
    (folder / "matcher.yaml").write_text(text, encoding="utf-8")
    found = build_run(plan_recipe(folder / "matcher.yaml", host=writers_host()), seed=0)
    found.model.eval()
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltRun:
    return built_of(tmp_path_factory.mktemp("matcher"))


@pytest.fixture(scope="module")
def sides(built: BuiltRun) -> tuple[Batch, Batch]:
    batch = next(iter(built.pipeline.loader("val", batch_size=7)))
    return {"image": batch["image"][:5]}, {name: batch[name] for name in TOKENS}


@pytest.mark.parametrize("chunk_size", [1, 4, 35, 1000])
def test_every_pair_has_the_score_that_it_has_alone(built: BuiltRun, sides: tuple[Batch, Batch], chunk_size: int) -> None:
    images, texts = sides
    found = built.model.score(images, texts, chunk_size=chunk_size)
    assert found.shape == (5, 7)
    assert not found.requires_grad
    with torch.no_grad():
        for row in range(5):
            for column in range(7):
                pair = {"image": images["image"][row : row + 1]}
                pair |= {name: value[column : column + 1] for name, value in texts.items()}
                wanted = built.model.ports(pair, "match_score")["match_score"]
                if chunk_size == 1:
                    assert torch.equal(found[row, column], wanted[0])
                torch.testing.assert_close(found[row, column], wanted[0], rtol=1e-4, atol=1e-6)
    assert found.std() > 0


def test_what_one_side_leads_to_runs_once_for_each_row(built: BuiltRun, sides: tuple[Batch, Batch]) -> None:
    rows = {"image_encoder": 0, "fusion": 0, "text": 0}

    def count(name: str) -> Any:
        def hook(_: Any, __: Any, given: Any, *___: Any) -> None:
            rows[name] += len(next(iter(given.values()))) if isinstance(given, dict) else len(given[0])

        return hook

    model = built.model
    assert model.image_encoder is not None
    assert model.fusion is not None
    handles = [
        model.image_encoder.register_forward_hook(
            lambda _, args, kwargs, out: count("image_encoder")(_, args, kwargs), with_kwargs=True
        ),
        model.fusion.register_forward_hook(lambda _, args, kwargs, out: count("fusion")(_, args, kwargs), with_kwargs=True),
    ]
    encode = model.text_encoder.encode  # type: ignore[union-attr]

    def counted(**needs: Any) -> Any:
        rows["text"] += len(needs["text_is_valid"])
        return encode(**needs)

    model.text_encoder.encode = counted  # type: ignore[method-assign,union-attr]
    model.score(*sides, chunk_size=3)
    del model.text_encoder.encode  # type: ignore[union-attr]
    for handle in handles:
        handle.remove()
    assert rows == {"image_encoder": 5, "text": 7, "fusion": 35}


def test_no_images_have_no_scores(built: BuiltRun, sides: tuple[Batch, Batch]) -> None:
    images, texts = sides
    assert built.model.score({"image": images["image"][:0]}, texts).shape == (0, 7)


def test_what_cannot_be_scored_is_said(built: BuiltRun, sides: tuple[Batch, Batch], tmp_path: Path) -> None:
    images, texts = sides
    with pytest.raises(SpecError, match=r"\[MV201\] token_ids stands in both batches"):
        built.model.score({**images, "token_ids": texts["token_ids"]}, texts)
    with pytest.raises(SpecError, match=r"\[MV201\] model.image_encoder takes image, which neither of the batches holds"):
        built.model.score({}, texts)
    with pytest.raises(SpecError, match=r"\[MV201\] this model does not give the port other.match_score"):
        built.model.score(images, texts, head="other")
    with pytest.raises(ValueError, match="chunk_size must be at least 1, found 0"):
        built.model.score(images, texts, chunk_size=0)
    mixed = built_of(tmp_path, MATCHER.replace("{use: toy.match}", "{use: toy.match, mixes: true}"))
    with pytest.raises(SpecError, match=r"\[MV201\] match.match_score comes from model.parts.match, where the result of a pair"):
        mixed.model.score(images, texts)
    alone = built_of(tmp_path, MATCHER.replace("{use: toy.match}", "{use: toy.match, from_fused: false}"))
    with pytest.raises(SpecError, match=r"\[MV201\] match.match_score depends on texts alone: it is no score of pairs"):
        alone.model.score(images, texts)
