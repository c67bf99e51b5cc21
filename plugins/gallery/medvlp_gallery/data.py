"""The gallery's made-up data: phantoms of chests with fields of every kind, and volumes with masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvlp_core import DataError, Dims, Problem
from medvlp_core.data import Record, RecordsBySplit
from medvlp_gallery.specs.data import CLASSES, FINDINGS, PhantomSpec, VolumesSpec

Pixels = NDArray[np.float64]
SIDES = ("left", "right")
#: Which field a text is: the record's own.
TEXT = "text"


def _counts(records: int) -> dict[str, int]:
    return {"train": records, "val": max(1, records // 3)}


class Phantoms(RecordsBySplit):
    """Made-up chests, ``I = base + sum_f size_f blob_f``; blob_f is a Gaussian where that is above 0.05, else 0.

    A heat map is the largest of the blobs at each pixel; gaze has the blob of its sentence, and 0 where the sentence denies a
    finding. The prior image lacks the last finding. Every fourth text says nothing of the last finding, so that text labels and
    image labels differ; every fifth cell of a table is unknown. All from the numbers of the record: the same in every process.
    """

    def __init__(self, spec: PhantomSpec, dims: Dims) -> None:
        self.spec = spec
        self.files = sorted(path for path in Path(spec.folder).rglob("*") if _is_picture(path)) if spec.folder else []
        if spec.folder and not self.files:
            raise DataError(Problem(code="MV501", text=f"{spec.folder} holds no PNG or JPEG", hint="null = drawn chests"))
        counts = enumerate(_counts(spec.records).items())
        self._records = {split: [self._record(at, split, number) for number in range(count)] for at, (split, count) in counts}

    def _record(self, at: int, split: str, number: int) -> Record:
        draws = np.random.default_rng([at, number])
        base, lungs = self._base(len(self.files) and (2 * number + at) % len(self.files), draws)
        is_there = draws.random(len(FINDINGS)) < 0.6
        sides = draws.integers(2, size=len(FINDINGS))
        sizes = draws.uniform(0.5, 1.0, size=len(FINDINGS))
        blobs = [self._blob(f, int(sides[f]), draws) * is_there[f] for f in range(len(FINDINGS))]
        told = len(FINDINGS) - (number % 4 == 3)
        sentences = [
            f"{name} in the {SIDES[side]} lung." if there else f"no {name}."
            for name, side, there in zip(FINDINGS[:told], sides, is_there, strict=False)
        ]
        table = [*draws.uniform(0, 1, size=3), *(sizes * is_there)]
        labels = [float(one) for one in is_there]
        fields: dict[str, Any] = {
            "image": _gray(base + sum(size * blob for size, blob in zip(sizes, blobs, strict=True))),
            "heatmap": np.max(blobs, axis=0).astype(np.float32),
            "gaze": np.stack(blobs[:told]).astype(np.float32),
            "sentences": sentences,
            "labels": labels,
            "text_labels": [one if f < told else 0.0 for f, one in enumerate(labels)],
            "prior": _gray(base + sum(size * blob for size, blob in zip(sizes[:-1], blobs[:-1], strict=True))),
            "lungs": lungs,
            "table": [None if (number + cell) % 5 == 4 else round(float(one), 4) for cell, one in enumerate(table)],
        }
        lacks = self.spec.absent if number % 3 == 2 else ()
        return Record(
            id=f"{split}-{number}",
            text="" if TEXT in lacks else " ".join(sentences),
            text_kind="template",
            fields={name: value for name, value in fields.items() if name not in lacks},
        )

    def _base(self, at: int, draws: np.random.Generator) -> tuple[Pixels, NDArray[np.bool_]]:
        """A picture in 0..1, and where its lungs are: of a real picture, where they usually are."""
        left, right = (self._ellipse(0.5, 0.5 + side * 0.2, 0.3, 0.14) for side in (-1, 1))
        lungs = (left + right) > 0
        if self.files:
            with Image.open(self.files[at]) as picture:
                gray = picture.convert("L").resize((self.spec.size, self.spec.size))
            return np.asarray(gray, dtype=np.float64) / 255, lungs
        body = 0.6 * (self._ellipse(0.55, 0.5, 0.45, 0.42) > 0)
        noise = 0.05 * draws.random((self.spec.size, self.spec.size))
        return np.where(lungs, 0.25, body) + noise, lungs

    def _ellipse(self, row: float, column: float, height: float, width: float) -> Pixels:
        """Positive inside."""
        rows, columns = np.mgrid[: self.spec.size, : self.spec.size] / self.spec.size
        result: Pixels = (1 - ((rows - row) / height) ** 2 - ((columns - column) / width) ** 2).clip(min=0)
        return result

    def _blob(self, finding: int, side: int, draws: np.random.Generator) -> Pixels:
        """A Gaussian in the upper, middle or lower part of a lung."""
        rows, columns = np.mgrid[: self.spec.size, : self.spec.size] / self.spec.size
        row, column = 0.3 + 0.2 * finding + draws.uniform(-0.04, 0.04), (0.7, 0.3)[side] + draws.uniform(-0.04, 0.04)
        blob = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 0.06**2))
        result: Pixels = np.where(blob > 0.05, blob, 0.0)
        return result


class Volumes(RecordsBySplit):
    """An ellipsoid (class 1) with a ball in it (class 2) on a dark ground, with noise; the mask of all but some is left out."""

    def __init__(self, spec: VolumesSpec, dims: Dims) -> None:
        self.spec = spec
        counts = enumerate(_counts(spec.records).items())
        self._records = {split: [self._record(at, split, number) for number in range(count)] for at, (split, count) in counts}

    def _record(self, at: int, split: str, number: int) -> Record:
        draws = np.random.default_rng([at, number])
        centre = 0.5 + draws.uniform(-0.1, 0.1, size=3)
        grid = np.mgrid[: self.spec.size, : self.spec.size, : self.spec.size] / self.spec.size
        away = grid - centre[:, None, None, None]
        organ = (away**2 / np.array([0.35, 0.3, 0.3])[:, None, None, None] ** 2).sum(axis=0) < 1
        lesion = ((away - draws.uniform(-0.1, 0.1, size=(3, 1, 1, 1))) ** 2).sum(axis=0) < 0.13**2
        organs = organ.astype(np.int64) + (organ & lesion)
        volume = np.array([0.1, 0.4, 0.8])[organs] + 0.1 * draws.random(organs.shape)
        fields: dict[str, Any] = {"image": _gray(volume), "prompts": list(CLASSES)}
        if split != "train" or number % self.spec.labelled_every == 0:
            fields["organs"] = organs
        return Record(id=f"{split}-{number}", text_kind="none", fields=fields)


def _gray(pixels: Pixels) -> NDArray[np.uint8]:
    return (pixels.clip(0, 1) * 255).astype(np.uint8)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (".png", ".jpg", ".jpeg")
