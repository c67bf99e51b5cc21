"""The tutorial shows the files of examples/acme_fusion as they are, and then files of new packages, as `medvlp new` writes them.

The commands about acme_fusion are run in tests/e2e/test_e2e_scaffold.py, the sections behind them in test_docs.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from doc_examples import Block, new_package, sections

from medvlp_core.scaffold.package import NewPackage, render
from medvlp_core.spec.roles import ROLES, Role

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "write-a-plugin.md"
BLOCKS = [block for section in sections(PAGE) if "acme_fusion" in section.text for block in section.blocks]
EXAMPLE = ROOT / "examples" / "acme_fusion"


def shown(*languages: str) -> dict[str, Block]:
    return {block.name: block for block in BLOCKS if block.language in languages}


def test_code_blocks_are_the_files_that_they_name() -> None:
    files = shown("python", "yaml")
    assert all(name.startswith("acme_fusion/") for name in files)
    assert [name for name, block in files.items() if block.text != (EXAMPLE.parent / name).read_text(encoding="utf-8")] == []
    written = {f"acme_fusion/{path.relative_to(EXAMPLE)}" for path in EXAMPLE.rglob("*.py") if path.name != "__init__.py"}
    assert set(files) == written | {"acme_fusion/acme_fusion/presets/small.yaml"}
    for name, block in shown("toml").items():
        assert f"\n{block.text}\n" in (EXAMPLE.parent / name).read_text(encoding="utf-8")


def test_files_of_new_packages_are_as_the_command_writes_them() -> None:
    blocks = [block for section in sections(PAGE) for block in section.blocks if re.match(r"my_\w+/", block.name)]
    assert len(blocks) >= 5
    for block in blocks:
        package, _, path = block.name.partition("/")
        assert block.text == render(new_package(Role(package.removeprefix("my_"))))[path].decode(), block.name


def test_the_mistake_can_be_made_in_the_file_that_it_names() -> None:
    [(name, block)] = shown("diff").items()
    removed = [line[1:] for line in block.text.splitlines() if line.startswith("-")]
    assert len(removed) == 1
    assert removed[0] in (EXAMPLE.parent / name).read_text(encoding="utf-8").splitlines()


def test_the_example_starts_from_what_the_command_writes() -> None:
    """The tutorial changes four files; the others are still as `medvlp new` writes them."""
    found = render(NewPackage(name="acme_fusion", role=Role.FUSION, component="gated_attention"))
    own = {"README.md", "acme_fusion/fusion.py", "acme_fusion/presets/small.yaml", "acme_fusion/specs.py"}
    kept = {path for path, content in found.items() if (EXAMPLE / path).read_bytes() == content}
    assert set(found) - kept == own


def test_the_table_of_roles_is_complete() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(role.value, info.interface.rpartition(":")[2]) for role, info in ROLES.items()]
