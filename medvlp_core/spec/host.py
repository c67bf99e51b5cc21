"""What planning needs of the plugins that are loaded. The host itself is medvlp_core.plugins.host.PluginHost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from medvlp_core.errors import Position, Problem
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.roles import Role


class Components(Protocol):
    """Every registered component by name."""

    def __getitem__(self, name: str) -> type[ComponentSpec]: ...
    def __contains__(self, name: str) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...

    def distribution(self, name: str) -> str:
        """The distribution and version that registered a component, e.g. ``medvlp-mpma 0.1.0``."""

    def of_role(self, role: Role) -> dict[str, type[ComponentSpec]]:
        """The components of one role, sorted by name."""

    def offered(self, role: Role) -> list[str]:
        """The names of a role that hints may offer."""


class PluginFacts(Protocol):
    """One loaded plugin."""

    @property
    def namespace(self) -> str:
        """The prefix of its components."""

    @property
    def version(self) -> str:
        """The version of its distribution; empty if none brought it."""


class Host(Protocol):
    """Everything that the loaded plugins brought."""

    @property
    def components(self) -> Components:
        """Every registered component."""

    @property
    def presets(self) -> Mapping[str, Path]:
        """Every registered recipe by its full name, ``mpma:small``."""

    @property
    def plugins(self) -> Sequence[PluginFacts]:
        """The plugins that work."""

    @property
    def observer_problems(self) -> Mapping[tuple[str, str], Problem]:
        """What observers failed at, by hook and namespace."""

    def call(self, hook: str, **arguments: Any) -> list[Problem]:
        """Call a hook of every plugin; what went wrong is returned."""

    def observe(self, hook: str, **arguments: Any) -> None:
        """Call a hook that only observes; what went wrong is logged once."""

    def install_hint(self, namespace: str) -> str | None:
        """What to do so that a namespace is loaded; None if nothing is known about it."""

    def unknown_component(self, name: str, role: Role | None = None, *, at: Position | None = None) -> Problem:
        """What to say of a component that is not registered."""
