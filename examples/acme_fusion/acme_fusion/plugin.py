"""Registers the components and presets of this package. Light: no torch here or in ``specs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_core import hookimpl

from acme_fusion.specs import SPECS

if TYPE_CHECKING:
    from medvlp_core import PluginComponents

#: The version of medvlp's plugin interface that this package is written for.
MEDVLP_INTERFACE = 2

PRESETS = Path(__file__).parent / "presets"


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    """Register every spec."""
    for spec in SPECS:
        registry.add(spec)


@hookimpl
def medvlp_register_presets(register: Callable[[str, Path], None]) -> None:
    """Register ``acme_fusion:small``."""
    register("small", PRESETS / "small.yaml")
