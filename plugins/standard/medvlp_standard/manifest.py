"""A user's own files as a data source: a manifest is read and checked as a whole before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvlp_core import DataError, Dims, Position, Problem, did_you_mean
from medvlp_core.data import Record, RecordsBySplit
from medvlp_standard.manifest_file import Row, Table, read_table, row_problem
from medvlp_standard.specs.data import ManifestSpec

#: Problems that are printed; a wrong image folder would otherwise print one for every row.
SHOWN_PROBLEMS = 20
#: First bytes of a PNG and of a JPEG file.
IMAGE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
LABEL_PREFIX = "label_"
LABEL_OBJECT = "labels"
_USUAL_SPLITS = ("train", "val", "test")


class ManifestSource(RecordsBySplit):
    """Records of a CSV or JSONL manifest.

    Raises:
        DataError: with every problem of the file (the first 20, then how many more): MV502 for columns, lines, ids, labels, splits
            and patients, MV501 for image files that are missing, empty or of another kind, MV504 for empty texts.
    """

    def __init__(self, spec: ManifestSpec, dims: Dims) -> None:
        path = Path(spec.path)
        problems: list[Problem] = []
        table = read_table(path, problems)
        found = ManifestReader(spec, path, table, problems).records() if table.rows else []
        if problems:
            raise DataError(*shown_problems(problems, path))
        order = list(dict.fromkeys(split for split, _ in found))
        order.sort(key=lambda split: _USUAL_SPLITS.index(split) if split in _USUAL_SPLITS else len(_USUAL_SPLITS))
        self._records: dict[str, list[Record]] = {split: [] for split in order}
        for split, record in found:
            self._records[split].append(record)


def shown_problems(problems: list[Problem], path: Path) -> list[Problem]:
    """The first problems in file order, and one that counts the rest."""
    ordered = sorted(problems, key=lambda problem: problem.position.line if problem.position else 0)
    rest = len(ordered) - SHOWN_PROBLEMS
    if rest <= 0:
        return ordered
    more = Problem(code="MV502", text=f"and {rest} more problem{'s' if rest > 1 else ''}", position=Position(str(path)))
    return [*ordered[:SHOWN_PROBLEMS], more]


class ManifestReader:
    """Turns rows into records and collects what is wrong with them."""

    def __init__(self, spec: ManifestSpec, path: Path, table: Table, problems: list[Problem]) -> None:
        self.spec = spec
        self.path = path
        self.table = table
        self.problems = problems
        self.image_root = Path(spec.image_root) if spec.image_root is not None else path.parent
        self.text_columns = self._text_columns()
        self.id_column = spec.id_column or self._if_there("id")
        self.patient_column = spec.patient_column or self._if_there("patient_id")
        self.label_columns = self._label_columns()
        self._given_hints: set[str] = set()

    def records(self) -> list[tuple[str, Record]]:
        """``(split, record)`` of every row; empty if a column is missing."""
        if not self._check_columns():
            return []
        found: list[tuple[str, Record]] = []
        ids: dict[str, int] = {}
        for row in self.table.rows:
            record = self._record(row)
            found.append((self._split(row), record))
            first = ids.setdefault(record.id, row.line)
            if first != row.line:
                hint = "ids must be unique" if self.id_column else "images with several texts need a column `id`"
                self._add(row, "MV502", f"id {record.id!r} is already used in line {first}", hint)
        self._check_patients(found)
        return found

    def _check_patients(self, found: list[tuple[str, Record]]) -> None:
        """Report each patient whose studies are in more than one split."""
        seen: dict[str, tuple[str, int]] = {}
        leaking: set[str] = set()
        for row, (split, record) in zip(self.table.rows, found, strict=True):
            if record.patient_id is None or record.patient_id in leaking:
                continue
            other, line = seen.setdefault(record.patient_id, (split, row.line))
            if other != split:
                leaking.add(record.patient_id)
                text = f"patient {record.patient_id!r} is in split {split!r} here and in {other!r} in line {line}"
                self._add(row, "MV502", text, "keep a patient in one split: held-out results would be too good otherwise")

    def _if_there(self, column: str) -> str | None:
        return column if column in self.table.columns else None

    def _text_columns(self) -> tuple[str, ...]:
        spec, columns = self.spec, self.table.columns
        if spec.text_kind == "none":
            return ()
        parts = tuple(name for name in (spec.findings_column, spec.impression_column) if name in columns)
        return (spec.text_column,) if spec.text_column in columns or not parts else parts

    def _label_columns(self) -> tuple[str, ...]:
        if self.spec.label_columns is not None:
            return self.spec.label_columns
        return tuple(name for name in self.table.columns if name.startswith(LABEL_PREFIX))

    def _check_columns(self) -> bool:
        """Report columns that are missing; whether all are there."""
        spec = self.spec
        wanted = {
            "image_column": (spec.image_column,),
            "text_column": self.text_columns,
            "split_column": (spec.split_column,),
            "id_column": (self.id_column,) if self.id_column else (),
            "patient_column": (self.patient_column,) if self.patient_column else (),
            "label_columns": self.label_columns,
        }
        missing = [(field, name) for field, names in wanted.items() for name in names if name not in self.table.columns]
        for field, name in missing:
            hint = did_you_mean(name, self.table.columns, what="columns")
            if field == "text_column":
                hint += f"; nor is there {spec.findings_column!r} or {spec.impression_column!r}"
            self.problems.append(row_problem(self.path, 1, f"there is no column {name!r} ({field})", hint))
        return not missing

    def _record(self, row: Row) -> Record:
        image = self._string(row, self.spec.image_column)
        image_path = self.image_root / image
        if not image:
            self._add(row, "MV502", f"column {self.spec.image_column!r} is blank", "every row needs an image")
        elif (fault := image_fault(image_path)) is not None:
            self._add_image_fault(row, *fault)
        identifier = self._string(row, self.id_column) if self.id_column else image
        if self.id_column and not identifier:
            self._add(row, "MV502", f"column {self.id_column!r} is blank", "every row needs an id of its own")
        return Record(
            id=identifier or f"line {row.line}",  # a blank one is already reported, and not also as a duplicate
            image_path=image_path,
            text=self._text(row),
            text_kind=self.spec.text_kind,
            labels=self._labels(row),
            patient_id=(self._string(row, self.patient_column) or None) if self.patient_column else None,
        )

    def _text(self, row: Row) -> str:
        parts = [self._string(row, name) for name in self.text_columns]
        text = " ".join(part for part in parts if part)
        if self.text_columns and not text:
            where = " and ".join(repr(name) for name in self.text_columns)
            hint = "leave the row out, or set text_kind: none if there are only images"
            self._add(row, "MV504", f"the text is empty (column {where})", hint)
        return text

    def _split(self, row: Row) -> str:
        split = self._string(row, self.spec.split_column)
        if not split:
            self._add(row, "MV502", f"column {self.spec.split_column!r} is blank", "write train, val or test")
        return split

    def _labels(self, row: Row) -> dict[str, int]:
        given = {name.removeprefix(LABEL_PREFIX): row.values.get(name) for name in self.label_columns}
        if self.spec.label_columns is None and self.path.suffix.lower() == ".jsonl":
            given.update(self._label_object(row))
        labels = {}
        for name, value in given.items():
            if value is None or (isinstance(value, str) and not value.strip()):
                continue
            number = read_label(value)
            if number is None:
                self._add(row, "MV502", f"label {name!r} is {value!r}", "write 0 or 1, and leave unknown or uncertain ones blank")
            else:
                labels[name] = number
        return labels

    def _label_object(self, row: Row) -> Mapping[str, Any]:
        value = row.values.get(LABEL_OBJECT)
        if value is None or isinstance(value, Mapping):
            return value or {}
        self._add(row, "MV502", f"{LABEL_OBJECT!r} is {value!r}", 'write an object: {"Pneumonia": 1, "Edema": 0}')
        return {}

    def _string(self, row: Row, column: str) -> str:
        """The value of a column without white space around it; numbers as text, blank for null."""
        value = row.values.get(column)
        if value is None:
            return ""
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return str(value).strip()
        self._add(row, "MV502", f"column {column!r} is {value!r}", "write a string")
        return ""

    def _add_image_fault(self, row: Row, fault: str, hint: str | None) -> None:
        """A wrong folder makes every image a missing one, so each hint is given once."""
        if hint is None:
            start = "image_root" if self.spec.image_root else "the manifest"
            hint = f"relative paths start from {start}: {self.image_root.absolute()}"
        self._add(row, "MV501", fault, None if hint in self._given_hints else hint)
        self._given_hints.add(hint)

    def _add(self, row: Row, code: str, text: str, hint: str | None) -> None:
        self.problems.append(row_problem(self.path, row.line, text, hint, code=code))


def image_fault(path: Path) -> tuple[str, str | None] | None:
    """What is wrong with an image file as far as its first bytes tell, with a hint; None = it starts like a PNG or JPEG.

    A missing file has no hint of its own. A truncated file is only noticed when it is read.
    """
    if not path.is_file():
        return f"there is no image {path}", None
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        return f"cannot open image {path} ({error.strerror})", "check the file's permissions"
    if not head:
        return f"image {path} is empty (0 bytes)", "copy or download it again"
    if not head.startswith(IMAGE_STARTS):
        return f"image {path} is neither PNG nor JPEG; it starts with {head!r}", "convert DICOM and other formats to PNG first"
    return None


def read_label(value: Any) -> int | None:
    """0 or 1 from a number or its text (``1``, ``1.0``, as tables with blanks are often saved); None for anything else.

    Example:
        >>> [read_label(value) for value in (1, "0.0", True, -1, "yes")]
        [1, 0, 1, None, None]
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number in (0.0, 1.0) else None
