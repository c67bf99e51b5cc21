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


# ----------------------------------------------------------------------------------------------------------- texts and pairs


@pytest.fixture(scope="module")
def writer(save_untrained: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("writing")
    text = """\
medvlp: 1
data: {use: open_cxr.pairs, sources: [nih]}
tokenizer: {use: standard.wordpiece, vocab_size: 300, max_length: 16, end_of_text: true}
model:
  image_encoder:
    {use: standard.timm_vit, model: vit_tiny_patch16_224, image_size: 32, channels: 1, patch_size: 8, width: 32, depth: 1, heads: 2}
  decoders: {caption: {use: standard.caption_decoder, width: 32, layers: 1, heads: 2, num_beams: 2}}
train: {steps: 4, batch_size: 4}
"""
    (folder / "writer.yaml").write_text(text, encoding="utf-8")
    return medvlp_core.load(save_untrained(folder / "writer.yaml", folder / "run"), device="cpu", batch_size=2)


def test_a_text_for_each_image(writer: TrainedModel) -> None:
    found = writer.generate(FILMS)
    assert [type(text) for text in found] == [str] * 3
    assert writer.generate(FILMS[1]) == found[1:2], "alone as in a batch"
    model, tokenizer = writer.run.model, writer.run.tokenizer
    images, start = torch.cat([writer.run.read_image(path) for path in FILMS]), tokenizer.encode([""] * 3).token_ids[:, :1]
    ids, is_valid = model.generate({"image": images, "token_ids": start})
    assert found == [tokenizer.text(row[here].tolist()) for row, here in zip(ids, is_valid, strict=True)]
    assert writer.generate(FILMS, num_beams=1) == writer.generate(FILMS, uses_own=False)
    drawn = [writer.generate(FILMS, do_sample=True, num_beams=1, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_text_continues_its_prompt(writer: TrainedModel) -> None:
    found = writer.generate(FILMS, prompt="the heart")
    assert all(text.startswith("the heart") for text in found)
    with pytest.raises(ValueError, match="max_length must be above"):
        writer.generate(FILMS, prompt="the heart", max_length=2)


def test_a_model_that_writes_and_scores_nothing_says_so(model: TrainedModel) -> None:
    with pytest.raises(MedvlpError, match=r"MV201.*does not give the port next_word_logits"):
        model.generate(FILMS)
    with pytest.raises(MedvlpError, match=r"MV201.*does not give the port match_score"):
        model.score(FILMS, TEXTS)


def test_scores_of_all_pairs(tmp_path: Path) -> None:
    from toy_writers import MATCHER, writers_host

    from medvlp_core.model.build import build_run
    from medvlp_core.planning.compose import plan_recipe
    from medvlp_core.training.checkpoint import LoadedRun

    (tmp_path / "matcher.yaml").write_text(MATCHER, encoding="utf-8")
    built = build_run(plan_recipe(tmp_path / "matcher.yaml", host=writers_host()), seed=0)
    run = LoadedRun(plan=built.plan, model=built.model.eval(), found_tokenizer=built.pipeline.tokenizer, metadata={"step": 0})
    model = TrainedModel(run=run, batch_size=2)
    scores = model.score(FILMS, TEXTS[:2])
    assert scores.shape == (3, 2)
    torch.testing.assert_close(model.score(FILMS[1], TEXTS[1]), scores[1:2, 1:2], rtol=1e-4, atol=1e-6)
