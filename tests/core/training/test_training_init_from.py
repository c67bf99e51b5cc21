"""``init_from``: what is taken from where, what is told of it, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from transformers import BertConfig, BertForMaskedLM

import medvlp_core
from medvlp_core.errors import MedvlpError
from medvlp_core.export.write import export_run
from medvlp_core.model.build import build_model, build_tokenizer
from medvlp_core.model.composed import ComposedModel
from medvlp_core.training.checkpoint import find_checkpoint, load_run, weights_of
from medvlp_core.training.init_from import load_initial_weights, starting_vocabulary

Build = Callable[[str], ComposedModel]


@pytest.fixture(scope="module")
def folder(micro: str, save_untrained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the micro recipe and a run of it."""
    folder = tmp_path_factory.mktemp("init")
    (folder / "micro.yaml").write_text(micro, encoding="utf-8")
    save_untrained(folder / "micro.yaml", folder / "run")
    return folder


@pytest.fixture
def build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """The model of a recipe that extends the micro recipe, with other random weights, in the folder of the run."""
    monkeypatch.chdir(folder)

    def make(text: str) -> ComposedModel:
        (folder / "new.yaml").write_text(f"medvlp: 1\nextends: micro.yaml\n{text}", encoding="utf-8")
        plan = medvlp_core.plan(folder / "new.yaml")
        build_tokenizer(plan, folder=starting_vocabulary(plan) or find_checkpoint(folder / "run") / "tokenizer")
        return build_model(plan, seed=7)

    return make


