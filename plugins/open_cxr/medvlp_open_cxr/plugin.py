"""Registers the embedded sample set. Light: no torch here or in ``specs``."""

from medvlp_core import PluginComponents, hookimpl
from medvlp_open_cxr.specs import SPECS

#: The version of medvlp's plugin interface that this bundle is written for.
MEDVLP_INTERFACE = 2


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    """Register ``open_cxr.pairs``."""
    for spec in SPECS:
        registry.add(spec)
