"""Drawn chests with texts: real files, made once a process in a temporary folder that goes when the process ends."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from medvlp_core import Dims
from medvlp_core.data import Record, RecordsBySplit
from medvlp_core.testing.stub_components.specs import PairsSpec

#: What can be drawn: label, text if it is there, text if it is not.
FINDINGS = (
    ("Cardiomegaly", "The heart is large.", "The heart is of normal size."),
    ("Effusion", "There is a pleural effusion on the {side}.", "No pleural effusion."),
    ("Pneumonia", "Opacity in the {side} lung, pneumonia.", "The lungs are clear."),
)
SPLITS = ("train", "train", "train", "val", "test")


class Pairs(RecordsBySplit):
    """Two images of each patient; every fifth patient is held out for ``val``, every fifth for ``test``."""

    def __init__(self, spec: PairsSpec, dims: Dims) -> None:
        folder = _drawn(spec.patients, spec.side)
        self._records: dict[str, list[Record]] = {split: [] for split in dict.fromkeys(SPLITS)}
        for index in range(2 * spec.patients):
            patient = index // 2
            self._records[SPLITS[patient % len(SPLITS)]].append(_record(index, patient, folder))


def _labels(index: int) -> dict[str, int]:
    """Every combination of findings in turn."""
    return {name: index >> bit & 1 for bit, (name, _, _) in enumerate(FINDINGS)}


def _side(index: int) -> str:
    return "left" if index % 3 else "right"


def _record(index: int, patient: int, folder: Path) -> Record:
    labels = _labels(index)
    said = [there if labels[name] else absent for name, there, absent in FINDINGS]
    return Record(
        id=f"chest-{index:03d}",
        image_path=folder / f"{index:03d}.png",
        text=" ".join(said).format(side=_side(index)),
        text_kind="template",
        labels=labels,
        patient_id=f"patient-{patient:03d}",
    )


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="medvlp-kit-")


@functools.cache
def _drawn(patients: int, side: int) -> Path:
    folder = Path(_folder().name) / f"{patients}-{side}"
    folder.mkdir()
    for index in range(2 * patients):
        _draw(index, side).save(folder / f"{index:03d}.png")
    return folder


def _draw(index: int, side: int) -> Image.Image:
    """Two lungs, a heart, and what the labels say; each image has a brightness of its own."""
    labels, unit = _labels(index), side / 16
    picture = Image.new("L", (side, side), 90 + index * 7 % 50)
    pen = ImageDraw.Draw(picture)

    def oval(left: float, top: float, right: float, bottom: float, gray: int) -> None:
        pen.ellipse([left * unit, top * unit, right * unit, bottom * unit], fill=gray)

    oval(1, 2, 7, 14, 30)
    oval(9, 2, 15, 14, 30)
    grown = 1.5 if labels["Cardiomegaly"] else 0.0
    oval(6 - grown, 7 - grown, 10 + grown, 13, 200)
    shift = 8 if _side(index) == "left" else 0  # the patient's left is on the right of a radiograph
    if labels["Effusion"]:
        pen.rectangle([(1 + shift) * unit, 11 * unit, (7 + shift) * unit, 14 * unit], fill=220)
    if labels["Pneumonia"]:
        oval(2 + shift, 3, 5 + shift, 6, 160)
    return picture
