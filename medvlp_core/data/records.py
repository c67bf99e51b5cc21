"""What a data source is: records by split, their fingerprint, and the error for a split that is not there."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import attrs
import numpy as np

from medvlp_core.errors import DataError, Problem
from medvlp_core.spec.contract import Dims


@attrs.frozen(kw_only=True)
class Record:
    """One image with its text, as a data source gives it; either may be missing.

    ``labels`` maps a label's name to 0 or 1 (a missing name = unknown). ``text_kind`` says where the text comes from:
    ``report`` or ``clinical_note`` (written by clinicians), ``qa`` (clinicians' question-answer pairs), ``template`` (made from
    labels), ``none``.

    ``fields`` holds whatever else the sample has, by the names that the data component's contract declares: paths, arrays, lists
    of numbers, texts; None or a missing name is absent. Files are :class:`Path` objects: a string is a text, and enters the
    fingerprint whole.
    """

    id: str
    image_path: Path | None = None
    text: str = ""
    text_kind: str = "report"
    labels: Mapping[str, int] = attrs.field(factory=dict)
    patient_id: str | None = None
    fields: Mapping[str, Any] = attrs.field(factory=dict)


class DataSource(ABC):
    """Records by split. Reading and transforming pixels is the input pipeline's work (medvlp_core.data)."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None: ...

    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that exist, e.g. ``("train", "val", "test")``."""

    @abstractmethod
    def records(self, split: str) -> Sequence[Record]:
        """The records of one split, always in the same order.

        Raises:
            DataError: the split does not exist (MV503).
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash over ids, texts, labels, fields and splits; it is written into the run folder."""


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
        """SHA-256 over ids, texts, labels, fields and splits."""
        return fingerprint_records(self._records)


def fingerprint_records(records: Mapping[str, Sequence[Record]]) -> str:
    """SHA-256 over ids, texts, labels, fields and splits. Pixels and folders are left out: moving the data does not change it.

    Of a field, a path counts by its name, an array by its dtype, shape and bytes.
    """
    digest = hashlib.sha256()
    for split, rows in records.items():
        for row in rows:
            line = [split, row.id, row.text, row.text_kind, sorted(row.labels.items())]
            if row.fields:
                line.append([[name, _printable(value)] for name, value in sorted(row.fields.items())])
            digest.update(json.dumps(line).encode() + b"\n")
    return digest.hexdigest()


def _printable(value: Any) -> Any:
    """A field's value as JSON holds it."""
    if isinstance(value, PurePath):
        return {"file": value.name}
    if isinstance(value, list | tuple):
        return [_printable(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _printable(one) for key, one in value.items()}
    if hasattr(value, "__array__"):
        array = np.ascontiguousarray(value)
        if array.dtype.kind == "O":  # its bytes are addresses
            return _printable(array.tolist())
        return {str(array.dtype): [*np.shape(value)], "bytes": hashlib.sha256(array.tobytes()).hexdigest()}
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def no_such_split(split: str, counts: Mapping[str, int]) -> DataError:
    """The error for an unknown split, with the ones that exist."""
    return DataError(Problem(code="MV503", text=f"there is no split {split!r}", hint=f"splits that exist: {list_splits(counts)}"))


def list_splits(counts: Mapping[str, int]) -> str:
    """``train (695), val (101)``."""
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"
