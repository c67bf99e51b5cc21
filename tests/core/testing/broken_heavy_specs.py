"""A spec in a module that imports torch, which every command would wait for."""

from __future__ import annotations

import attrs
import torch

from medvlp_core.spec.component import component, param
from medvlp_core.testing.stub_components.specs import FusionSpec


@component("broken.imports_torch", role=FusionSpec.declaration.role, build=FusionSpec.declaration.build)
@attrs.frozen(kw_only=True)
class ImportsTorchSpec(FusionSpec):
    """Names a dtype."""

    dtype: str = param(str(torch.float32), help="dtype")
