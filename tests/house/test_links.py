"""Links read as sentences: their text is a title or a few words, never the name of a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("plugins/*/*.md"), *ROOT.glob("examples/*/*.md")])
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
FILE_NAME = re.compile(r"(^|/)[\w.-]+\.(md|py|ya?ml|toml|txt|csv|jsonl?|png)$|/$")


def links(text: str) -> list[tuple[str, str]]:
    """Text and target of every link outside fenced blocks."""
    return LINK.findall(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def named_after_files(text: str) -> list[str]:
    """The texts of links that are names of files or folders."""
    return [shown for shown, _ in links(text) if FILE_NAME.search(shown.strip("`"))]


def titles() -> dict[Path, str]:
    """The first heading of every page."""
    return {page.resolve(): page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in PAGES}


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, on GitHub and on the site alike."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_names_of_files_are_found() -> None:
    text = "[training.md](training.md) [Training](training.md) [`docs/a.md`](a.md) [design/](design/README.md) ![a.md](a.png)"
    text += " [a_b.py](a_b.py)"
    assert named_after_files(text) == ["training.md", "`docs/a.md`", "design/", "a_b.py"]


def test_all_pages_are_looked_at() -> None:
    assert len(PAGES) > 40
    assert sum(len(links(page.read_text(encoding="utf-8"))) for page in PAGES) > 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_named_after_a_file(page: Path) -> None:
    assert named_after_files(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    targets = [target.partition("#") for _, target in links(page.read_text(encoding="utf-8")) if not target.startswith("http")]
    assert [name for name, _, _ in targets if name and not (page.parent / name).exists()] == []
    wrong = [
        f"{name}#{anchor}"
        for name, _, anchor in targets
        if anchor and (found := (page.parent / name if name else page)).suffix == ".md" and anchor not in anchors(found)
    ]
    assert wrong == []


def test_the_index_calls_every_page_by_its_title() -> None:
    known = titles()
    index = ROOT / "docs" / "README.md"
    rows = re.findall(r"^\| \[([^\]]+)\]\(([^)]+)\) \|", index.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 20
    assert [(shown, title) for shown, target in rows if (title := known[(index.parent / target).resolve()]) != shown] == []


def test_no_row_of_the_index_repeats_its_title() -> None:
    rows = re.findall(
        r"^\| \[([^\]]+)\]\([^)]+\) \| (.*) \|$", (ROOT / "docs" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) > 20
    assert [title for title, told in rows if title.lower().removesuffix("s") in told.lower()] == []


def test_the_index_links_the_pages_at_the_root() -> None:
    targets = {target for _, target in links((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))}
    assert {f"../{page.name}" for page in ROOT.glob("*.md") if page.name != "README.md"} <= targets
