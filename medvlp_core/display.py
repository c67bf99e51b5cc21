"""How objects show themselves: a title and a few rows, as text and as HTML for a notebook. Light."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

#: A name and what stands beside it.
DisplayRow = tuple[str, str]


class Displayed:
    """Something with a ``repr`` of a few lines. Give ``display``; attrs classes say ``repr=False``, so that theirs is not used."""

    __slots__ = ()

    def display(self) -> tuple[str, Sequence[DisplayRow]]:
        """The title, and the rows below it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return as_text(*self.display())

    def _repr_html_(self) -> str:
        return as_html(*self.display())


def as_text(title: str, rows: Sequence[DisplayRow]) -> str:
    """The title, and the rows in two columns.

    Example:
        >>> print(as_text("Model", [("width", "32"), ("heads", "2")]))
        Model
          width  32
          heads  2
    """
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {value}".rstrip() for name, value in rows)])


def as_html(title: str, rows: Sequence[DisplayRow]) -> str:
    """The same as a table; what stands in it is escaped.

    Example:
        >>> as_html("Model", [("text", "<b>")])
        '<table><caption>Model</caption><tr><th>text</th><td>&lt;b&gt;</td></tr></table>'
    """
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>{escape(title)}</caption>{cells}</table>"
