"""What docstrings need to be pages of the API reference; `.mkdocs.yml` names this file.

They are written to be read in an editor: ``Example:`` for one example, a role such as ``:func:`` before a name elsewhere, ``::`` in
front of a formula. Markdown knows none of these.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`[~.]?([^`]+)`")
LITERAL = re.compile(r"::$", re.MULTILINE)


def as_markdown(docstring: str) -> str:
    """A docstring with the sections and the mark-up that the site understands."""
    return LITERAL.sub(":", ROLE.sub(r"`\1`", EXAMPLE.sub("Examples:", docstring)))


class Docstrings(griffe.Extension):
    """Rewrites every docstring when it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Take one object of the package."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
