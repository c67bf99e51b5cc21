"""Long lines on a narrow terminal: folded between words and indented, so that columns stay readable. Light."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable


def fold(line: str, width: int, *, hang: int | None = None) -> str:
    """A line in pieces of at most ``width`` characters, cut between words.

    The pieces behind the first start at column ``hang``: by default four further in than the line, which is also what they do if
    less than a third of the width would be left. A word that is longer than the width stays whole.

    Example:
        >>> print(fold("  fusion  looks at every patch", 20, hang=10))
          fusion  looks at
                  every
                  patch
    """
    if len(line) <= width:
        return line
    indent = len(line) - len(line.lstrip())
    if hang is None or width - hang < width / 3:
        hang = indent + 4
    pieces = textwrap.wrap(line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False)
    return "\n".join(pieces)


def print_folded(lines: Iterable[str], *, hang: int | None = None) -> None:
    """Print lines, folded to the terminal (or to ``COLUMNS``); whole where the output is read by a program."""
    width = shutil.get_terminal_size((100_000, 24)).columns
    for line in lines:
        print(fold(line, width, hang=hang))
