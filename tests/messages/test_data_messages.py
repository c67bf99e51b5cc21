"""Broken images, manifests, texts, tensors and checkpoints, and the exact text that a user sees: ``data_messages.txt``.

Each case makes its broken input in an empty folder. ``MEDVLP_WRITE_MESSAGES=1`` writes the texts anew; read them then.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from medvlp_open_cxr.source import OpenCxrPairs
from medvlp_open_cxr.specs import OpenCxrPairsSpec
from medvlp_standard.manifest import ManifestSource
from medvlp_standard.specs.data import ManifestSpec
from medvlp_standard.specs.tokenizers import WordPieceSpec
from medvlp_standard.tokenizers import WordPiece

from medvlp_core.data.images import read_gray
from medvlp_core.errors import MedvlpError
from medvlp_core.model.build import build_run
from medvlp_core.nn.batch import TokenBatch
from medvlp_core.training.checkpoint import load_run

TEXTS = Path(__file__).with_name("data_messages.txt")
FILM = OpenCxrPairs(OpenCxrPairsSpec(), {}).records("test")[0].image_path


def manifest(text: str) -> ManifestSource:
    """A source over ``studies.csv`` with this content, beside one good film."""
    shutil.copy(FILM, "film.jpg")
    Path("studies.csv").write_text(text, encoding="utf-8")
    return ManifestSource(ManifestSpec(path="studies.csv"), {})


def image(content: bytes) -> None:
    Path("film.jpg").write_bytes(content)
    read_gray("film.jpg")


def truncated_checkpoint() -> None:
    Path("run").mkdir()
    Path("run/checkpoint.json").write_text('{"format": 1, "st')
    load_run("run")


CASES: dict[str, Callable[[], object]] = {
    "an image that is missing": lambda: read_gray("film.jpg"),
    "an image that is empty": lambda: image(b""),
    "an image that is cut off": lambda: image(FILM.read_bytes()[:2000]),
    "an image that is none": lambda: image(b"GIF89a, or a text"),
    "a manifest that is missing": lambda: ManifestSource(ManifestSpec(path="studies.csv"), {}),
    "a manifest without the column of the images": lambda: manifest("imge,text,split\nfilm.jpg,clear,train\n"),
    "a manifest without any text column": lambda: manifest("image,split\nfilm.jpg,train\n"),
    "a manifest with semicolons": lambda: manifest("image;text;split\nfilm.jpg;clear;train\n"),
    "a manifest with four wrong rows": lambda: manifest(
        "image,text,split,patient_id,label_Edema\n"
        "film.jpg,clear,train,p1,2\n"
        "none.jpg,clear,train,p2,0\n"
        "film.jpg,,train,p3,1\n"
        "film.jpg,clear,test,p1,\n"
    ),
    "a split that does not exist": lambda: manifest("image,text,split\nfilm.jpg,clear,train\n").records("validation"),
    "a vocabulary that is missing": lambda: WordPiece(WordPieceSpec(vocab_size=50), {}).load(Path("tokenizer")),
    "a run folder without a checkpoint": lambda: load_run("run"),
    "a checkpoint that is cut off": truncated_checkpoint,
}


def say(cause: Callable[[], object]) -> str:
    with pytest.raises(MedvlpError) as caught:
        cause()
    return re.sub(re.escape(os.getcwd()), "FOLDER", str(caught.value))


def expected() -> dict[str, str]:
    """The texts of the file by case."""
    parts = re.split(r"^== (.*)\n", TEXTS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def keep(name: str, text: str) -> None:
    if os.environ.get("MEDVLP_WRITE_MESSAGES"):
        texts = {**(expected() if TEXTS.exists() else {}), name: text}
        TEXTS.write_text("".join(f"== {one}\n{texts[one]}\n\n" for one in sorted(texts)), encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = say(CASES[name])
    keep(name, text)
    assert text == expected()[name]


TENSORS = {
    "images that are not normalised": lambda model: model.encode_image(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)),
    "images of another size": lambda model: model.encode_image(torch.zeros(2, 3, 32, 32)),
    "token ids that are floats": lambda model: model.encode_text(
        TokenBatch(torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.int64))
    ),
}


def test_messages_about_tensors(plan_text) -> None:
    plan, _ = plan_text()
    model = build_run(plan, seed=0).model
    for name, cause in TENSORS.items():
        text = say(lambda cause=cause: cause(model))
        keep(name, text)
        assert text == expected()[name]


def test_every_text_belongs_to_a_case() -> None:
    assert set(expected()) == {*CASES, *TENSORS}
