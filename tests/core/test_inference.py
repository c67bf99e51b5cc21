"""``medvlp_core.load``: the same numbers as the model, whatever images and texts come as, and clear errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medvlp_open_cxr.manifest import DATA
from PIL import Image
from safetensors.torch import save_file

import medvlp_core
from medvlp_core.errors import MedvlpError
from medvlp_core.inference import TrainedModel

TEXTS = ["The lungs are clear.", "Right lower lobe pneumonia with a small effusion.", "Cardiomegaly."]
FILMS = sorted(DATA.glob("images/vqarad/*.jpg"))[:3]


@pytest.fixture(scope="module")
def model(micro: str, save_untrained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("loading")
    (folder / "micro.yaml").write_text(micro, encoding="utf-8")
    return medvlp_core.load(save_untrained(folder / "micro.yaml", folder / "run"), device="cpu", batch_size=2)


def test_it_shows_its_parts(model: TrainedModel) -> None:
    lines = repr(model).splitlines()
    assert lines[0] == "TrainedModel micro, step 0"
    assert "  fusion           mpma.memory_fusion" in lines
    count = sum(parameter.numel() for parameter in model.run.model.parameters())
    assert lines[-2:] == [f"  parameters       {count:,}", "  device           cpu"]
    assert f"<tr><th>parameters</th><td>{count:,}</td></tr>" in model._repr_html_()


def test_images_come_as_paths_tensors_and_pictures(model: TrainedModel) -> None:
    films = torch.cat([model.run.read_image(path) for path in FILMS])
    wanted = model.embed_image(films)
    assert not wanted.requires_grad
    torch.testing.assert_close(wanted.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(model.embed_image(FILMS), wanted)
    torch.testing.assert_close(model.embed_image(str(FILMS[1])), wanted[1:2])
    torch.testing.assert_close(model.embed_image(list(films)), wanted)
    tokens, prefix = model.encode_image(films)
    torch.testing.assert_close(tokens, model.run.model.encode_image(films).image_tokens.detach())
    assert prefix.shape == (3, 1, 32)
    gray = Image.open(FILMS[0]).convert("L").resize((64, 64))
    assert torch.equal(model.embed_image(gray), model.embed_image(gray.convert("RGB")))


def test_texts_are_padded_alike_in_every_batch(model: TrainedModel) -> None:
    tokens, is_valid = model.encode_text(TEXTS)
    assert tokens.shape[:2] == is_valid.shape
    local_only = model.encode_text(TEXTS[2])
    torch.testing.assert_close(tokens[2, is_valid[2]], local_only.text_tokens[0])
    torch.testing.assert_close(model.embed_text(TEXTS)[1:2], model.embed_text(TEXTS[1]))


def test_zero_shot_is_what_it_says(model: TrainedModel) -> None:
    found = model.zero_shot(FILMS, {"pneumonia": TEXTS[1:], "healthy": TEXTS[0]}, temperature=0.5)
    image, text = model.embed_image(FILMS), model.embed_text(TEXTS)
    classes = torch.stack([text[1:].mean(0), text[0]])
    scores = torch.nn.functional.cosine_similarity(image[:, None], classes[None], dim=2)
    assert found.classes == ("pneumonia", "healthy")
    torch.testing.assert_close(found.scores, scores)
    torch.testing.assert_close(found.probabilities, (scores / 0.5).softmax(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.embed_image([]), "[MV501] there is no image: the list is empty"),
        (lambda model: model.embed_image([7]), "[MV501] an image is a path, a Pillow image or a tensor, found int"),
        (lambda model: model.embed_image("film.png"), "[MV501] cannot read image film.png: it does not exist"),
        (lambda model: model.embed_image(torch.zeros(3, 32, 32)), "[MV505] image must be float of shape (B, 1, 32, 32)"),
        (lambda model: model.embed_image(FILMS, alignment="clip"), "[MV201] this model has no alignment 'clip'"),
        (lambda model: model.embed_text([]), "[MV504] there is no text: the list is empty"),
        (lambda model: model.embed_text(7), "[MV504] texts are a str or a list of them, found int"),
        (lambda model: model.embed_text([b"x"]), "[MV504] a text is a str, found bytes in the list"),
        (
            lambda model: model.zero_shot(FILMS, {"a": "b"}),
            "[MV504] zero_shot compares the prompts of at least two classes, found 1",
        ),
        (lambda model: model.zero_shot(FILMS, {"a": "b", "c": []}), "[MV504] there is no text: class 'c' is empty"),
    ],
)
def test_wrong_inputs(model: TrainedModel, call: Callable[[TrainedModel], Any], message: str) -> None:
    with pytest.raises(MedvlpError) as caught:
        call(model)
    assert str(caught.value).startswith(message)


def test_a_model_without_alignment_has_no_shared_space(micro: str, save_untrained: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(micro, encoding="utf-8")
    (tmp_path / "plain.yaml").write_text("medvlp: 1\nextends: base.yaml\nmodel: {alignments: null}\n", encoding="utf-8")
    model = medvlp_core.load(save_untrained(tmp_path / "plain.yaml", tmp_path / "run"), device="cpu")
    with pytest.raises(MedvlpError, match=r"MV201.*no alignment"):
        model.zero_shot(FILMS, {"a": "b", "c": "d"})
    assert model.encode_image(FILMS).image_tokens.shape == (3, 16, 32)


def test_a_trained_model_works_without_the_weights_that_it_began_with(
    micro: str, save_untrained: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text(micro, encoding="utf-8")
    first = medvlp_core.load(save_untrained(tmp_path / "base.yaml", tmp_path / "first"), device="cpu")
    save_file(first.run.model.image_encoder.vit.state_dict(), tmp_path / "vit.safetensors")  # type: ignore[union-attr,operator]
    text = f"medvlp: 1\nextends: base.yaml\nmodel: {{image_encoder: {{pretrained: {tmp_path / 'vit.safetensors'}}}}}\n"
    (tmp_path / "second.yaml").write_text(text, encoding="utf-8")
    run = save_untrained(tmp_path / "second.yaml", tmp_path / "second", seed=1)
    (tmp_path / "vit.safetensors").unlink()
    second = medvlp_core.load(run, device="cpu")
    assert torch.equal(second.encode_image(FILMS).image_tokens, first.encode_image(FILMS).image_tokens)


def test_a_temperature_of_zero_is_refused(model: TrainedModel) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0, found 0"):
        model.zero_shot(FILMS, {"Pneumonia": "pneumonia", "No Finding": "clear lungs"}, temperature=0.0)
