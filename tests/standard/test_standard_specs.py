"""The specs of maskings, fusions, alignments and decoders: light, complete, and in step with their modules."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest
from medvlp_standard.specs import alignment, decoders, fusion, masking

from medvlp_core.spec.component import ComponentSpec

CHECK_MODULES = (masking, fusion, alignment, decoders)
SPECS = [spec for module in CHECK_MODULES for spec in module.SPECS]


def test_the_declarations_leave_torch_alone() -> None:
    names = ", ".join(f"medvlp_standard.specs.{module.__name__.rsplit('.', 1)[1]}" for module in CHECK_MODULES)
    code = f"import sys, {names}; print(sorted({{'torch', 'timm', 'transformers', 'numpy', 'PIL'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_components_are_listed_once() -> None:
    assert sorted(spec.declaration.name for spec in SPECS) == [
        "standard.blockwise",
        "standard.caption_decoder",
        "standard.concat_attention",
        "standard.cross_attention",
        "standard.gloria",
        "standard.info_nce",
        "standard.mgca",
        "standard.mlm_head",
        "standard.no_fusion",
        "standard.patch_decoder",
        "standard.pooled_add",
        "standard.random",
        "standard.siglip",
    ]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.declaration.name)
def test_every_call_takes_exactly_the_tensors_that_its_contract_needs(spec: type[ComponentSpec]) -> None:
    module_name, class_name = spec.declaration.build.split(":")
    module_class = getattr(importlib.import_module(module_name), class_name)
    examples = tuple(spec.examples())
    assert len(examples) >= 2
    for example in examples:
        assert list(example.problems()) == []
        for name, contract in example.calls().items():
            parameters = inspect.signature(getattr(module_class, name)).parameters
            required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n != "self"}
            needed = {argument for argument, port in contract.needs.items() if port.dtype != "shape"}
            assert required <= needed <= set(parameters), name
        parameters = inspect.signature(module_class.forward).parameters
        if hasattr(module_class, "attention_maps"):
            assert list(inspect.signature(module_class.attention_maps).parameters) == list(parameters)
