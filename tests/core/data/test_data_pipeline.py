"""Which records are pairs, what a batch holds, and in which order batches come."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from medvlp_open_cxr.source import OpenCxrPairs
from medvlp_open_cxr.specs import OpenCxrPairsSpec

from medvlp_core.data.order import DataOrder, Draw
from medvlp_core.data.pipeline import InputPipeline, RecordDataset
from medvlp_core.data.records import DataSource, Record
from medvlp_core.data.samples import SampleReader
from medvlp_core.data.tokenizer import EncodedTexts, Tokenizer
from medvlp_core.errors import DataError, Problem
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.fields import BUILT_IN, InputPlan
from medvlp_core.spec.blocks import InputSpec, TrainSpec
from medvlp_core.training.loop import count_steps

PORTS = ("image", "token_ids", "text_is_valid", "word_ids")
PLAN = InputPlan(
    fields=BUILT_IN,
    ports=frozenset((*PORTS, "image_target")),
    sizes={"image": {"C": 1, "H": 16, "W": 16}, "text": {}},
    target=(32, 32),
)


class WordLengthTokenizer(Tokenizer):
    """Words to ids by a hash; enough to see what the pipeline does with texts."""

    def __init__(self) -> None:
        self.fitted_on: list[str] = []

    def fit(self, texts: Iterable[str]) -> None:
        self.fitted_on = list(texts)

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        rows = [[1, *(2 + hashlib.md5(word.encode()).digest()[0] for word in text.split())][:40] for text in texts]
        length = max(map(len, rows))
        token_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        words = torch.arange(length).expand(len(rows), -1) - 1
        return EncodedTexts(
            token_ids=token_ids,
            text_is_valid=token_ids > 0,
            word_ids=torch.where(token_ids > 0, words, torch.tensor(-1)),
            token_spans=torch.full((*token_ids.shape, 2), -1),  # nobody asks here where tokens stand
        )

    def text(self, token_ids: Sequence[int]) -> str:
        raise NotImplementedError

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return [str(number) for number in token_ids]

    def dims(self) -> dict[str, int]:
        return {"V": 258, "Mask": 0}

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def load(self, folder: Path) -> None:
        raise NotImplementedError


class ListSource(DataSource):
    """Records given by the test."""

    def __init__(self, records: dict[str, list[Record]]) -> None:
        self._records = records

    def splits(self) -> tuple[str, ...]:
        return tuple(self._records)

    def records(self, split: str) -> Sequence[Record]:
        return self._records[split]

    def fingerprint(self) -> str:
        return ""


def make(inputs: InputSpec | None = None, source: DataSource | None = None, **sources: Any) -> InputPipeline:
    source = source or OpenCxrPairs(OpenCxrPairsSpec(**sources), {})
    return InputPipeline(source, WordLengthTokenizer(), inputs or InputSpec(), PLAN)


def order(batches: Iterable[Batch]) -> list[int]:
    return [index for batch in batches for index in batch["record_index"].tolist()]


def test_images_without_text_are_no_pairs() -> None:
    pipeline = make(sources=("vqarad", "hannover"))
    assert len(pipeline.source.records("train")) == 74 + 175
    assert len(pipeline.records("train")) == 74
    assert {record.text_kind for record in pipeline.records("train")} == {"qa"}


def test_text_kinds_limit_the_pairs() -> None:
    pipeline = make(InputSpec(text_kinds=("clinical_note", "qa")))
    assert len(pipeline.records("train")) == 74 + 6
    assert len(make().records("train")) == 695 + 74 + 6


def test_an_unknown_split_names_those_that_exist() -> None:
    with pytest.raises(DataError) as caught:
        make(sources=("vqarad",)).records("training")
    hint = "splits that exist: train (74), val (11), test (22)"
    assert str(caught.value) == f"[MV503] there is no split 'training'\n    hint: {hint}"


def test_a_split_without_pairs_says_what_is_there() -> None:
    with pytest.raises(DataError) as caught:
        make(InputSpec(text_kinds=("report", "clinical_note"))).records("test")
    assert str(caught.value) == (
        "[MV503] split 'test' has no image-text pairs\n"
        "    it has 226 records; texts by kind: template (204), qa (22)\n"
        "    inputs.text_kinds allows report, clinical_note\n"
        "    hint: splits by their number of pairs: train (6), val (3), test (0)"
    )


def test_a_batch_holds_the_records_that_it_names() -> None:
    pipeline = make(sources=("vqarad",))
    records = pipeline.records("test")
    batch = next(iter(pipeline.loader("test", batch_size=8)))
    assert batch["record_index"].tolist() == list(range(8))
    assert batch["image"].shape == (8, 1, 16, 16)
    assert batch["image_target"].shape == (8, 1, 32, 32)
    tokens = pipeline.tokenizer.encode([record.text for record in records[:8]])
    assert torch.equal(batch["token_ids"], tokens.token_ids)
    assert torch.equal(batch["text_is_valid"], tokens.text_is_valid)
    assert torch.equal(batch["word_ids"], tokens.word_ids)
    assert torch.equal(batch["image"][3], pipeline.dataset("test", is_training=False)[3].values["image", "clean"])


def test_no_target_when_nothing_restores_images() -> None:
    sizes = {"image": {"C": 3, "H": 16, "W": 16}, "text": {}}
    plain = InputPlan(fields=BUILT_IN, ports=frozenset(PORTS), sizes=sizes)
    source = OpenCxrPairs(OpenCxrPairsSpec(sources=("covid",)), {})
    pipeline = InputPipeline(source, WordLengthTokenizer(), InputSpec(), plain)
    batch = next(iter(pipeline.loader("val", batch_size=2)))
    assert "image_target" not in batch
    assert batch["image"].shape == (2, 3, 16, 16)


def test_evaluation_gives_every_pair_once_in_order() -> None:
    loader = make(sources=("vqarad",)).loader("test", batch_size=8)
    assert order(loader) == list(range(22))
    assert order(loader) == list(range(22))


def run_order(count: int, batch_size: int = 4, **rest: Any) -> DataOrder:
    return DataOrder(count=count, batch_size=batch_size, **{"seed": 1, **rest})


def test_training_order_is_drawn_from_the_seed_and_new_each_epoch() -> None:
    pipeline = make(sources=("vqarad",))

    def epochs(seed: int) -> list[list[int]]:
        data = run_order(22, seed=seed)
        return [order(pipeline.training_batches(data, range(start, start + 5))) for start in (0, 5)]

    first, second = epochs(1)
    assert len(first) == len(set(first)) == 20  # the incomplete last batch is dropped
    assert first != second
    torch.manual_seed(99)
    assert epochs(1) == [first, second]
    assert epochs(2)[0] != first


def test_a_split_smaller_than_a_batch_gives_none_and_the_training_loop_refuses_it() -> None:
    data = run_order(6, 32)
    assert data.steps_per_epoch == 0
    with pytest.raises(DataError, match=r"\[MV503\] the split 'train' has fewer pairs than one batch of 32"):
        count_steps(TrainSpec(steps=1, batch_size=32), data)


def test_a_run_resumes_in_the_middle_of_an_epoch() -> None:
    pipeline = make(sources=("vqarad",))
    data = run_order(74, 8, seed=3)
    whole = list(pipeline.training_batches(data, range(12, 22)))
    rest = list(pipeline.training_batches(data, range(15, 22)))
    assert order(rest) == order(whole)[24:]
    assert all(torch.equal(one["image"], other["image"]) for one, other in zip(rest, whole[3:], strict=True)), "crops too"
    assert not torch.equal(whole[0]["image"], next(iter(pipeline.training_batches(data, range(9), share=None)))["image"])


@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_processes_give_the_same_batches(num_workers: int) -> None:
    pipeline = make(sources=("covid",))
    data = run_order(6, 2)
    local_only = list(pipeline.training_batches(data, range(5)))
    torch.manual_seed(5)
    pipeline.num_workers = num_workers
    helped = list(pipeline.training_batches(data, range(5)))
    assert len(local_only) == len(helped) == 5
    for one, other in zip(local_only, helped, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["token_ids"], other["token_ids"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_split_comes_whole_in_its_order_or_shared(num_workers: int) -> None:
    pipeline = make(sources=("covid",))
    pipeline.num_workers = num_workers
    count = len(pipeline.records("train"))
    assert [row for batch in pipeline.loader("train", batch_size=2) for row in batch["record_index"].tolist()] == list(range(count))
    shares = [
        [batch["record_index"].tolist() for batch in pipeline.loader("train", batch_size=1, share=(at, 3))] for at in range(3)
    ]
    assert shares[1][:2] == [[1], [4]]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(count))


def test_reading_a_pair_leaves_the_random_state_alone() -> None:
    dataset = make(sources=("covid",)).dataset("train", is_training=True)
    torch.manual_seed(1)
    expected = torch.rand(())
    torch.manual_seed(1)
    image = dataset[Draw(0, 7)].values["image", "clean"]
    assert torch.rand(()) == expected
    assert torch.equal(dataset[Draw(0, 7)].values["image", "clean"], image)
    assert not torch.equal(dataset[Draw(0, 8)].values["image", "clean"], image)


def test_the_tokenizer_learns_from_the_training_split_alone() -> None:
    pipeline = make(sources=("vqarad", "hannover"))
    pipeline.fit_tokenizer()
    assert pipeline.tokenizer.fitted_on == [record.text for record in pipeline.records("train")]


def test_kept_images_are_read_once_and_stay_large_enough(tmp_path: Path) -> None:
    record = make(sources=("vqarad",)).records("train")[0]
    copy = tmp_path / "study.jpg"
    copy.write_bytes(record.image_path.read_bytes())
    reader = SampleReader(InputSpec(cache_images=True), PLAN, is_training=True)
    dataset = RecordDataset([attrs.evolve(record, image_path=copy)], reader)
    torch.manual_seed(0)
    before = dataset[0].values["image", "clean"]
    copy.unlink()
    torch.manual_seed(0)
    assert torch.equal(dataset[0].values["image", "clean"], before)
    (kept,) = dataset._kept.values()
    assert min(kept.values.shape) == reader.least_side("image")


@pytest.mark.parametrize("is_training", [True, False])
def test_keeping_images_changes_hardly_anything(is_training: bool) -> None:
    plain = make(sources=("covid",)).dataset("train", is_training=is_training)
    kept = make(InputSpec(cache_images=True), sources=("covid",)).dataset("train", is_training=is_training)
    for index in range(len(plain)):
        torch.manual_seed(index)
        expected = plain[index].values["image", "clean"]
        torch.manual_seed(index)
        assert (kept[index].values["image", "clean"] - expected).abs().mean() < 0.06  # 0.015 of the range of gray values


def test_an_unreadable_image_stops_with_its_path(tmp_path: Path) -> None:
    record = Record(id="a", image_path=tmp_path / "absent.png", text="Clear lungs.")
    pipeline = make(source=ListSource({"train": [record]}))
    with pytest.raises(DataError, match=r"MV501.*absent\.png: it does not exist") as local_only:
        next(iter(pipeline.training_batches(run_order(1, 1), range(1))))
    pipeline.num_workers = 1
    with pytest.raises(DataError) as helped:
        next(iter(pipeline.training_batches(run_order(1, 1), range(1))))
    assert helped.value.problems == local_only.value.problems
    assert str(helped.value) == str(local_only.value)


def test_a_tokenizer_that_fails_in_a_worker_says_why() -> None:
    class Unready(WordLengthTokenizer):
        def encode(self, texts: Sequence[str]) -> EncodedTexts:
            raise DataError(Problem(code="MV506", text="no vocabulary yet"))

    pipeline = make(sources=("covid",))
    pipeline = InputPipeline(pipeline.source, Unready(), InputSpec(), PLAN, num_workers=1)
    with pytest.raises(DataError) as caught:
        next(iter(pipeline.training_batches(run_order(6, 2), range(1))))
    assert str(caught.value) == "[MV506] no vocabulary yet"


def test_blank_texts_are_skipped() -> None:
    records = [Record(id=name, image_path=Path(name), text=text) for name, text in (("a", " \n"), ("b", "Clear."))]
    assert [record.id for record in make(source=ListSource({"train": records})).records("train")] == ["b"]


def test_loading_leaves_the_random_state_alone() -> None:
    pipeline = make(sources=("covid",))
    before = torch.get_rng_state()
    next(iter(pipeline.loader("train", batch_size=4)))
    order = DataOrder(count=len(pipeline.records("train")), batch_size=4, seed=0)
    next(iter(pipeline.training_batches(order, range(1))))
    assert torch.equal(torch.get_rng_state(), before)
