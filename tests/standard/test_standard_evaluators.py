"""Evaluators on stand-in models whose right answer is known."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import attrs
import numpy as np
import pytest
import torch
from medvlp_standard.evaluators.attention_pictures import (
    STOP_WORDS,
    AttentionPictures,
    are_content_words,
    telling_words,
)
from medvlp_standard.evaluators.common import batches, labels_of
from medvlp_standard.evaluators.linear_probe import LinearProbe
from medvlp_standard.evaluators.loss_curves import LossCurves
from medvlp_standard.evaluators.masked_report_pictures import LINE, LINES, MaskedReportPictures, Piece, lay_out
from medvlp_standard.evaluators.masked_words import MaskedWords, other_texts
from medvlp_standard.evaluators.patch_reconstruction import PatchReconstruction, image_errors
from medvlp_standard.evaluators.reconstruction_pictures import ReconstructionPictures
from medvlp_standard.evaluators.retrieval import Retrieval, same_findings, varying_labels
from medvlp_standard.evaluators.zero_shot import ZeroShot
from medvlp_standard.specs import evaluators as specs
from PIL import Image
from stand_ins import stand_in_plan
from torch import Tensor

from medvlp_core.data.records import Record, no_such_split
from medvlp_core.data.tokenizer import EncodedTexts
from medvlp_core.errors import DataError
from medvlp_core.evaluation.protocol import Card, EvaluationRun, held_out_split
from medvlp_core.nn.batch import Batch, ImageFeatures
from medvlp_core.nn.functional import normalise_patches, patchify
from medvlp_core.spec.fields import Field

CPU = torch.device("cpu")
GRID, SIDE = 4, 16  # 4 x 4 patches of 4 x 4 pixels
WORDS = ["[PAD]", "[CLS]", "[MASK]", "clear", "pneumonia", "lungs"]


class Tokenizer:
    """One token per known word; [CLS] in front."""

    def encode(self, texts: list[str]) -> EncodedTexts:
        rows = [[1, *(WORDS.index(word) for word in text.split())] for text in texts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        is_valid = ids != 0
        word_ids = torch.arange(-1, length - 1).expand_as(ids).masked_fill(~is_valid, -1)
        return EncodedTexts(ids, is_valid, word_ids, token_spans=torch.full((*ids.shape, 2), -1))

    def dims(self) -> dict[str, int]:
        return {"V": len(WORDS), "Mask": 2}

    def token_strings(self, token_ids: list[int]) -> list[str]:
        return [WORDS[index] for index in token_ids]


def make_records(count: int) -> list[Record]:
    """Every second one has pneumonia, and its text says so."""
    return [
        Record(
            id=f"study-{index}",
            image_path=Path("none.png"),
            text="lungs pneumonia" if index % 2 else "lungs clear",
            labels={"Pneumonia": index % 2, "Always": 1},
        )
        for index in range(count)
    ]


class Item(NamedTuple):
    """One record of the stand-in."""

    image: Tensor
    text: str
    row: int


class Pipeline:
    """Images of noise whose mean gray is the label (+1, -1)."""

    tokenizer = Tokenizer()
    plan = SimpleNamespace(fields={"image": Field("B C H W", kind="image"), "heat": Field("B 4 4", kind="map", on="image")})

    def __init__(self, count: int = 40, *, splits: tuple[str, ...] = ("train", "val", "test"), has_labels: bool = True) -> None:
        self.count = count
        self.has_labels = has_labels
        self.source = SimpleNamespace(splits=lambda: splits)

    def records(self, split: str) -> list[Record]:
        if split not in self.source.splits():
            raise no_such_split(split, dict.fromkeys(self.source.splits(), self.count))
        return [record if self.has_labels else attrs.evolve(record, labels={}) for record in make_records(self.count)]

    def narrowed(self, plan: Any) -> Any:
        return self

    def collate(self) -> Callable[[list[Item]], Batch]:
        def stacked(items: list[Item]) -> Batch:
            tokens = self.tokenizer.encode([item.text for item in items])._asdict()
            rows = torch.tensor([item.row for item in items])
            image = torch.stack([item.image for item in items])
            return {"image": image, "image@near": image.clone(), **tokens, "record_index": rows}

        return stacked

    def dataset(self, split: str, *, is_training: bool) -> list[Item]:
        assert not is_training
        noise = torch.Generator().manual_seed({"train": 1, "val": 2, "test": 3}[split])
        items = []
        for index, record in enumerate(self.records(split)):
            image = 0.5 * torch.randn(1, SIDE, SIDE, generator=noise) + (2.0 * record.labels["Pneumonia"] - 1)
            items.append(Item(image, record.text, index))
        return items


class Looker(torch.nn.Module):
    """A fusion with one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Identity()


