"""Registers the MPMA components and presets. Light: no torch here or in ``specs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_core.hooks import hookimpl
from medvlp_mpma.specs import SPECS

if TYPE_CHECKING:
    from medvlp_core.plugins import PluginComponents

PRESETS = Path(__file__).parent / "presets"


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    """Register every spec of the bundle."""
    for spec in SPECS:
        registry.add(spec)


@hookimpl
def medvlp_register_presets(register: Callable[[str, Path], None]) -> None:
    """Register ``mpma:base`` (paper scale) and ``mpma:small`` (a CPU and the embedded data)."""
    register("base", PRESETS / "base.yaml")
    register("small", PRESETS / "small.yaml")
