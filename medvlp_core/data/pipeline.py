"""From a data source to batches: which records count as pairs, reading, transforming, tokenising, loading."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medvlp_core.data.images import GrayArray, read_gray, reduce_to
from medvlp_core.data.order import DataOrder, Draw, Share
from medvlp_core.data.records import DataSource, Record, list_splits, no_such_split
from medvlp_core.data.tokenizer import Tokenizer
from medvlp_core.data.transforms import ImageTransform, InputGeometry
from medvlp_core.errors import DataError, MedvlpError, Problem
from medvlp_core.nn.batch import Batch
from medvlp_core.spec.blocks import InputSpec

__all__ = ["BatchLoader", "ImageTextDataset", "ImageTextItem", "InputGeometry", "InputPipeline"]


class ImageTextItem(NamedTuple):
    """One pair, before it is tokenised.

    Shape:
        image: (C, H, W). image_target: (C, Ht, Wt) or None. record_index: row of the record in its split.
    """

    image: Tensor
    image_target: Tensor | None
    text: str
    record_index: int


class ImageTextDataset(Dataset[ImageTextItem]):
    """Reads and transforms the image of a record when it is asked for.

    With ``keeps_images`` the decoded pixels stay in memory, scaled down to what the smallest crop needs. Each data loader process
    keeps its own.
    """

    def __init__(self, records: Sequence[Record], transform: ImageTransform, *, keeps_images: bool = False) -> None:
        self.records = records
        self.transform = transform
        self._kept: dict[int, GrayArray] | None = {} if keeps_images else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | Draw) -> ImageTextItem:
        """Read one pair. Its crop is drawn from the seed of a :class:`Draw`, or from torch's global random state.

        Raises:
            DataError: the image cannot be read (MV501).
        """
        if isinstance(key, int):
            return self._item(key)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key.seed)  # not torch.manual_seed, which would seed GPUs too
            return self._item(key.row)

    def _item(self, index: int) -> ImageTextItem:
        image, image_target = self.transform(self._read(index))
        return ImageTextItem(image=image, image_target=image_target, text=self.records[index].text, record_index=index)

    def _read(self, index: int) -> GrayArray:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        values = read_gray(self.records[index].image_path, at_least=self.transform.least_side)
        if self._kept is not None:
            self._kept[index] = values = reduce_to(values, self.transform.least_side)
        return values


class Collate:
    """Stacks images and tokenises texts. A class, not a closure, so that it can be sent to data loader processes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, items: Sequence[ImageTextItem]) -> Batch:
        """Make one batch."""
        targets = [item.image_target for item in items if item.image_target is not None]
        tokens = self.tokenizer.encode([item.text for item in items])
        return {
            "image": torch.stack([item.image for item in items]),
            **({"image_target": torch.stack(targets)} if targets else {}),
            **tokens._asdict(),
            "record_index": torch.tensor([item.record_index for item in items]),
        }


class BatchSource(Dataset[ImageTextItem]):
    """Makes whole batches for a data loader, and hands our errors on instead of raising them.

    torch rebuilds an exception that leaves a data loader process from its text and traceback; its problems would be lost.
    """

    def __init__(self, dataset: ImageTextDataset, collate: Collate) -> None:
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
    """Everything between a data source and the model. Records without a text are skipped: they are no pairs.

    ``num_workers`` processes read and transform images; they change nothing in what comes.
    """

    def __init__(
        self, source: DataSource, tokenizer: Tokenizer, inputs: InputSpec, geometry: InputGeometry, *, num_workers: int = 0
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.inputs = inputs
        self.geometry = geometry
        self.num_workers = num_workers
        self._records: dict[str, list[Record]] = {}
        self._datasets: dict[tuple[str, bool], ImageTextDataset] = {}

    def records(self, split: str) -> list[Record]:
        """The pairs of a split: records with a text of an allowed kind (``inputs.text_kinds``), in the source's order.

        Raises:
            DataError: the split does not exist or has no pairs (MV503).
        """
        if split not in self._records:
            if split not in self.source.splits():
                raise no_such_split(split, self._counts())
            records = [record for record in self.source.records(split) if self._is_pair(record)]
            if not records:
                raise self._no_pairs(split)
            self._records[split] = records
        return self._records[split]

    def dataset(self, split: str, *, is_training: bool) -> ImageTextDataset:
        """The pairs of a split as tensors. The same object at every call, so that kept images are read once."""
        key = (split, is_training)
        if key not in self._datasets:
            transform = ImageTransform(self.inputs, self.geometry, is_training=is_training)
            self._datasets[key] = ImageTextDataset(self.records(split), transform, keeps_images=self.inputs.cache_images)
        return self._datasets[key]

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

    def _loader(self, dataset: ImageTextDataset, batches: Iterable[list[Any]], *, is_pinned: bool = False) -> BatchLoader:
        return BatchLoader(
            DataLoader(
                BatchSource(dataset, Collate(self.tokenizer)),
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
        """Let the tokenizer learn its vocabulary from the texts of the training split."""
        self.tokenizer.fit([record.text for record in self.records("train")])

    def _is_pair(self, record: Record) -> bool:
        kinds = self.inputs.text_kinds
        return bool(record.text.strip()) and (kinds is None or record.text_kind in kinds)

    def _counts(self) -> dict[str, int]:
        return {split: sum(map(self._is_pair, self.source.records(split))) for split in self.source.splits()}

    def _no_pairs(self, split: str) -> DataError:
        records = self.source.records(split)
        kinds = Counter(record.text_kind for record in records if record.text.strip())
        found = ", ".join(f"{kind} ({count})" for kind, count in kinds.items()) or "none"
        details = [f"it has {len(records)} records; texts by kind: {found}"]
        if self.inputs.text_kinds is not None:
            details.append(f"inputs.text_kinds allows {', '.join(self.inputs.text_kinds) or 'nothing'}")
        hint = f"splits by their number of pairs: {list_splits(self._counts())}"
        return DataError(Problem(code="MV503", text=f"split {split!r} has no image-text pairs", details=tuple(details), hint=hint))