class Model:
    """Reads the label from the image's mean gray where ``looks``; else it knows nothing."""

    training = False

    def __init__(self, *, looks: bool = True, has_maps: bool = True, reads: str = "image") -> None:
        self.reads = reads
        self.fusion = Looker()
        self.alignments = {"gla": torch.nn.Linear(1, 1)}
        self.looks = looks
        self.has_maps = has_maps

    def sign(self, image: Tensor) -> Tensor:
        mean = image.mean(dim=(1, 2, 3))
        return mean if self.looks else torch.zeros_like(mean)

    def ports(self, batch: Batch, *wanted: str) -> dict[str, Tensor]:
        """Masks are drawn as a masking draws them, then the predictions; vectors need no draw."""
        if "image_embedding" in wanted[0] or "text_embedding" in wanted[0]:
            return {name: self.vectors(batch, name) for name in wanted}
        image_is_masked = torch.rand(len(batch["image"]), GRID * GRID).argsort(dim=1) >= 4
        text_is_masked = (torch.rand(batch["token_ids"].shape) < 0.6) & (batch["word_ids"] >= 0)
        found = {
            "image_is_masked@masked": image_is_masked,
            "text_is_masked@masked": text_is_masked,
            "report.word_logits": self.words(batch[self.reads], batch["token_ids"], text_is_masked),
            "image.patch_prediction": self.patches(batch["image"]),
        }
        return {name: found[name] for name in wanted}

    def vectors(self, batch: Batch, name: str) -> Tensor:
        """On one side of a line, by the image's mean gray or by the words; of what the batch holds."""
        if name == "gla.image_embedding":
            sign = self.sign(batch["image"]).sign()
        else:
            assert name == "gla.text_embedding"
            ids = batch["token_ids"]
            sign = (ids == 4).any(dim=1).float() - (ids == 3).any(dim=1).float()
        return torch.stack([sign, torch.ones_like(sign)], dim=1) / 2**0.5

    def words(self, image: Tensor, token_ids: Tensor, text_is_masked: Tensor) -> Tensor:
        """Position 1 is always "lungs", position 2 depends on the image."""
        logits = torch.zeros(*token_ids.shape, len(WORDS))
        logits[:, 1, WORDS.index("lungs")] = 5.0
        logits[:, 2, WORDS.index("pneumonia")] = self.sign(image).sign() * 2
        logits[:, 2, WORDS.index("clear")] = -self.sign(image).sign() * 2 + 0.1
        return logits[text_is_masked]

    def patches(self, image: Tensor) -> Tensor:
        """Half of the truth, or nothing."""
        target = normalise_patches(patchify(image, GRID, GRID))
        return 0.5 * target if self.looks else torch.zeros_like(target)

    def encode_image(self, image: Tensor) -> ImageFeatures:
        tokens = torch.randn(len(image), GRID * GRID, 3, generator=torch.Generator().manual_seed(0))
        if self.looks:
            tokens[..., 0] += 9 * self.sign(image)[:, None]
        return ImageFeatures(tokens, tokens[:, :0])

    def attention_maps_and_provider(self, batch: Batch) -> tuple[Tensor, str] | None:
        maps = self.fusion.layer(torch.rand(*batch["token_ids"].shape, GRID * GRID))
        return (maps / maps.sum(dim=-1, keepdim=True), "model.fusion") if self.has_maps else None


