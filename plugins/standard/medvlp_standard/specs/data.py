"""Specs of the standard data. Light."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param


@component("standard.manifest", role=Role.DATA, build="medvlp_standard.manifest:ManifestSource")
@attrs.frozen(kw_only=True)
class ManifestSpec(ComponentSpec):
    """Your own images and texts, listed in a CSV or JSONL file with one image-text pair a row.

    The text is one column, or findings and impression in two columns that are joined. Every row is checked before training
    starts, and all problems are reported at once.
    """

    path: str = param(help="the manifest, .csv or .jsonl, UTF-8; relative to the folder that the command runs in", is_path=True)
    image_root: str | None = param(
        None, help="folder that relative image paths start from; null = the manifest's folder", is_path=True
    )
    image_column: str = param("image", help="column with the path of a PNG or JPEG, 8 or 16 bit")
    text_column: str = param("text", help="column with the text")
    findings_column: str = param("findings", help="column with the findings; used if there is no text column")
    impression_column: str = param("impression", help="column with the impression; used if there is no text column")
    split_column: str = param("split", help="column with the split: train, val, test or any other name")
    id_column: str | None = param(None, help="column with a unique id; null = `id` if there is one, else the image path")
    patient_column: str | None = param(
        None, help="column with the patient, to check that no patient is in two splits; null = `patient_id` if there is one"
    )
    label_columns: tuple[str, ...] | None = param(
        None, help="columns with labels 0 or 1, blank = unknown; null = those that start with label_, and a JSONL `labels` object"
    )
    text_kind: str = param(
        "report",
        help="where the texts come from; none = images without texts, the text columns are not read",
        one_of=("report", "clinical_note", "qa", "template", "none"),
    )

    def contract(self) -> Contract:
        """Nothing: the input pipeline turns records into tensors."""
        return Contract()

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """The file's kind is known by its ending."""
        if not self.path.lower().endswith((".csv", ".jsonl")):
            yield "path", f"path={self.path!r} is neither .csv nor .jsonl", "save the manifest as CSV, or as JSON lines"

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """A few drawn chests that lie in this package: a CSV of reports, and JSON lines with labels in columns of their own."""
        folder = Path(__file__).parent.parent / "example_data"
        return (
            cls(path=str(folder / "studies.csv")),
            cls(path=str(folder / "studies.jsonl"), label_columns=("Pneumonia",), text_kind="template"),
        )


SPECS: tuple[type[ComponentSpec], ...] = (ManifestSpec,)
