"""Fingerprints of records: what changes them, and what does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp_core.data.records import Record, fingerprint_records


def printed(**fields: Any) -> str:
    record = Record(id="a", image_path=Path("a.png"), text="Clear.", labels={"effusion": 0}, fields=fields)
    return fingerprint_records({"train": [record]})


def test_records_without_fields_keep_their_fingerprint() -> None:
    line = json.dumps(["train", "a", "Clear.", "report", [["effusion", 0]]]).encode() + b"\n"
    assert printed() == hashlib.sha256(line).hexdigest()


def test_fields_enter_by_value_and_paths_by_their_name() -> None:
    assert printed(heat=Path("/data/x/heat.npy")) == printed(heat=Path("heat.npy"))
    assert printed(heat=[Path("x/1.npy"), Path("x/2.npy")]) == printed(heat=[Path("1.npy"), Path("2.npy")])
    assert printed(a=1.0, b="x") == printed(b="x", a=1.0)
    every = [
        {},
        {"heat": Path("heat.npy")},
        {"heat": Path("other.npy")},
        {"heat": "heat.npy"},
        {"other": Path("heat.npy")},
        {"labels": [0, 1, None]},
        {"labels": [0, 1, float("nan")]},
        {"labels": None},
        {"labels": np.array([0, 1])},
        {"labels": np.array([[0, 1]])},
        {"labels": np.array([0.0, 1.0])},
        {"labels": np.array([0, 2])},
        {"findings": "Clear."},
        {"findings": ["Clear."]},
    ]
    assert len({printed(**fields) for fields in every}) == len(every)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_count_by_their_numbers_not_by_their_memory(order: str) -> None:
    numbers = np.arange(12).reshape(3, 4)
    assert printed(x=np.asarray(numbers, order=order)) == printed(x=numbers)
    assert printed(x=numbers.T) != printed(x=numbers)
    assert printed(x=np.float32(3)) == printed(x=np.array(3, dtype=np.float32))