def make_run(folder: Path, *, model: Model | None = None, count: int = 40, normalise: bool = True) -> Any:
    folder.mkdir(exist_ok=True)
    return EvaluationRun(
        model=model or Model(),  # type: ignore[arg-type]
        plan=stand_in_plan(folder.parent, normalise=normalise),
        pipeline=Pipeline(count),  # type: ignore[arg-type]
        device=CPU,
        seed=0,
        folder=folder,
        split="test",
        fresh_model=lambda: Model(looks=False),  # type: ignore[arg-type, return-value]
        history=tuple(
            {"step": step, "losses": {"report.mlm": 1 / step, "image.reconstruction": 1.0}, "lr": 0.1} for step in (1, 2, 3)
        ),
    )


@pytest.fixture
def run(tmp_path: Path) -> Any:
    return make_run(tmp_path / "pictures")


def build(kind: type, spec: Any) -> Any:
    return kind(spec, {})


# ------------------------------------------------------------------------------------------------------------------- checks


def test_masked_words_sees_what_the_image_adds(run: Any) -> None:
    card: Card = build(MaskedWords, specs.MaskedWordsSpec(draws=3)).evaluate(run)
    accuracy, nats = card.rows
    assert accuracy.value == 1.0
    # Without the right image the first word is still known; the second is a guess, always wrong with the other class's image.
    assert accuracy.baselines["wrong image"] == pytest.approx(0.5, abs=0.12)
    assert accuracy.baselines["blank image"] == pytest.approx(0.75, abs=0.12)
    assert accuracy.baselines["word frequency"] == pytest.approx(0.5, abs=0.12), "always 'lungs'"
    assert {accuracy.verdict(name) for name in accuracy.baselines} == {"beats"}
    assert nats.value < min(nats.baselines.values())
    expected = -np.log(41 / (80 + 6)), -np.log(21 / (80 + 6))  # counts plus one over 80 words and 6 ids
    assert min(expected) < nats.baselines["word frequency"] < max(expected)
    assert 40 * 2 * 3 * 0.45 < accuracy.count < 40 * 2 * 3 * 0.75


def test_masked_words_shows_the_wrong_image_in_every_view(tmp_path: Path) -> None:
    """A model that reads another crop must not be given the right one there."""
    cards = [
        build(MaskedWords, specs.MaskedWordsSpec(draws=2)).evaluate(
            make_run(tmp_path / key.replace("@", "_"), model=Model(reads=key))
        )
        for key in ("image", "image@near")
    ]
    assert cards[0].rows == cards[1].rows
    assert cards[1].rows[0].verdict("wrong image") == "beats"


def test_masked_words_does_not_invent_a_gain(tmp_path: Path) -> None:
    blind = make_run(tmp_path / "pictures", model=Model(looks=False))
    row = build(MaskedWords, specs.MaskedWordsSpec(draws=2)).evaluate(blind).rows[0]
    # The same words are masked with every image, so a model that does not look scores exactly the same.
    assert row.value == row.baselines["wrong image"] == row.baselines["blank image"]
    assert row.verdict("wrong image") == "does not beat"


@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_the_wrong_image_belongs_to_another_text(count: int) -> None:
    texts = [f"text {index // 2}" for index in range(count + 1)]
    assert all(texts[other] != texts[index] for index, other in enumerate(other_texts(texts)))
    with pytest.raises(DataError, match="no two different texts"):
        other_texts(["same"] * count)


