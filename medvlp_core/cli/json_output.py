"""``--json``: what a command found as one JSON document on stdout, for programs. Light. docs/commands.md shows each document.

Every document has the keys ``medvlp`` (version of the core), ``command``, ``format`` (version of the shapes) and ``problems``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TextIO

from medvlp_core import __version__
from medvlp_core.errors import Position, Problem

#: Version of the shapes. A key that is added leaves it as it is; one that is renamed, removed or means something else raises it.
JSON_FORMAT = 1
#: Where the document goes while everything else that is printed goes to stderr.
_STDOUT: ContextVar[TextIO | None] = ContextVar("stdout", default=None)


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """``--json``: True in ``arguments.json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document for programs (docs/commands.md)")


def print_json(command: str, *, problems: Iterable[Problem | str] = (), **content: Any) -> None:
    """Print the one document of a command: the keys that all have, then ``content``.

    A problem is a text where an error says no more. Tuples become lists, and numbers that JSON does not have (infinity, not a
    number) strings.

    Example:
        >>> print_json("greet", name="Ada")
        {
          "medvlp": "0.1.0",
          "command": "greet",
          "format": 1,
          "problems": [],
          "name": "Ada"
        }
    """
    shown = [problem_data(problem) for problem in problems]
    document = {"medvlp": __version__, "command": command, "format": JSON_FORMAT, "problems": shown, **content}
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
    print(text, file=_STDOUT.get() or sys.stdout)


@contextlib.contextmanager
def only_json() -> Iterator[None]:
    """Inside, what anybody else prints (an author's component, a library) goes to stderr: stdout holds the document alone."""
    token = _STDOUT.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _STDOUT.reset(token)


def problem_data(problem: Problem | str) -> dict[str, Any]:
    """A problem as plain data; ``file``, ``line`` and ``column`` are None where it has no place, or where it is a whole file."""
    if isinstance(problem, str):
        return {"code": None, "text": problem, **position_data(None), "details": [], "hint": None, "is_warning": False}
    return {
        "code": problem.code,
        "text": problem.text,
        **position_data(problem.position),
        "details": list(problem.details),
        "hint": problem.hint,
        "is_warning": problem.is_warning,
    }


def position_data(position: Position | None) -> dict[str, Any]:
    """``file``, ``line`` and ``column``; an override of the command line counts as a file of that name."""
    if position is None:
        return {"file": None, "line": None, "column": None}
    return {"file": position.file, "line": position.line or None, "column": position.column or None}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_finite(item) for item in value]
    return value
