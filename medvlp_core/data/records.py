"""What data sources have in common: records by split, their fingerprint, and the error for a split that is not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from medvlp_core.errors import DataError, Problem
from medvlp_core.interfaces import DataSource, Record


class RecordsBySplit(DataSource):
    """A data source that has all its records at hand. Abstract: ``__init__`` is left open, and fills ``_records``."""

    _records: dict[str, list[Record]]

    def splits(self) -> tuple[str, ...]:
        """The splits, in the order in which ``__init__`` made them."""
        return tuple(self._records)

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


def fingerprint_records(records: Mapping[str, Sequence[Record]]) -> str:
    """SHA-256 over ids, texts, labels and splits. Pixels and folders are left out: moving the data does not change it."""
    digest = hashlib.sha256()
    for split, rows in records.items():
        for row in rows:
            line = json.dumps([split, row.id, row.text, row.text_kind, sorted(row.labels.items())])
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def no_such_split(split: str, counts: Mapping[str, int]) -> DataError:
    """The error for an unknown split, with the ones that exist."""
    return DataError(Problem(code="MV503", text=f"there is no split {split!r}", hint=f"splits that exist: {list_splits(counts)}"))


def list_splits(counts: Mapping[str, int]) -> str:
    """``train (695), val (101)``."""
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"
