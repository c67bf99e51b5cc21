"""The embedded sample set as a data source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medvlp_core.data.records import fingerprint_records, no_such_split
from medvlp_core.interfaces import DataSource, Dims, Record
from medvlp_open_cxr.manifest import DATA, SPLITS, read_rows
from medvlp_open_cxr.specs import OpenCxrPairsSpec


class OpenCxrPairs(DataSource):
    """Records of the chosen sources, in the order of the shipped manifest.

    Example:
        >>> source = OpenCxrPairs(OpenCxrPairsSpec(sources=("nih",)), {})
        >>> [len(source.records(split)) for split in source.splits()]
        [695, 101, 204]
    """

    def __init__(self, spec: OpenCxrPairsSpec, dims: Dims) -> None:
        self._records: dict[str, list[Record]] = {split: [] for split in SPLITS}
        for row in read_rows():
            if row["source"] in spec.sources:
                self._records[row["split"]].append(_record(row, spec.sections))

    def splits(self) -> tuple[str, ...]:
        """``train``, ``val`` and ``test``."""
        return SPLITS

    def records(self, split: str) -> Sequence[Record]:
        """The records of one split.

        Raises:
            DataError: the split does not exist (MV503).
        """
        if split not in self._records:
            raise no_such_split(split, {name: len(records) for name, records in self._records.items()})
        return self._records[split]

    def fingerprint(self) -> str:
        """SHA-256 over ids, texts, labels and splits."""
        return fingerprint_records(self._records)


def _record(row: dict[str, Any], sections: str) -> Record:
    # Only the template texts have sections; notes and question-answer pairs are taken whole.
    text = row["text"] if sections == "all" or row["sections"] is None else row["sections"][sections]
    return Record(
        id=row["id"],
        image_path=DATA / row["image"],
        text=text,
        text_kind=row["text_kind"],
        labels=row["labels"],
        patient_id=row["patient_id"],
    )
