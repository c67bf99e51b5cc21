"""What the pages need to be a site as well; `mkdocs build` calls the functions by their names.

The navigation is the index, docs/README.md. A fence that names a file gets a title, and a link that leaves docs/ becomes the path
that it leads to: on GitHub both work as they stand.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROW = re.compile(r"^\| \[[^\]]+\]\(([^)]+)\) \|")
FENCE = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")


def navigation(docs: Path) -> list[Any]:
    """The index, then a section for each heading with a table; a row that leads into a folder stands for all pages there."""
    found: list[Any] = ["README.md"]
    pages: list[Any] = found
    heading = ""
    for line in (docs / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif match := ROW.match(line):
            if heading:
                pages = []
                found.append({heading: pages})
                heading = ""
            page = match.group(1)
            folder = posixpath.dirname(page)
            inside = {path.relative_to(docs).as_posix() for path in (docs / folder).glob("*.md")}
            pages.append({folder.capitalize(): [page, *sorted(inside - {page})]} if folder else page)
    return found


def on_config(config: Any) -> Any:
    """Take the navigation from the index."""
    config["nav"] = navigation(Path(config["docs_dir"]))
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite fences and links of one page."""
    folder = posixpath.dirname(page.file.src_uri)

    def fence(match: re.Match[str]) -> str:
        language, name = match.groups()
        return f"```{language}" if ":" in name else f'```{{.{language} title="{name}"}}'

    def link(match: re.Match[str]) -> str:
        text, target, _ = match.groups()
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/"):
            return match.group()
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    return LINK.sub(link, FENCE.sub(fence, markdown))
