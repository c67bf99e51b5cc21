"""Registers the kit's stub components. Light: no torch here or in ``specs``. Only the kit loads it; it has no entry point."""

from __future__ import annotations

from medvlp_core import PluginComponents, hookimpl
from medvlp_core.testing.stub_components.specs import SPECS

#: The version of medvlp's plugin interface that this bundle is written for.
MEDVLP_INTERFACE = 2


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    """Register every spec of the bundle."""
    for spec in SPECS:
        registry.add(spec)