def test_patch_reconstruction_in_the_decoders_own_space(run: Any) -> None:
    row = build(PatchReconstruction, specs.PatchReconstructionSpec(draws=2)).evaluate(run).rows[0]
    # Unbiased variance over 16 pixels: the mean square of a normalised patch is 15/16; half of the target leaves a quarter.
    assert row.baselines["patch mean"] == pytest.approx(15 / 16, rel=1e-3)
    assert row.value == pytest.approx(15 / 64, rel=1e-3)
    assert row.baselines["mean training patch"] == pytest.approx(15 / 16, rel=0.1), "noise has no mean patch"
    assert row.count == 40 * 12 * 2
    assert row.verdict("patch mean") == "beats"


def test_patch_reconstruction_without_normalisation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pictures", normalise=False)
    row = build(PatchReconstruction, specs.PatchReconstructionSpec(draws=1)).evaluate(run).rows[0]
    assert row.baselines["patch mean"] == pytest.approx(0.25 * 15 / 16, rel=0.1), "noise of deviation 0.5"
    assert row.baselines["mean training patch"] == pytest.approx(1.25, rel=0.1), "it does not know the brightness"


def test_only_masked_patches_count() -> None:
    target = torch.zeros(2, 3, 4)
    guess = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])[..., None]
    is_masked = torch.tensor([[True, False, True], [False, False, False]])
    np.testing.assert_allclose(image_errors(guess, target, is_masked), [5.0, 0.0])


def test_retrieval_of_a_perfect_space_and_of_none(run: Any, tmp_path: Path) -> None:
    card = build(Retrieval, specs.RetrievalSpec(ks=(1, 5))).evaluate(run)
    assert [row.value for row in card.rows] == [1.0] * 4
    assert [row.baselines["random ranking"] for row in card.rows] == [0.5] * 4
    assert "Pneumonia" in (card.note or "")
    assert "Always" not in (card.note or ""), "a label that never varies tells nothing"
    blind = make_run(tmp_path / "other", model=Model(looks=False))
    for row in build(Retrieval, specs.RetrievalSpec(ks=(1, 5))).evaluate(blind).rows[:2]:
        assert row.value == 0.5
        assert row.verdict("random ranking") == "does not beat"