def start(model: ComposedModel, folder: Path) -> list[str]:
    console = Console(file=io.StringIO(), width=300)
    load_initial_weights(model, folder, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_whole_model_of_the_same_recipe(build: Build, folder: Path, tmp_path: Path) -> None:
    model = build("init_from: {path: run}\n")
    lines = start(model, tmp_path)
    wanted = weights_of(load_run(folder / "run").model)
    assert all(torch.equal(value, wanted[name]) for name, value in weights_of(model).items())
    assert lines[0].startswith("init_from: run/checkpoints/step-")
    assert "  image_encoder: 18 tensors matched, 0 resized, 0 unused" in lines
    written = json.loads((tmp_path / "init_from.json").read_text())
    assert written["parts"].keys() == {"image_encoder", "text_encoder", "fusion", "alignments", "decoders"}
    assert "image_encoder.vit.cls_token" in written["parts"]["image_encoder"]["matched"]


def test_one_part_for_larger_images(build: Build, tmp_path: Path) -> None:
    model = build(
        "init_from: {path: run, parts: [image_encoder]}\n"
        "model: {image_encoder: {image_size: 64}, decoders: {image: {target_size: 128}}}\n"
    )
    before = weights_of(model)["text_encoder.bert.embeddings.word_embeddings.weight"].clone()
    assert start(model, tmp_path)[1:] == ["  image_encoder: 17 tensors matched, 1 resized, 0 unused"]
    assert json.loads((tmp_path / "init_from.json").read_text())["parts"]["image_encoder"]["adapted"] == [
        "image_encoder.vit.pos_embed"
    ]
    assert torch.equal(weights_of(model)["text_encoder.bert.embeddings.word_embeddings.weight"], before)


def test_positions_that_the_recipe_fixes_stay(build: Build, tmp_path: Path) -> None:
    model = build("init_from: {path: run, parts: [image_encoder]}\nmodel: {image_encoder: {positions: sincos}}\n")
    before = weights_of(model)["image_encoder.vit.pos_embed"].clone()
    lines = start(model, tmp_path)
    assert torch.equal(weights_of(model)["image_encoder.vit.pos_embed"], before)
    assert lines[1] == "  image_encoder: 17 tensors matched, 0 resized, 1 unused (image_encoder.vit.pos_embed)"


def test_the_vocabulary_comes_with_the_text_encoder(build: Build) -> None:
    for text, comes in (
        ("{path: run}", True),
        ("{path: run, parts: [text_encoder]}", True),
        ("{path: run, parts: [fusion]}", False),
    ):
        assert (starting_vocabulary(build(f"init_from: {text}\n").plan) is not None) == comes


def test_weights_of_medvlp_without_their_run_bring_the_vocabulary_beside_them(build: Build, folder: Path, tmp_path: Path) -> None:
    exported = folder / "exported"
    if not exported.exists():
        export_run(folder / "run", "safetensors", exported)
    for path in ("exported", "exported/model.safetensors", "run/checkpoints/step-0000000/model.safetensors"):
        vocabulary = starting_vocabulary(build(f"init_from: {{path: {path}}}\n").plan)
        assert vocabulary is not None
        assert (vocabulary / "tokenizer.json").is_file()
    shutil.copy(exported / "model.safetensors", folder / "lonely.safetensors")
    with pytest.raises(MedvlpError) as caught:
        build("init_from: {path: lonely.safetensors}\n")
    assert str(caught.value).startswith(
        "[MV509] init_from: lonely.safetensors holds a text encoder, and its vocabulary is not beside it\n"
    )
    model = build("init_from: {path: lonely.safetensors, parts: [image_encoder, fusion]}\n")
    assert start(model, tmp_path)[1] == "  image_encoder: 18 tensors matched, 0 resized, 0 unused"


def test_an_image_encoder_from_an_mae_like_file(build: Build, folder: Path, tmp_path: Path) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", img_size=48, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    state = {**plain.state_dict(), "decoder_embed.weight": torch.zeros(3, 3)}
    torch.save({"model": state, "epoch": 3}, folder / "mae.pth")
    model = build("init_from: {path: mae.pth, parts: [image_encoder]}\n")
    assert start(model, tmp_path)[1] == "  image_encoder: 16 tensors matched, 2 resized, 1 unused (decoder_embed.weight)"
    assert torch.equal(weights_of(model)["image_encoder.vit.blocks.0.mlp.fc1.weight"], plain.blocks[0].mlp.fc1.weight)


def test_a_text_encoder_from_a_folder_of_transformers(build: Build, folder: Path, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=301,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
    )
    plain = BertForMaskedLM(config)
    plain.save_pretrained(folder / "bert")
    model = build("init_from: {path: bert, parts: [text_encoder]}\n")
    line = start(model, tmp_path)[1]
    # another vocabulary, two kinds of segments instead of one, a longer table of positions
    assert line.startswith(
        "  text_encoder: 18 tensors matched, 1 resized, 2 of another shape (embeddings.word_embeddings.weight: (301, 32)"
    )
    own = weights_of(model)["text_encoder.bert.layers.encoder.layer.0.attention.self.query.weight"]
    assert torch.equal(own, plain.bert.encoder.layer[0].attention.self.query.weight)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{path: nowhere}", "[MV509] init_from: there is no file or folder 'nowhere'"),
        ("{path: empty}", "[MV509] init_from: the folder empty holds neither a checkpoint of medvlp nor model.safetensors"),
        ("{path: plain.pt}", "[MV509] init_from: the file is none of medvlp's, and init_from does not say for which part it is"),
        (
            "{path: plain.pt, parts: [fusion]}",
            "[MV509] init_from: model.fusion (mpma.memory_fusion) takes weights from medvlp's own",
        ),
        ("{path: plain.pt, parts: [image_encoder]}", "[MV509] init_from: nothing in plain.pt fits image_encoder"),
        ("{path: run, parts: [masking]}", "[MV509] init_from: this model has no masking with weights"),
        ("{path: new.yaml, parts: [fusion]}", "[MV507] the checkpoint 'new.yaml' cannot be read"),
    ],
)
def test_what_cannot_be_taken(build: Build, folder: Path, tmp_path: Path, text: str, message: str) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    torch.save({"other.weight": torch.zeros(2)}, folder / "plain.pt")
    with pytest.raises(MedvlpError) as caught:
        start(build(f"init_from: {text}\n"), tmp_path)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "init_from.json").exists()


def test_the_block_is_checked(build: Build, folder: Path) -> None:
    for text, message in (
        ("{parts: [fusion]}", "there are parts and no path"),
        ("{path: run, parts: []}", "the list is empty"),
        ("{path: run, parts: [encoder]}", "must be one of"),
    ):
        with pytest.raises(MedvlpError, match=rf"MV104.*{message}"):
            build(f"init_from: {text}\n")
    plan = build("init_from: {path: gone, parts: [fusion]}\n").plan
    assert [str(one.text) for one in plan.warnings if one.code == "MV509"] == [
        "init_from: there is no gone, so that training could not begin"
    ]
    assert plan.resolved()["init_from"] == {"path": str(folder / "gone"), "parts": ["fusion"]}
