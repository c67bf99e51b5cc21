"""The embedded sample set as a data source."""

from __future__ import annotations

from typing import Any

from medvlp_core import Dims
from medvlp_core.data import Record, RecordsBySplit
from medvlp_open_cxr.manifest import DATA, SPLITS, read_rows
from medvlp_open_cxr.specs import OpenCxrPairsSpec


class OpenCxrPairs(RecordsBySplit):
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
