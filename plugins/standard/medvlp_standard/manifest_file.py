"""Rows of a CSV or JSONL file with their line numbers. Knows nothing of images and texts."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from medvlp_core import DataError, Position, Problem


@attrs.frozen
class Row:
    """One row: its first line in the file (from 1) and its values by column; a missing value is None."""

    line: int
    values: dict[str, Any]


@attrs.frozen
class Table:
    """The rows that could be read, and every column that occurs, in order of appearance."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: Path, problems: list[Problem]) -> Table:
    """Read a manifest; rows that cannot be read are skipped, and ``problems`` says why.

    Raises:
        DataError: the whole file cannot be used: missing, not UTF-8, empty, without a header (MV502).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # tolerates the mark that spreadsheet programs write
    except FileNotFoundError as error:
        is_relative = not path.is_absolute()
        hint = f"relative paths start from the working folder, {Path.cwd()}" if is_relative else "check `data.path`"
        raise _unusable(path, "there is no such manifest", hint) from error
    except OSError as error:
        raise _unusable(path, f"the manifest cannot be opened ({error.strerror})", "check `data.path`") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _unusable(path, "the manifest is not UTF-8", "save it as 'CSV UTF-8'", line) from error
    table = _read_jsonl(path, text, problems) if path.suffix.lower() == ".jsonl" else _read_csv(path, text, problems)
    if not table.rows and not problems:
        raise _unusable(path, "the manifest has no rows", "one image-text pair a row")
    return table


def row_problem(path: Path, line: int, text: str, hint: str | None, *, code: str = "MV502", column: int = 1) -> Problem:
    """Something wrong with one row."""
    return Problem(code=code, text=text, position=Position(str(path), line, column), hint=hint)


def _read_jsonl(path: Path, text: str, problems: list[Problem]) -> Table:
    rows: list[Row] = []
    columns: dict[str, None] = {}
    # not splitlines(): a report may hold characters such as U+2028 that it takes for line ends
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            found = f"this line is not JSON: {error.msg}"
            problems.append(row_problem(path, number, found, "one object a line", column=error.colno))
            continue
        if not isinstance(values, dict):
            found = f"expected a JSON object, found {type(values).__name__}"
            problems.append(row_problem(path, number, found, 'one object a line: {"image": ..., "text": ...}'))
            continue
        rows.append(Row(number, values))
        columns.update(dict.fromkeys(values))
    return Table(tuple(columns), tuple(rows))


def _read_csv(path: Path, text: str, problems: list[Problem]) -> Table:
    lines = _csv_rows(path, text, problems)
    header_line, header = next(lines, (1, []))
    columns = tuple(name.strip() for name in header)
    if not columns:
        if problems:
            return Table((), ())
        raise _unusable(path, "the manifest is empty", "the first line names the columns")
    if len(columns) == 1 and (mark := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        found = f"the header is a single column, {columns[0]!r}"
        raise _unusable(path, found, f"it is separated by {mark!r}, use commas", header_line)
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise _unusable(path, f"column {twice[0]!r} stands twice in the header", "rename one of the two", header_line)
    rows = []
    for number, fields in lines:
        if len(fields) != len(columns):
            found = f"expected {len(columns)} fields as in the header, found {len(fields)}"
            problems.append(row_problem(path, number, found, "texts with commas or line breaks need quotes"))
            continue
        rows.append(Row(number, dict(zip(columns, fields, strict=True))))
    return Table(columns, tuple(rows))


def _csv_rows(path: Path, text: str, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row that is not blank; stops at the first broken quote."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = 'inside quotes a quote is written twice: ""'
            problems.append(row_problem(path, first_line, f"this is not CSV: {error}", hint))
            return
        if fields:
            yield first_line, fields


def _unusable(path: Path, text: str, hint: str, line: int = 0) -> DataError:
    position = Position(str(path), line, 1) if line else Position(str(path))
    return DataError(Problem(code="MV502", text=text, position=position, hint=hint))
