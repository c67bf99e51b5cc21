"""The shipped manifest and what it says about itself: sources, splits, texts, licences. Light: standard library only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

#: Folder with ``manifest.jsonl``, ``LICENSES.csv``, ``DATA.md`` and the images.
DATA = Path(__file__).parent / "data"
SOURCES = ("nih", "covid", "vqarad", "hannover")
SPLITS = ("train", "val", "test")

#: Where the texts of each kind come from.
TEXT_ORIGINS = {
    "clinical_note": "written by clinicians (notes published with the case)",
    "qa": "written by clinicians (question-answer pairs, joined for each image)",
    "template": "made from labels by a template; not a radiologist's report",
    "none": "no text",
}

WARNINGS = (
    "Not for diagnosis, and not for claims about clinical performance.",
    "The nih texts repeat the nih labels, and those were mined from reports by a program (about 90 % are right): "
    "a model that predicts words of these texts predicts labels.",
    "The nih sample is not matched: Pneumonia and No Finding also differ in patient number, view and brightness. "
    "Put the same measure on raw pixels and on a randomly initialised encoder beside every result.",
    "COVID-19 labels are per patient, not per image, and come from sources of their own: never train "
    "'COVID against normal' across sources, the source gives the answer away.",
    "The test split holds no clinical note.",
)


@cache
def read_rows() -> tuple[dict[str, Any], ...]:
    """Every row of the shipped manifest, in file order. Shared: do not change the rows."""
    lines = (DATA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def _patients(rows: Iterable[dict[str, Any]]) -> int:
    return len({row["patient_id"] for row in rows})


def describe() -> str:
    """Counts, origins of the texts, licences and warnings, as printed by ``medvlp show open_cxr.pairs``."""
    rows = read_rows()
    lines = [f"{len(rows):,} images of {_patients(rows):,} patients; no patient is in two splits"]
    lines += ["", "splits:"]
    for split in SPLITS:
        chosen = [row for row in rows if row["split"] == split]
        with_text = sum(row["text_kind"] != "none" for row in chosen)
        lines.append(f"  {split:<14} {len(chosen):>5,} images, {with_text:>5,} with text, {_patients(chosen):>4,} patients")
    lines += ["", "sources:"]
    for source in SOURCES:
        chosen = [row for row in rows if row["source"] == source]
        by_split = Counter(row["split"] for row in chosen)
        counts = ", ".join(f"{split} {by_split[split]}" for split in SPLITS)
        lines.append(f"  {source:<14} {len(chosen):>5,} images ({counts}), {_patients(chosen):>4,} patients")
        lines += [f"  {'':<14} {credit}" for credit in _credits(chosen)]
    lines += ["", "texts:"]
    for kind, count in Counter(row["text_kind"] for row in rows).most_common():
        lines.append(f"  {kind:<14} {count:>5,} {TEXT_ORIGINS[kind]}")
    lines += ["", "licences:"]
    for (name, url), count in Counter((row["license"], row["license_url"]) for row in rows).most_common():
        lines.append(f"  {name:<18} {count:>5,} {url}")
    lines += [
        "",
        "warnings:",
        *(f"  - {text}" for text in WARNINGS),
        "",
        "all credits: DATA.md and manifest.jsonl in the folder medvlp_open_cxr/data",
    ]
    return "\n".join(lines)


def _credits(rows: list[dict[str, Any]]) -> list[str]:
    """The attribution of a source; for several works, how many there are and where each is named."""
    names = Counter(row["attribution"] for row in rows)
    if len(names) <= 2:
        return list(names)
    return [f"{len(names)} works, named image by image in manifest.jsonl (attribution, source_url)"]
