"""Runs the examples of a documentation page, so that what it shows is what the program does.

A page is cut at its ``## `` headings; each section has a folder of its own. Fenced blocks in order:

* a block with a file name behind its language (three backticks, ``yaml broken.yaml``) becomes that file; a Python file that says
  MEDVLP_INTERFACE is a plug-in, installed for the section; so is every package ``my_ROLE`` that the section names, as
  ``medvlp new my_ROLE --role ROLE`` writes it,
* ``console``: lines with ``$ `` are ``medvlp`` command lines (``NAME=value`` before them sets the environment), the others what
  they print, on stdout and stderr together; ``...`` stands for anything,
* ``python`` runs; a ``text`` block right behind it is what it prints, or the message that it stops with.

``MEDVLP_WRITE_DOCS=1`` writes the outputs anew; read them then.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import attrs
import pytest

from medvlp_core.cli import main
from medvlp_core.errors import MedvlpError
from medvlp_core.scaffold.package import NewPackage, render, write
from medvlp_core.spec.roles import Role

FENCE = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@attrs.frozen
class Block:
    """One fenced block: language, file name or nothing, text, and where the text stands in the section."""

    language: str
    name: str
    text: str
    start: int


@attrs.frozen
class Section:
    """What stands below one heading."""

    title: str
    text: str

    @property
    def blocks(self) -> list[Block]:
        """Its fenced blocks."""
        return [Block(*match.groups(), match.start(3)) for match in FENCE.finditer(self.text)]


def sections(page: Path) -> list[Section]:
    """The parts of a page that start with ``## ``; what stands before the first is left out."""
    parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [Section(part.partition("\n")[0], part) for part in parts]


def run_section(section: Section, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[Block, str]]:
    """Run the examples of a section in ``folder``; the blocks that show output, with the real output."""
    monkeypatch.chdir(folder)
    for role in new_packages(section):
        write(render(new_package(role)), folder / f"my_{role}")
        install(f"my_{role}", f"my_{role}.plugin", folder / f"my_{role}", monkeypatch)
    found: list[tuple[Block, str]] = []
    names: dict[str, object] = {"__name__": "example"}
    printed: str | None = None
    for block in section.blocks:
        if block.name.startswith("golden:"):
            pass
        elif block.name:
            path = Path(block.name)
            if path.parts[0] in {f"my_{role}" for role in new_packages(section)}:
                continue  # it is there, and the same: tests/house/test_tutorial.py
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            if path.suffix == ".py" and "MEDVLP_INTERFACE" in block.text and path.parent == Path():
                install(path.stem, path.stem, folder, monkeypatch)
        elif block.language == "console":
            commands = [line for line in block.text.splitlines() if line.startswith("$ ")]
            found.append((block, "".join(f"{line}\n{command_output(line[2:], monkeypatch)}" for line in commands)))
        elif block.language == "python":
            printed = python_output(block.text, names)
            continue
        elif block.language == "text" and printed is not None:
            found.append((block, printed))
        printed = None
    return found


def new_packages(section: Section) -> list[Role]:
    """The roles of the packages ``my_ROLE`` that a section uses."""
    return [role for role in Role if re.search(rf"\bmy_{role}\b", section.text)]


def new_package(role: Role) -> NewPackage:
    """``my_ROLE``, as ``medvlp new my_ROLE --role ROLE`` writes it."""
    return NewPackage(name=f"my_{role}", role=role, component=role.info.template)


def install(namespace: str, module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a module in ``folder`` a plug-in, as long as the section runs."""
    facts = folder / f"{namespace}-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {namespace.replace('_', '-')}\nVersion: 0.1.0\n")
    (facts / "entry_points.txt").write_text(f"[medvlp.plugins]\n{namespace} = {module}\n")
    monkeypatch.syspath_prepend(str(folder))


def command_output(line: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a ``medvlp`` command line prints."""
    words = shlex.split(line)
    with monkeypatch.context() as patch, captured() as stream:
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            patch.setenv(name, value)
        assert words[0] == "medvlp", line
        main(words[1:])
    return stream.getvalue()


def python_output(text: str, names: dict[str, object]) -> str:
    """What a piece of Python prints; an error of medvlp ends it with its message."""
    with captured() as stream:
        try:
            exec(compile(text, "<example>", "exec"), names)
        except MedvlpError as error:
            print(error)
    return stream.getvalue()


@contextlib.contextmanager
def captured():  # type: ignore[no-untyped-def]
    """Stdout and stderr in one stream."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield stream


def matches(expected: str, found: str) -> bool:
    """Whether an output is as shown, with ``...`` for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, found.strip(), re.DOTALL) is not None
