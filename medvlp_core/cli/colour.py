"""Colour where a person is looking: on a terminal that has it, unless ``NO_COLOR`` is set. Light; rich only for a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

ERROR, WARNING, HINT, GOOD = "bold red", "bold yellow", "cyan", "green"


def has_colour(stream: TextIO) -> bool:
    """Whether text on a stream is coloured: on a terminal, unless ``NO_COLOR`` is set (no-color.org) or ``TERM`` is ``dumb``."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_styled(text: str, stream: TextIO, styles: Mapping[str, str]) -> None:
    """Print a text whole; where there is colour, what each regular expression matches in its style of rich."""
    if not has_colour(stream):
        print(text, file=stream)
        return
    from rich.console import Console
    from rich.text import Text

    styled = Text(text)
    for pattern, style in styles.items():
        styled.highlight_regex(pattern, style)
    Console(file=stream, soft_wrap=True).print(styled, highlight=False)
