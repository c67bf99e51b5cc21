"""Fields of records on their way from the data component to a loss: in register, by need, absent, in further views."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from random_recipes import tree
from torch import Tensor
from toy_fields import SEEN, toy_host

from medvlp_core.data import boxes_to_original
from medvlp_core.data import samples as samples_module
from medvlp_core.describe import forward_source
from medvlp_core.errors import Diagnostics, Problem, SpecError
from medvlp_core.model.build import BuiltRun, build_run
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import PluginHost


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return toy_host()


def recipe(
    takes: dict[str, str], *, lacking: tuple[str, ...] = (), inputs: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "medvlp": 1,
        "data": {"use": "toy.fields", "lacking": list(lacking)},
        "tokenizer": {"use": "standard.wordpiece", "vocab_size": 200, "max_length": 32},
        "inputs": inputs or {},
        "model": {"decoders": {"keeper": {"use": "toy.keeper", "takes": takes}}},
        "train": {"steps": 1, "batch_size": 6},
        **more,
    }


def planned(document: dict[str, Any], host: PluginHost) -> tuple[ModelPlan | None, tuple[Problem, ...]]:
    diagnostics = Diagnostics()
    return compose(tree(document), host, diagnostics), diagnostics.errors


def built(document: dict[str, Any], host: PluginHost) -> BuiltRun:
    plan, errors = planned(document, host)
    assert plan is not None, errors
    return build_run(plan, seed=0)


def step(run: BuiltRun, *, rows: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """What the keeper is given of some records, with random crops."""
    dataset = run.pipeline.dataset("train", is_training=True)
    torch.manual_seed(seed)
    batch = run.pipeline.collate()([dataset[row] for row in range(min(rows, len(dataset)))])
    run.model(batch).loss.backward()
    return dict(SEEN)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


ALL = {
    "image": "B 1 32 32", "heat": "B 32 32", "lung": "B 32 32:bool", "found": "B K 4", "found_is_valid": "B K:bool",
    "labels": "B 3", "crop": "B 5",
}  # fmt: skip
CROPS = {"crop_scale": 0.4, "horizontal_flip": True}


def test_a_map_a_mask_and_boxes_stay_in_register_with_the_image(host: PluginHost) -> None:
    run = built(recipe(ALL, inputs=CROPS), host)
    is_mirrored = set()
    for seed in range(6):
        seen = step(run, seed=seed)
        for row in range(6):
            assert correlation(seen["image"][row, 0], seen["heat"][row]) > 0.99
            is_mirrored.add(bool(seen["crop"][row, 4]))
            if seen["found_is_valid"][row, 0] and seen["lung"][row].any():
                where = seen["lung"][row].nonzero()
                left, top, right, bottom = seen["found"][row, 0].tolist()
                assert left - 1 <= int(where[:, 1].min())
                assert int(where[:, 1].max()) + 1 <= right + 1
                assert top - 1 <= int(where[:, 0].min())
                assert int(where[:, 0].max()) + 1 <= bottom + 1
        original = boxes_to_original(seen["found"], seen["crop"], (32, 32))
        assert (original[..., 0] <= original[..., 2]).all()
    assert is_mirrored == {True, False}


def test_a_map_may_be_asked_for_in_another_size(host: PluginHost) -> None:
    seen = step(built(recipe({"image": "B 1 32 32", "heat": "B 8 8"}, inputs=CROPS), host))
    for row in range(6):
        small = torch.nn.functional.interpolate(seen["image"][row][None], (8, 8), mode="area")[0, 0]
        assert correlation(small, seen["heat"][row]) > 0.97


def test_ragged_axes_are_padded_and_constant_fields_have_no_batch(host: PluginHost) -> None:
    takes = {"image": "B 1 16 16", "found": "B K 4", "found_is_valid": "B K:bool", "prompts": "R D", "terms": "B S 2:int"}
    seen = step(built(recipe({**takes, "token_ids": "B L:int"}), host))
    assert seen["found"].shape == (6, 3, 4)
    assert seen["found_is_valid"].sum(dim=1).tolist() == [1, 2, 3, 1, 2, 3]
    assert seen["prompts"].shape == (4, 6)
    assert seen["terms"].shape == (6, 2, 2)


def test_texts_beside_the_text_go_through_the_tokenizer(host: PluginHost) -> None:
    takes = {"findings_token_ids": "B Lf:int", "findings_is_valid": "B Lf:bool", "token_ids": "B L:int", "image": "B 1 16 16"}
    seen = step(built(recipe(takes), host))
    assert seen["findings_token_ids"].shape == seen["findings_is_valid"].shape
    assert seen["findings_token_ids"].shape[1] <= 32


def test_two_texts_are_not_as_long_as_each_other(host: PluginHost) -> None:
    plan, errors = planned(recipe({"findings_token_ids": "B L:int", "token_ids": "B L:int"}), host)
    assert plan is None
    assert [error.code for error in errors] == ["MV202"]
    assert "the length of text" in str(errors[0])
    assert "the length of the field findings" in str(errors[0])


def test_fields_that_nobody_needs_are_not_read(host: PluginHost, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = samples_module.read_field
    monkeypatch.setattr(
        samples_module, "read_field", lambda name, *more, **named: read.append(name) or original(name, *more, **named)
    )
    run = built(recipe({"heat": "B 8 8"}), host)
    step(run, rows=4)
    assert {name: read.count(name) for name in set(read)} == {"image": 4, "heat": 4}  # the image draws the crop
    assert set(run.pipeline.plan.fields) == {"image", "heat"}


def test_an_image_only_recipe_needs_no_tokenizer_and_no_text(host: PluginHost) -> None:
    document = recipe({"image": "B 1 16 16"}, lacking=("text",))
    del document["tokenizer"]
    run = built(document, host)
    assert len(run.pipeline.records("train")) == 12
    assert "token_ids" not in step(run)


def test_records_count_by_what_the_model_needs(host: PluginHost) -> None:
    for takes, count in (({"image": "B 1 16 16"}, 12), ({"labels": "B 3"}, 8), ({"token_ids": "B L:int"}, 12)):
        assert len(built(recipe(takes, lacking=("labels",)), host).pipeline.records("train")) == count


def test_an_absent_field_is_zero_and_known_as_absent(host: PluginHost) -> None:
    takes = {"heat": "B 8 8", "heat_is_known": "B:bool", "labels": "B 3", "labels_is_known": "B 3:bool"}
    run = built(recipe(takes, lacking=("heat", "label"), inputs={"may_lack": {"heat": None, "labels": None}}), host)
    assert len(run.pipeline.records("train")) == 12
    seen = step(run)
    assert seen["heat_is_known"].tolist() == [True, True, False] * 2
    assert not seen["heat"][2].any()
    assert seen["heat"][0].any()
    assert seen["labels_is_known"][1].tolist() == [True, True, False]
    assert seen["labels"][1].tolist() == [1.0, 0.0, 0.0]


def test_whether_a_map_is_known_needs_no_size_of_the_map(host: PluginHost) -> None:
    document = recipe({"image": "B 1 16 16", "heat_is_known": "B:bool"}, lacking=("heat",), inputs={"may_lack": {"heat": None}})
    seen = step(built(document, host))
    assert seen["heat_is_known"].tolist() == [True, True, False] * 2
    assert "heat" not in seen


def test_an_absent_image_is_a_copy_of_another_one(host: PluginHost) -> None:
    takes = {"image": "B 1 16 16", "prior": "B 1 16 16", "prior_is_known": "B:bool"}
    seen = step(built(recipe(takes, lacking=("prior",), inputs={"may_lack": {"prior": "image"}, "crop_scale": 1.0}), host))
    assert seen["prior_is_known"].tolist() == [True, True, False] * 2
    assert torch.equal(seen["prior"], seen["image"])  # the same file, or its stand-in


def test_a_loss_that_is_not_told_what_is_absent_is_refused(host: PluginHost) -> None:
    plan, errors = planned(recipe({"heat": "B 8 8"}, inputs={"may_lack": {"heat": None}}), host)
    assert plan is None
    assert [error.code for error in errors] == ["MV211"]
    assert "heat_is_known" in str(errors[0])


def test_a_second_crop_is_another_view_and_leaves_the_first_alone(host: PluginHost) -> None:
    takes = {"image": "B 1 32 32", "heat": "B 32 32", "crop": "B 5"}
    first = step(built(recipe(takes, inputs=CROPS), host), seed=3)
    views = {**CROPS, "views": {"second": {"fields": ["image"], "crop_scale": 0.3}}}
    document = recipe(takes, inputs=views)
    document["model"]["decoders"]["other"] = {
        "use": "toy.keeper", "takes": {"image": "B 1 32 32 @second", "heat": "B 32 32 @second"}
    }  # fmt: skip
    run = built(document, host)
    dataset = run.pipeline.dataset("train", is_training=True)
    torch.manual_seed(3)
    batch = run.pipeline.collate()([dataset[row] for row in range(6)])
    assert torch.equal(batch["crop"], first["crop"])
    assert not torch.equal(batch["image@second"], batch["image"])
    run.model(batch)
    for row in range(6):
        assert correlation(SEEN["image"][row, 0], SEEN["heat"][row]) > 0.99


def test_labels_of_any_data_reach_a_loss(host: PluginHost) -> None:
    document = recipe({"labels": "B 1", "image": "B 1 16 16"}, inputs={"labels": ["Pneumonia"]})
    document["data"] = {"use": "open_cxr.pairs", "sources": ["nih", "covid"]}
    run = built(document, host)
    records = run.pipeline.records("train")
    assert all("Pneumonia" in record.labels for record in records)
    assert step(run)["labels"][:, 0].tolist() == [float(record.labels["Pneumonia"]) for record in records[:6]]


def test_unknown_labels_are_told_where_they_may_lack(host: PluginHost) -> None:
    names = ["Pneumonia", "Effusion"]
    takes = {"labels": "B 2", "labels_is_known": "B 2:bool", "image": "B 1 16 16"}
    document = recipe(takes, inputs={"labels": names, "may_lack": {"labels": None}})
    document["data"] = {"use": "open_cxr.pairs"}
    run = built(document, host)
    seen, records = step(run), run.pipeline.records("train")
    known = [[name in record.labels for name in names] for record in records[:6]]
    assert seen["labels_is_known"].tolist() == known


def test_a_label_that_no_record_has_is_named(host: PluginHost) -> None:
    takes = {"labels": "B 2", "labels_is_known": "B 2:bool"}
    document = recipe(takes, inputs={"labels": ["Pneumonai", "Effusion"], "may_lack": {"labels": None}})
    document["data"] = {"use": "open_cxr.pairs"}
    with pytest.raises(SpecError, match=r"\[MV104\] inputs.labels: no record has a label 'Pneumonai'\n.*did you mean 'Pneumonia'"):
        built(document, host)


WRONG = {
    "labels twice": ({"inputs": {"labels": ["Pneumonia"]}}, "MV209", "of its own"),
    "an unknown field": ({"inputs": {"may_lack": {"haet": None}}}, "MV104", "did you mean 'heat'"),
    "an image without a stand-in": ({"inputs": {"may_lack": {"prior": None}}}, "MV104", "prior: image"),
    "a view that is there": ({"inputs": {"views": {"clean": {}}}}, "MV209", "'clean'"),
    "a view that nobody can name": ({"inputs": {"views": {"Near": {}}}}, "MV209", "small letters"),
    "no labels": ({"inputs": {"labels": []}}, "MV104", "the list is empty"),
    "a label twice": ({"inputs": {"labels": ["Edema", "Edema"]}}, "MV104", "more than once"),
    "a view of no image": ({"inputs": {"views": {"second": {"fields": ["heat"]}}}}, "MV104", "no image field 'heat'"),
    "a size that nobody says": ({"takes": {"heat": "B Hx Wx"}}, "MV206", "is to be cut"),
    "a wrong size of a vector": ({"takes": {"labels": "B 4"}}, "MV202", "4"),
    "an unknown port": ({"takes": {"labls": "B 3"}}, "MV201", "did you mean 'labels'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said(name: str, host: PluginHost) -> None:
    more, code, text = WRONG[name]
    plan, errors = planned(recipe(more.get("takes", {"image": "B 1 16 16"}), inputs=more.get("inputs")), host)
    assert plan is None
    assert [error.code for error in errors] == [code]
    assert text in str(errors[0])
    assert errors[0].position is not None


# -------------------------------------------------------------------------------------------------------------- folded axes

STUDIES = {
    "medvlp": 1,
    "data": {"use": "toy.studies"},
    "tokenizer": {"use": "standard.wordpiece", "vocab_size": 200, "max_length": 24},
    "inputs": {"crop_scale": 1.0},
    "model": {
        "image_encoder": {
            "use": "standard.timm_vit", "image_size": 32, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "channels": 1,
            "each": "V", "needs": {"image": "images"},
        },
        "text_encoder": {
            "use": "standard.bert", "width": 16, "layers": 1, "heads": 2, "dropout": 0.0, "each": "S",
            "needs": {"token_ids": "sentences_token_ids", "text_is_valid": "sentences_is_valid"},
        },
        "decoders": {
            "keeper": {
                "use": "toy.keeper",
                "takes": {"image_tokens": "B V N 16", "images_is_valid": "B V:bool", "text_tokens": "B S L 16",
                          "sentences_is_valid": "B S L:bool"},
            }
        },
    },
    "train": {"steps": 1, "batch_size": 6},
}  # fmt: skip


def test_an_encoder_runs_over_each_image_of_a_study_and_each_sentence(host: PluginHost) -> None:
    run = built(STUDIES, host)
    seen = step(run)
    assert seen["image_tokens"].shape[:2] == seen["images_is_valid"].shape == (6, 3)
    assert seen["images_is_valid"].sum(dim=1).tolist() == [1, 2, 3, 1, 2, 3]
    assert seen["text_tokens"].shape[:3] == seen["sentences_is_valid"].shape
    assert all(bool(value.isfinite().all()) for name, value in seen.items() if name.endswith("tokens"))
    images = run.pipeline.collate()([run.pipeline.dataset("train", is_training=False)[row] for row in range(6)])["images"]
    encoder = run.model.image_encoder
    assert encoder is not None
    alone = encoder(image=images[2, 1:2]).image_tokens
    assert torch.allclose(alone, run.model.ports({"images": images}, "image_tokens")["image_tokens"][2, 1:2], atol=1e-6)


def test_code_of_a_folded_axis_is_bit_equal(host: PluginHost) -> None:
    run = built(STUDIES, host)
    batch = run.pipeline.collate()([run.pipeline.dataset("train", is_training=False)[row] for row in range(6)])
    space: dict[str, Any] = {}
    exec(forward_source(run.plan), space)
    loss, _ = space["forward"](run.model, {**batch, "progress": torch.ones(())})
    assert torch.equal(loss, run.model(batch).loss)


@pytest.mark.parametrize(
    ("path", "each", "code"),
    [("image_encoder", "B", "MV103"), ("image_encoder", 3, "MV103"), ("decoders.keeper", "V", "MV102")],
)
def test_what_cannot_run_over_an_axis_is_said(path: str, each: Any, code: str, host: PluginHost) -> None:
    document = copy.deepcopy(STUDIES)
    block = document["model"]
    for name in path.split("."):
        block = block[name]  # type: ignore[index, assignment]
    block["each"] = each  # type: ignore[index]
    plan, errors = planned(document, host)
    assert plan is None
    assert code in {error.code for error in errors}


def test_an_axis_that_nothing_has_is_said(host: PluginHost) -> None:
    document = copy.deepcopy(STUDIES)
    del document["model"]["image_encoder"]["needs"]  # type: ignore[index]
    plan, errors = planned(document, host)
    assert plan is None
    assert any("has a further axis" in str(error) for error in errors)


# ------------------------------------------------------------------------------------------- calls that hand on to each other


@pytest.mark.parametrize("block", [{"share": "model.text_encoder"}, {"follow": "model.text_encoder", "decay": 0.9}])
def test_a_text_encoder_beside_another_one_encodes_its_own_embeddings(block: dict[str, Any], host: PluginHost) -> None:
    document = recipe({"text_tokens": "B L 16"})
    document["model"]["text_encoder"] = {"use": "standard.bert", "width": 16, "layers": 1, "heads": 2}
    needs = {"token_ids": "findings_token_ids", "text_is_valid": "findings_is_valid"}
    document["model"]["parts"] = {"second": {**block, "needs": needs}}
    document["model"]["decoders"]["keeper"]["needs"] = {"text_tokens": "second.text_tokens"}
    plan, errors = planned(document, host)
    assert plan is not None, errors
    calls = {str(call): dict(call.takes) for call in plan.calls}
    assert list(calls) == ["model.parts.second.embed", "model.parts.second.encode", "model.decoders.keeper"]
    assert str(calls["model.parts.second.encode"]["text_embeddings"]) == "second.text_embeddings"
