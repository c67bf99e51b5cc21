"""Registers the standard components. Light: no torch here or in ``specs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp_core import PluginComponents, Role, hookimpl
from medvlp_standard.hf_facts import local_folder
from medvlp_standard.specs import alignment, data, decoders, evaluators, fusion, image_encoders, masking, text_encoders, tokenizers
from medvlp_standard.specs.text_encoders import HfTextSpec
from medvlp_standard.specs.tokenizers import HfTokenizerSpec

if TYPE_CHECKING:
    from medvlp_core import Diagnostics
    from medvlp_core.planning import ModelPlan

#: The version of medvlp's plugin interface that this bundle is written for.
MEDVLP_INTERFACE = 2

CHECK_MODULES = (data, tokenizers, masking, image_encoders, text_encoders, fusion, alignment, decoders, evaluators)


@hookimpl
def medvlp_register_components(registry: PluginComponents) -> None:
    """Register every spec of every role."""
    for module in CHECK_MODULES:
        for spec in module.SPECS:
            registry.add(spec)


@hookimpl
def medvlp_check_plan(plan: ModelPlan, diagnostics: Diagnostics) -> None:
    """Warn if pre-trained text weights would read the ids of another tokenizer: their word vectors would mean other words."""
    encoder, tokenizer = plan.one(Role.TEXT_ENCODER), plan.one(Role.TOKENIZER)
    if encoder is None or not isinstance(encoder.spec, HfTextSpec) or not encoder.spec.pretrained or tokenizer is None:
        return
    model = encoder.spec.model
    if isinstance(tokenizer.spec, HfTokenizerSpec) and _is_same_model(tokenizer.spec.model, model):
        return
    text = f"{encoder.label} has the weights of {model!r}, and {tokenizer.label} numbers words in another way"
    if isinstance(tokenizer.spec, HfTokenizerSpec):
        text = f"{encoder.label} has the weights of {model!r}, and {tokenizer.label} the vocabulary of {tokenizer.spec.model!r}"
    hint = f"tokenizer: {{use: standard.hf_tokenizer, model: {model}}}, or set {encoder.path}.pretrained: false"
    diagnostics.add("MV210", text, at=encoder.position("model"), hint=hint, is_warning=True)


def _is_same_model(one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = local_folder(one), local_folder(other)
    return first is not None and second is not None and first.resolve() == second.resolve()
