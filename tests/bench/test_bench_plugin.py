"""The bundle adds its commands as any other could: through the hook."""

from __future__ import annotations

import medvlp_bench.plugin

from medvlp_core.cli import COMMANDS, PluginCommands
from medvlp_core.plugins.host import PluginHost


def test_it_adds_its_commands_through_the_hook() -> None:
    host = PluginHost.from_modules({"bench": medvlp_bench.plugin})
    commands = PluginCommands(taken=frozenset(COMMANDS))
    assert host.call("medvlp_add_commands", commands=commands) == []
    assert list(commands.found) == ["bench", "estimate"]
    assert not host.components
    assert not host.kernels