def test_hits_are_equal_findings_or_equal_texts() -> None:
    def record(text: str, **labels: int) -> Record:
        return Record(id=text, image_path=Path("x"), text=text, labels=labels)

    records = [record("a", P=1, Q=0), record("b", P=1), record("b", P=0, Q=1), record("c", Q=1, P=1)]
    assert varying_labels(records) == ("P", "Q")
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(same_findings(records, ("P", "Q")), np.array(expected, dtype=bool))
    only_text = [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(same_findings(records, ()), np.array(only_text, dtype=bool))


def test_zero_shot_and_its_random_baseline(run: Any) -> None:
    spec = specs.ZeroShotSpec(positive=("lungs pneumonia", "pneumonia"), negative=("clear",))
    row = build(ZeroShot, spec).evaluate(run).rows[0]
    assert row.value == 1.0
    assert row.baselines == {"chance": 0.5, "random weights": 0.5}
    swapped = specs.ZeroShotSpec(positive=("clear",), negative=("pneumonia",))
    assert build(ZeroShot, swapped).evaluate(run).rows[0].value == 0.0


def test_linear_probe_and_its_baselines(run: Any) -> None:
    card = build(LinearProbe, specs.LinearProbeSpec(pixel_side=4, strengths=(0.01, 0.1))).evaluate(run)
    row = card.rows[0]
    assert row.value > 0.99
    assert row.baselines["raw pixels"] > 0.99, "the mean gray gives the label away, and the baseline says so"
    assert row.baselines["random encoder"] < 0.8
    assert row.verdict("raw pixels") != "beats"
    assert row.count == 40


def test_an_unknown_label_is_said_with_the_known_ones(run: Any) -> None:
    with pytest.raises(DataError, match="labels of this split: Always, Pneumonia"):
        build(ZeroShot, specs.ZeroShotSpec(label="Fracture", positive=("pneumonia",), negative=("clear",))).evaluate(run)
    with pytest.raises(DataError, match="40 positive and 0 negative"):
        labels_of(make_records(40), "Always")
    assert labels_of(make_records(4), "Pneumonia")[1].tolist() == [False, True, False, True]


@pytest.mark.parametrize(("wanted", "sizes"), [(1, [1]), (40, [40]), (39, [39]), (None, [40]), (99, [40])])
def test_batches_stop_at_the_asked_number(run: Any, wanted: int | None, sizes: list[int]) -> None:
    parts = list(batches(run, "test", max_pairs=wanted))
    assert [len(part["image"]) for part in parts] == [len(part["token_ids"]) for part in parts] == sizes


def test_few_pairs_are_spread_over_the_split(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pictures", count=150)
    index = torch.cat([part["record_index"] for part in batches(run, "test", max_pairs=100)])
    assert [len(part["image"]) for part in batches(run, "test", max_pairs=100)] == [64, 36]
    assert index.tolist() == [number * 150 // 100 for number in range(100)]
    assert len(set(index.tolist())) == 100


def test_a_k_as_large_as_the_split_is_no_ranking(tmp_path: Path) -> None:
    card = build(Retrieval, specs.RetrievalSpec(ks=(1, 5, 10))).evaluate(make_run(tmp_path / "pictures", count=5))
    assert [row.metric for row in card.rows] == ["image to text: precision@1", "text to image: precision@1"]
    assert {row.verdict("random ranking") for row in card.rows} == {"too few"}


def test_few_reports_are_too_few_however_many_words_are_masked_in_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pictures", count=6)
    row = build(MaskedWords, specs.MaskedWordsSpec(draws=5)).evaluate(run).rows[0]
    assert row.count > 10 > (row.resampled or 0)
    assert set(map(row.verdict, row.baselines)) == {"too few"}
    assert build(PatchReconstruction, specs.PatchReconstructionSpec()).evaluate(run).rows[0].verdict("patch mean") == "too few"


# ---------------------------------------------------------------------------------------------------------------- obstacles

ALL = [
    build(kind, spec)
    for kind, spec in (
        (MaskedWords, specs.MaskedWordsSpec()),
        (PatchReconstruction, specs.PatchReconstructionSpec()),
        (Retrieval, specs.RetrievalSpec()),
        (ZeroShot, specs.ZeroShotSpec()),
        (LinearProbe, specs.LinearProbeSpec()),
        (ReconstructionPictures, specs.ReconstructionPicturesSpec()),
        (MaskedReportPictures, specs.MaskedReportPicturesSpec()),
        (AttentionPictures, specs.AttentionPicturesSpec()),
        (LossCurves, specs.LossCurvesSpec()),
    )
]


def obstacles(pipeline: Pipeline) -> dict[str, str]:
    """Reasons by class name, of those that have one."""
    split = held_out_split(pipeline)  # type: ignore[arg-type]
    found = {type(one).__name__: one.obstacle(pipeline, split) for one in ALL}
    return {name: reason for name, reason in found.items() if reason is not None}


def test_good_data_is_no_obstacle() -> None:
    assert obstacles(Pipeline()) == {}


def test_without_a_held_out_split_all_but_the_curves_say_the_same() -> None:
    found = obstacles(Pipeline(splits=("train",), has_labels=False))
    assert set(found.values()) == {"the data has no held-out split (test or val), only train"}
    assert set(found) == {type(one).__name__ for one in ALL} - {"LossCurves"}


def test_without_a_val_split_only_the_probe_has_nothing_to_choose_on() -> None:
    assert obstacles(Pipeline(splits=("train", "test"))) == {
        "LinearProbe": "there is no split 'val'; splits that exist: train (40), test (40)"
    }


def test_without_the_label_nothing_is_predicted() -> None:
    text = "label 'Pneumonia': 0 positive and 0 negative records; labels of this split: none"
    assert obstacles(Pipeline(has_labels=False)) == {"ZeroShot": f"split 'test': {text}", "LinearProbe": f"split 'train': {text}"}


def test_a_single_pair_is_too_little() -> None:
    found = obstacles(Pipeline(1))
    assert found["MaskedWords"].startswith("split 'test': the split has no two different texts")
    assert found["Retrieval"].startswith("split 'test': 1 record, too few for precision@1")


# ----------------------------------------------------------------------------------------------------------------- pictures


def is_drawn(path: Path) -> bool:
    with Image.open(path) as image:
        return bool(np.asarray(image.convert("L")).std() > 5)


@pytest.mark.parametrize(
    ("kind", "spec", "files"),
    [
        (LossCurves, specs.LossCurvesSpec(), ["loss_curves.png"]),
        (ReconstructionPictures, specs.ReconstructionPicturesSpec(images=3), ["reconstruction.png"]),
        (MaskedReportPictures, specs.MaskedReportPicturesSpec(reports=2), ["masked_reports.png", "masked_reports.txt"]),
        (AttentionPictures, specs.AttentionPicturesSpec(images=2, words=4), ["attention.png"]),
    ],
)
def test_pictures_are_drawn(run: Any, kind: type, spec: Any, files: list[str]) -> None:
    card = build(kind, spec).evaluate(run)
    assert list(card.pictures) == files
    assert is_drawn(run.folder / files[0])


def test_the_masked_report_as_text(run: Any) -> None:
    build(MaskedReportPictures, specs.MaskedReportPicturesSpec(reports=4)).evaluate(run)
    text = (run.folder / "masked_reports.txt").read_text()
    assert "study-0: " in text
    assert "[lungs]" in text
    assert Piece("heart", None).text == "heart"
    assert Piece("heart", "heart").text == "[heart]"
    assert Piece("heart", "lungs").text == "[lungs|heart]"


def test_no_maps_no_history_no_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "pictures", model=Model(has_maps=False))
    card = build(AttentionPictures, specs.AttentionPicturesSpec()).evaluate(run)
    assert not card.pictures
    assert "no attention maps" in (card.note or "")
    loaded = EvaluationRun(**{name: getattr(run, name) for name in run.__slots__ if name not in ("__weakref__", "history")})
    assert not build(LossCurves, specs.LossCurvesSpec()).evaluate(loaded).pictures


def test_pieces_are_laid_out_with_even_gaps() -> None:
    pieces = [Piece("lungs", None), Piece("clear", "heart"), Piece("x" * (LINE - 8), None), *[Piece("y" * LINE, None)] * 20]
    placed = lay_out(pieces)
    assert [(line, column) for line, column, _ in placed[:4]] == [(0, 0), (0, 6), (1, 0), (2, 0)]
    assert placed[-1][0] == LINES - 1


def test_content_words_are_whole_and_no_stop_words() -> None:
    words = ["[CLS]", "For", "lungs", "hyper", "##inflated", "3", "a", ".", "effusion", "is"]
    assert [word for word, is_content in zip(words, are_content_words(words), strict=True) if is_content] == ["lungs", "effusion"]
    assert {"the", "for", "is"} <= STOP_WORDS


def test_telling_words_differ_from_the_mean_map() -> None:
    maps = torch.full((5, 4), 0.25)
    maps[2] = torch.tensor([0.97, 0.01, 0.01, 0.01])
    maps[4] = torch.tensor([0.01, 0.01, 0.01, 0.97])  # padding: sharp, and not a word
    is_word = torch.tensor([False, True, True, True, False])
    assert telling_words(maps, is_word, 1).tolist() == [2]
    assert telling_words(maps, is_word, 9).tolist() == [1, 2, 3]
    assert telling_words(maps, torch.zeros(5, dtype=torch.bool), 3).tolist() == []
