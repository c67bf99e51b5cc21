"""Make ``medvlp_open_cxr/data`` from the open tier of the collection ``cxr-open-mini``. Run once; not installed.

    python plugins/open_cxr/make_data.py PATH/TO/cxr-open-mini

Takes every row of ``manifest.jsonl`` (1,369; the non-commercial rows have a manifest of their own, which is not read), checks the
image against its checksum, scales it down and writes it as 8-bit gray JPEG. The same collection and the same Pillow give the same
bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

MAX_SIDE = 352
QUALITY = 80
OUT = Path(__file__).parent / "medvlp_open_cxr" / "data"

#: Fields that go into the shipped manifest as they are.
KEPT = ("id", "source", "split", "image", "view", "patient_id", "group_id", "text", "text_kind", "sections", "labels")
LICENCE_FIELDS = ("license", "license_tier", "license_url", "source_url", "attribution")


def open_rows(collection: Path) -> Iterator[dict[str, Any]]:
    """Rows of the open manifest.

    Raises:
        ValueError: a row is not openly licensed, or its image lies among the non-commercial ones.
    """
    for line in (collection / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["license_tier"] != "open" or Path(row["image"]).parts[0] != "images":
            raise ValueError(f"{row['id']} is not of the open tier: {row['license']}, {row['image']}")
        yield row


def shrink(source: Path, target: Path, expected_sha256: str) -> str:
    """Write a smaller copy of one image (never a larger one) and return the copy's SHA-256."""
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    if found != expected_sha256:
        raise ValueError(f"{source} has SHA-256 {found}, the manifest says {expected_sha256}")
    with Image.open(source) as opened:
        image = opened.convert("L")
    factor = MAX_SIDE / max(image.size)
    if factor < 1:
        image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, "JPEG", quality=QUALITY, optimize=True)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def write_licences(collection: Path, used: set[str]) -> None:
    """Copy the lines of LICENSES.csv that the shipped rows use."""
    with (collection / "LICENSES.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["license"] in used]
    if missing := used - {row["license"] for row in rows}:
        raise ValueError(f"LICENSES.csv does not describe {sorted(missing)}")
    with (OUT / "LICENSES.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Make the images, the manifest and the licence table; DATA.md is written by hand and stays."""
    parser = argparse.ArgumentParser(description="make medvlp_open_cxr/data from the collection cxr-open-mini")
    parser.add_argument("collection", type=Path, help="folder of the collection, with manifest.jsonl")
    collection = parser.parse_args().collection
    shutil.rmtree(OUT / "images", ignore_errors=True)
    rows = []
    for row in open_rows(collection):
        kept = {name: row[name] for name in (*KEPT, *LICENCE_FIELDS)}
        kept["sha256"] = shrink(collection / row["image"], OUT / row["image"], row["sha256"])
        rows.append(kept)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (OUT / "manifest.jsonl").write_bytes("".join(lines).encode("utf-8"))
    write_licences(collection, {row["license"] for row in rows})
    size = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{len(rows)} images, {size / 1e6:.1f} MB in {OUT.name}/")


if __name__ == "__main__":
    main()
