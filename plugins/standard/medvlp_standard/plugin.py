"""Registers the standard components. Light: no torch here or in ``specs``."""

from medvlp_core.hooks import hookimpl
from medvlp_core.plugins import PluginComponents
from medvlp_standard.specs import alignment, data, decoders, evaluators, fusion, image_encoders, masking, text_encoders, tokenizers

ROOMS = (data, tokenizers, masking, image_encoders, text_encoders, fusion, alignment, decoders, evaluators)


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    """Register every spec of every role."""
    for room in ROOMS:
        for spec in room.SPECS:
            registry.add(spec)
