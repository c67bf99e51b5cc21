"""Registers the components and presets of the gallery. Light: no torch here or in ``specs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_core import hookimpl
from medvlp_gallery.specs import albef, biovil_t, coca, code_and_pixels, data, eclip, egma, mae_hd, mean_teacher, medclip, shared

if TYPE_CHECKING:
    from medvlp_core import PluginComponents

#: The version of medvlp's plugin interface that this bundle is written for.
MEDVLP_INTERFACE = 2

PRESETS = Path(__file__).parent / "presets"

MODULES = (data, shared, eclip, egma, medclip, biovil_t, albef, coca, mae_hd, mean_teacher, code_and_pixels)


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    """Register every spec of the bundle."""
    for module in MODULES:
        for spec in module.SPECS:
            registry.add(spec)


@hookimpl
def medvlp_register_presets(register: Callable[[str, Path], None]) -> None:
    """Register one small recipe for each system: ``gallery:biovil_t`` and so on."""
    for path in sorted(PRESETS.glob("*.yaml")):
        register(path.stem, path)
