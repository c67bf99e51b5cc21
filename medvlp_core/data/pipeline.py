"""From a data source to batches: which records count as pairs, reading, transforming, tokenising, loading."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from medvlp_core.batch import ImageTextBatch
from medvlp_core.blocks import InputSpec
from medvlp_core.data.images import GrayArray, read_gray, reduce_to
from medvlp_core.data.records import list_splits, no_such_split
from medvlp_core.data.transforms import ImageTransform, InputGeometry
from medvlp_core.errors import DataError, MedvlpError, Problem
from medvlp_core.interfaces import DataSource, Record, Tokenizer

if TYPE_CHECKING:
    from torchdata.stateful_dataloader import StatefulDataLoader

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

    def __getitem__(self, index: int) -> ImageTextItem:
        """Read one pair.

        Raises:
            DataError: the image cannot be read (MV501).
        """
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

    def __call__(self, items: Sequence[ImageTextItem]) -> ImageTextBatch:
        """Make one batch."""
        targets = [item.image_target for item in items if item.image_target is not None]
        tokens = self.tokenizer.encode([item.text for item in items])
        return ImageTextBatch(
            image=torch.stack([item.image for item in items]),
            image_target=torch.stack(targets) if targets else None,
            token_ids=tokens.token_ids,
            text_is_valid=tokens.text_is_valid,
            word_ids=tokens.word_ids,
            record_index=torch.tensor([item.record_index for item in items]),
        )


class BatchSource(Dataset[ImageTextItem]):
    """Makes whole batches for a data loader, and hands our errors on instead of raising them.

    torch rebuilds an exception that leaves a data loader process from its text and traceback; its problems would be lost.
    """

    def __init__(self, dataset: ImageTextDataset, collate: Collate) -> None:
        self.dataset = dataset
        self.collate = collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> ImageTextBatch | MedvlpError:
        """The batch of some pairs, or the error that kept it from being made. torch calls this, if there is one, for a batch."""
        try:
            return self.collate([self.dataset[index] for index in indices])
        except MedvlpError as error:
            return error


def _as_it_is(batch: ImageTextBatch | MedvlpError) -> ImageTextBatch | MedvlpError:
    return batch


class BatchLoader:
    """Batches of one split, epoch after epoch. An error in a data loader process is raised here as it was there."""

    def __init__(self, loader: StatefulDataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        """Batches of one epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[ImageTextBatch]:
        """The batches of one epoch.

        Raises:
            DataError: an image cannot be read (MV501), or the tokenizer fails (MV506).
        """
        for batch in self._loader:
            if isinstance(batch, MedvlpError):
                raise batch
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch, for :meth:`load_state_dict`."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader of the same split stopped."""
        self._loader.load_state_dict(state)


class InputPipeline:
    """Everything between a data source and the model. Records without a text are left out: they are no pairs."""

    def __init__(self, source: DataSource, tokenizer: Tokenizer, inputs: InputSpec, geometry: InputGeometry) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.inputs = inputs
        self.geometry = geometry
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

    def loader(self, split: str, *, batch_size: int, is_training: bool, seed: int = 0, workers: int = 0) -> BatchLoader:
        """Batches of a split; the loader's ``state_dict`` resumes in the middle of an epoch.

        Training: in an order drawn from ``seed``, new in every epoch; an incomplete last batch is dropped.
        Evaluation: all pairs in the order of :meth:`records`. Crops are drawn from torch's global random state.
        """
        from torchdata.stateful_dataloader import StatefulDataLoader  # slow to import

        dataset = self.dataset(split, is_training=is_training)
        with warnings.catch_warnings():
            # torchdata 0.11 calls a function of torch that newer versions warn about; a user can do nothing about it
            warnings.filterwarnings("ignore", message=".*set_vital", category=UserWarning)
            loader = StatefulDataLoader(
                BatchSource(dataset, Collate(self.tokenizer)),
                batch_size=batch_size,
                shuffle=is_training,
                drop_last=is_training,
                generator=torch.Generator().manual_seed(seed),
                collate_fn=_as_it_is,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
        return BatchLoader(loader)

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
