"""The bundle adds its commands as any other could: through the hook, without torch, with public names of the core only."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import medvlp_bench.plugin
import pytest

from medvlp_core.cli import COMMANDS, PluginCommands
from medvlp_core.plugins.host import PluginHost

PACKAGE = Path(medvlp_bench.plugin.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: Modules below a folder of the core that are public as they are (medvlp_core/kernels/__init__.py).
PUBLIC_MODULES = {f"medvlp_core.kernels.{name}" for name in ("benchmark", "benchmark_report", "machine", "timing")}


def test_it_adds_its_commands_through_the_hook() -> None:
    host = PluginHost.from_modules({"bench": medvlp_bench.plugin})
    commands = PluginCommands(taken=frozenset(COMMANDS))
    assert host.call("medvlp_add_commands", commands=commands) == []
    assert list(commands.found) == ["bench", "estimate"]
    assert not host.components
    assert not host.kernels


def names_of_the_core(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything that a file imports from the core, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "medvlp_core":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "medvlp_core")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_it_uses_public_names_only(path: Path) -> None:
    def is_public(module: str, name: str) -> bool:
        if module in PUBLIC_MODULES or f"{module}.{name}" in PUBLIC_MODULES:
            return True
        return module.count(".") <= 1 and name in importlib.import_module(module).__all__

    assert [(module, name) for module, name in names_of_the_core(path) if not is_public(module, name)] == []
