"""Exports load in the libraries that they are for, with the model's features."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from medvlp_open_cxr.manifest import DATA
from medvlp_standard.image_encoders import TimmViT
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import medvlp_core
from medvlp_core.cli import main
from medvlp_core.errors import MedvlpError
from medvlp_core.export.onnx_graphs import NEEDED, export_onnx
from medvlp_core.export.write import export_run
from medvlp_core.inference import TrainedModel
from medvlp_core.nn.batch import ImageFeatures
from medvlp_core.training.checkpoint import find_checkpoint, weights_of

FILMS = sorted(DATA.glob("images/vqarad/*.jpg"))[:2]
NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="the extra `onnx` is not installed"
)
TEXTS = ["The heart is enlarged.", "No pneumothorax, and the lungs are clear."]


@pytest.fixture(scope="module")
def run(micro: str, save_untrained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    (folder / "micro.yaml").write_text(micro, encoding="utf-8")
    return save_untrained(folder / "micro.yaml", folder / "run")


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return medvlp_core.load(run, device="cpu")


def test_the_image_encoder_is_timms(run: Path, model: TrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "timm", "--out", str(tmp_path / "out")]) == 0
    assert "timm.create_model(" in capsys.readouterr().out
    arguments = json.loads((tmp_path / "out" / "timm.json").read_text())
    name = arguments.pop("model_name")
    loaded = timm.create_model(name, checkpoint_path=str(tmp_path / "out" / "model.safetensors"), **arguments).eval()
    films = torch.cat([model.run.read_image(path) for path in FILMS])
    tokens, prefix = model.encode_image(films)
    with torch.no_grad():
        assert torch.equal(loaded.forward_features(films), torch.cat([prefix, tokens], dim=1))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "32 x 32 pixels" in card
    assert "`(x - 0.4978) / 0.2449`" in card
    assert "CC0-1.0" in card


def test_the_text_encoder_is_transformers(run: Path, model: TrainedModel, tmp_path: Path) -> None:
    export_run(run, "transformers", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    loaded = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    tokens = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    features, is_valid = model.encode_text(TEXTS)
    assert torch.equal(tokens["attention_mask"].bool(), is_valid)
    with torch.no_grad():
        found = loaded(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    torch.testing.assert_close(found[is_valid], features[is_valid], rtol=1e-6, atol=1e-6)


def test_the_printed_lines_load_transformers_without_a_word_of_missing_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done = export_run(run, "transformers", tmp_path / "out")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # where caplog listens
    names: dict[str, Any] = {}
    exec(done.usage_from_here, names)
    assert caplog.text == ""
    assert names["features"].shape[::2] == (2, 32)
    exec(done.usage_from_here.replace(", add_pooling_layer=False", ""), names)
    assert "pooler" in caplog.text


def test_the_terminal_names_files_from_where_the_user_stands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--to", "timm", "--out", "some/where"]) == 0
    printed, card = capsys.readouterr().out, Path("some/where/README.md").read_text()
    assert 'timm.create_model(\n    "vit_tiny_patch16_224", checkpoint_path="some/where/model.safetensors",' in printed
    assert 'checkpoint_path="model.safetensors"' in card
    assert main(["export", str(run), "--to", "safetensors", "--out", "all"]) == 0
    assert 'load_file("all/model.safetensors")' in capsys.readouterr().out


def test_safetensors_hold_every_weight(run: Path, model: TrainedModel, tmp_path: Path) -> None:
    export_run(run, "safetensors", tmp_path / "out")
    found, wanted = load_file(tmp_path / "out" / "model.safetensors"), weights_of(model.run.model)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_averaged_weights_go_out_where_there_are_some(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    average = {"image_encoder.vit.cls_token": torch.full((1, 1, 32), 7.0)}
    save_file(average, find_checkpoint(tmp_path / "run") / "ema.safetensors")
    export_run(tmp_path / "run", "timm", tmp_path / "out")
    assert (load_file(tmp_path / "out" / "model.safetensors")["cls_token"] == 7).all()


@NEEDS_ONNX
def test_onnx_graphs_agree_with_the_model(run: Path, model: TrainedModel, tmp_path: Path) -> None:
    import onnxruntime

    export_run(run, "onnx", tmp_path / "out")
    films = torch.cat([model.run.read_image(path) for path in FILMS])
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "image_encoder.onnx"))
    tokens, prefix, vectors = (torch.from_numpy(one) for one in session.run(None, {"image": films.numpy()}))
    wanted = model.encode_image(films)
    for found, expected in ((tokens, wanted[0]), (prefix, wanted[1]), (vectors, model.embed_image(films))):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    batch = model.run.tokenizer.encode(TEXTS).tokens._asdict()
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "text_encoder.onnx"))
    features, vectors = session.run(None, {name: value.numpy() for name, value in batch.items()})
    torch.testing.assert_close(torch.from_numpy(features), model.encode_text(TEXTS).text_tokens, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(vectors), model.embed_text(TEXTS), rtol=0, atol=1e-4)


@NEEDS_ONNX
def test_onnx_graphs_keep_the_batch_norms_of_whole_images(micro: str, save_untrained: Callable[..., Path], tmp_path: Path) -> None:
    import onnxruntime

    cnn = "{use: standard.timm_cnn, model: resnet10t, image_size: 32, channels: 1, stage: 2}"
    (tmp_path / "cnn.yaml").write_text(re.sub(r"(image_encoder:)\n.*\n", rf"\1 {cnn}\n", micro), encoding="utf-8")
    model = medvlp_core.load(save_untrained(tmp_path / "cnn.yaml", tmp_path / "run"), device="cpu")
    encoder = model.run.model.image_encoder
    assert encoder is not None
    for index, (name, buffer) in enumerate(encoder.named_buffers()):  # as if both views had been trained
        # variances alone: a shifted mean may leave nothing behind a ReLU
        buffer += 3 if "num_batches_tracked" in name else 0.5 * (index % 7) * ("var" in name)
    (tmp_path / "out").mkdir()
    export_onnx(model.run, tmp_path / "out")
    films = torch.cat([model.run.read_image(path) for path in FILMS])
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "image_encoder.onnx"))
    tokens, vectors = (torch.from_numpy(one) for one in session.run(None, {"image": films.numpy()}))
    torch.testing.assert_close(tokens, model.encode_image(films).image_tokens, rtol=0, atol=1e-4)
    torch.testing.assert_close(vectors, model.embed_image(films), rtol=0, atol=1e-4)
    masked = encoder(films, torch.zeros(2, tokens.shape[1], dtype=torch.bool)).image_tokens
    assert (masked - tokens).abs().max() > 1e-2, "the other view's statistics would not be noticed"


@NEEDS_ONNX
def test_the_lines_for_onnx_run_as_they_are(
    run: Path, model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--to", "onnx", "--out", "out"]) == 0
    code = capsys.readouterr().out.split("model's features")[1]
    Image.open(FILMS[0]).save("film.png")
    names: dict[str, Any] = {}
    exec(code, names)
    for found, wanted in (
        (names["image_vector"], model.embed_image("film.png")),
        (names["text_vector"], model.embed_text(names["texts"])),
        (names["text_tokens"], model.encode_text(names["texts"]).text_tokens),
    ):
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=1e-3)


@NEEDS_ONNX
def test_what_torch_cannot_trace_is_said_in_two_lines(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = TimmViT.forward

    def forward(encoder: TimmViT, image: Tensor) -> ImageFeatures:
        return whole(encoder, image if image.sum() > 0 else -image)

    monkeypatch.setattr(TimmViT, "forward", forward)
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "out")]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3, lines
    assert lines[0].startswith("[MV510] torch cannot export image_encoder to onnx: GuardOnDataDependentSymNode: Could not guard")
    assert re.fullmatch(r" +in test_export.py, line \d+: return whole\(encoder, image if image.sum\(\) > 0 else -image\)", lines[1])
    assert lines[2].strip() == "hint: --to safetensors writes the weights of every model"
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_says_who_can(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvlp_standard.image_encoders.TimmViT.exports", ())
    with pytest.raises(MedvlpError) as caught:
        export_run(run, "timm", tmp_path / "out")
    text = str(caught.value)
    assert "[MV510] model.image_encoder (standard.timm_vit) cannot be exported to timm" in text
    assert "image_encoder components that can: standard.timm_cnn; --to safetensors takes every model, --to onnx" in text
    assert not (tmp_path / "out").exists()


def test_an_export_overwrites_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out, why in ((tmp_path, "it is not empty"), (tmp_path / "notes.txt", "it is a file")):
        with pytest.raises(MedvlpError, match=rf"MV510\] the export cannot be written to .*: {why}"):
            export_run(run, "safetensors", out)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "error", [RuntimeError("a fault of a component"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_failed_export_can_be_repeated(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> str:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("medvlp_core.export.write.model_card", fail)
        with pytest.raises((type(error), MedvlpError)):
            export_run(run, "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export_run(run, "safetensors", tmp_path / "out").files
