"""From a data source to batches: which records count, reading, cutting, tokenising, loading."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from medvlp_core.data.images import Pixels
from medvlp_core.data.order import DataOrder, Draw, Share
from medvlp_core.data.records import DataSource, Record, list_splits, no_such_split
from medvlp_core.data.samples import Collate, Sample, SampleReader, reduced, value_of
from medvlp_core.data.tokenizer import Tokenizer
from medvlp_core.errors import DataError, MedvlpError, Problem, SpecError, did_you_mean
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.fields import LABELS, InputPlan
from medvlp_core.spec.blocks import InputSpec

__all__ = ["BatchLoader", "InputPipeline", "RecordDataset"]


class RecordDataset(Dataset[Sample]):
    """Reads a record's fields and cuts them when it is asked for.

    With ``inputs.cache_images`` the decoded pixels of its image stay in memory, scaled down to what the smallest crop needs. Each
    data loader process keeps its own.
    """

    def __init__(self, records: Sequence[Record], reader: SampleReader) -> None:
        self.records = records
        self.reader = reader
        self._kept: dict[int, Pixels] | None = {} if reader.inputs.cache_images else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | Draw) -> Sample:
        """Read one record. Its crops are drawn from the seed of a :class:`Draw`, or from torch's global random state.

        Raises:
            DataError: an image cannot be read (MV501), or a value is not one of its field (MV512).
        """
        if isinstance(key, int):
            return self._sample(key, None)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.seed)  # not torch.manual_seed, which would seed GPUs too
            return self._sample(key.row, key.seed)

    def _sample(self, row: int, seed: int | None) -> Sample:
        record = self.records[row]
        values = self.reader.read(record, None if self._kept is None else self._kept.get(row))
        if self._kept is not None and row not in self._kept and isinstance(values.get("image"), Pixels):
            side = self.reader.least_side("image")
            assert side is not None
            self._kept[row] = values["image"] = reduced(values["image"], side)
        return self.reader.cut(row, record, values, seed)


class BatchSource(Dataset[Sample]):
    """Makes whole batches for a data loader, and hands our errors on instead of raising them.

    torch rebuilds an exception that leaves a data loader process from its text and traceback; its problems would be lost.
    """

    def __init__(self, dataset: RecordDataset, collate: Collate) -> None:
        self.dataset = dataset
        self.collate = collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[int | Draw]) -> Batch | MedvlpError:
        """The batch of some pairs, or the error that kept it from being made. torch calls this, if there is one, for a batch."""
        try:
            return self.collate([self.dataset[key] for key in keys])
        except MedvlpError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes; the step that the main one wants to end still needs its batches."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class StepParts:
    """The keys of every forward pass of one process, step after step."""

    def __init__(self, order: DataOrder, steps: range, share: Share) -> None:
        self.order, self.steps, self.share = order, steps, share

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self.steps:
            yield from self.share.of(self.order.pairs(step))


class BatchLoader:
    """Batches, in this process or made by others. An error in a data loader process is raised here as it was there."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            DataError: an image cannot be read (MV501), or the tokenizer fails (MV506).
        """
        for batch in self._loader:
            if isinstance(batch, MedvlpError):
                raise batch
            yield batch


class InputPipeline:
    """Everything between a data source and the model. Records that lack a field which the model needs are skipped.

    ``plan`` says which fields are read and what is made of them; ``tokenizer`` may be None if none is a text. ``num_workers``
    processes read and cut; they change nothing in what comes.
    """

    def __init__(
        self, source: DataSource, tokenizer: Tokenizer | None, inputs: InputSpec, plan: InputPlan, *, num_workers: int = 0
    ) -> None:
        self.source = source
        self.inputs = inputs
        self.plan = plan
        self.num_workers = num_workers
        self._tokenizer = tokenizer
        self._records: dict[str, list[Record]] = {}
        self._datasets: dict[tuple[str, bool], RecordDataset] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            SpecError: the recipe has none (MV105).
        """
        if self._tokenizer is None:
            hint = "add `tokenizer: {use: standard.wordpiece}`"
            raise SpecError(Problem(code="MV105", text="the recipe has no `tokenizer` block", hint=hint))
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether the recipe has one."""
        return self._tokenizer is not None

    def narrowed(self, plan: InputPlan) -> InputPipeline:
        """The same data for other calls: which records count and what batches hold goes by ``plan``."""
        return InputPipeline(self.source, self._tokenizer, self.inputs, plan, num_workers=self.num_workers)

    def records(self, split: str) -> list[Record]:
        """The records of a split that have what the model needs, in the source's order; texts of a kind in ``inputs.text_kinds``.

        Raises:
            DataError: the split does not exist or has none (MV503).
            SpecError: ``inputs.labels`` names what no record of any split has (MV104).
        """
        if split not in self._records:
            if split not in self.source.splits():
                raise no_such_split(split, self._counts())
            self._check_labels()
            records = [record for record in self.source.records(split) if self._counts_as_one(record)]
            if not records:
                raise self._none_counts(split)
            self._records[split] = records
        return self._records[split]

    def dataset(self, split: str, *, is_training: bool) -> RecordDataset:
        """The records of a split as samples. The same object at every call, so that kept images are read once."""
        key = (split, is_training)
        if key not in self._datasets:
            self._datasets[key] = RecordDataset(self.records(split), SampleReader(self.inputs, self.plan, is_training=is_training))
        return self._datasets[key]

    def collate(self) -> Collate:
        """What makes a batch of samples."""
        return Collate(self.plan, self._tokenizer)

    def loader(self, split: str, *, batch_size: int, share: tuple[int, int] = (0, 1)) -> BatchLoader:
        """The pairs of a split in the order of :meth:`records`, cropped at the centre: for evaluation.

        ``share`` = (first, every): of the batches those with the numbers first, first + every, ...
        """
        rows = range(len(self.records(split)))
        batches = [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        return self._loader(self.dataset(split, is_training=False), batches[share[0] :: share[1]])

    def training_batches(
        self, order: DataOrder, steps: range, *, share: Share | None = None, is_pinned: bool = False
    ) -> BatchLoader:
        """The batches of some steps of the split ``train``, ``share.parts`` for each step (one by default).

        ``is_pinned``: in memory that a GPU copies from while it computes.
        """
        parts = StepParts(order, steps, share or Share())
        return self._loader(self.dataset("train", is_training=True), parts, is_pinned=is_pinned)

    def _loader(self, dataset: RecordDataset, batches: Iterable[list[Any]], *, is_pinned: bool = False) -> BatchLoader:
        return BatchLoader(
            DataLoader(
                BatchSource(dataset, self.collate()),
                batch_sampler=batches,
                collate_fn=_as_it_is,
                num_workers=self.num_workers,
                pin_memory=is_pinned,
                worker_init_fn=_leave_signals_to_the_main_process,
                # A loader draws a number when it starts. From torch's global state, that would shift the masks of the step it is,
                # and evaluators must leave it alone.
                generator=torch.Generator(),
            )
        )

    def fit_tokenizer(self) -> None:
        """Let the tokenizer learn its vocabulary from the texts of the training split that the model reads."""
        if self._tokenizer is not None:
            names = [name for name, field in self.plan.fields.items() if field.kind == "text"] or ["text"]
            values = (value_of(record, name) for record in self.records("train") for name in names)
            self._tokenizer.fit([text for value in values for text in _texts(value)])

    def _needs(self) -> list[str]:
        return [name for name, field in self.plan.fields.items() if name not in self.plan.may_lack and not field.is_constant]

    def _counts_as_one(self, record: Record) -> bool:
        kinds = self.inputs.text_kinds
        needs = self._needs()
        if "text" in needs and kinds is not None and record.text_kind not in kinds:
            return False
        return all(self._has(record, name) for name in needs)

    def _has(self, record: Record, name: str) -> bool:
        value = value_of(record, name, self.inputs.labels)
        is_told = name == LABELS and self.inputs.labels is not None  # every one of them
        return value is not None and not (is_told and None in value)

    def _counts(self) -> dict[str, int]:
        return {split: sum(map(self._counts_as_one, self.source.records(split))) for split in self.source.splits()}

    def _check_labels(self) -> None:
        if self.inputs.labels is None or LABELS not in self.plan.fields:
            return
        known = {label for split in self.source.splits() for record in self.source.records(split) for label in record.labels}
        problems = [
            Problem(
                code="MV104", text=f"inputs.labels: no record has a label {label!r}", hint=did_you_mean(label, known, what="labels")
            )
            for label in self.inputs.labels
            if label not in known
        ]
        if problems:
            raise SpecError(*problems)

    def what_counts(self) -> str:
        """What one record is called that has all that the model needs."""
        needs = self._needs()
        return (
            "image-text pairs" if {*needs} == {"image", "text"} else f"records with {' and '.join(needs)}" if needs else "records"
        )

    def _none_counts(self, split: str) -> DataError:
        records, needs = self.source.records(split), self._needs()
        is_pair = set(needs) == {"image", "text"}
        details = [f"it has {len(records)} records"]
        if "text" in needs:
            kinds = Counter(record.text_kind for record in records if record.text.strip())
            found = ", ".join(f"{kind} ({count})" for kind, count in kinds.items()) or "none"
            details = [f"{details[0]}; texts by kind: {found}"]
            if self.inputs.text_kinds is not None:
                details.append(f"inputs.text_kinds allows {', '.join(self.inputs.text_kinds) or 'nothing'}")
        if not is_pair:
            having = {name: sum(self._has(record, name) for record in records) for name in needs}
            details.append(f"records with {', '.join(f'{name}: {count}' for name, count in having.items())}")
        hint = f"splits by their number of {'pairs' if is_pair else 'such records'}: {list_splits(self._counts())}"
        text = f"split {split!r} has no {self.what_counts()}"
        return DataError(Problem(code="MV503", text=text, details=tuple(details), hint=hint))


def _texts(value: Any) -> list[str]:
    """The texts of a field, however they are nested."""
    if isinstance(value, str):
        return [value]
    return [text for one in value for text in _texts(one)] if isinstance(value, list | tuple) else []
