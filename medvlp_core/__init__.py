"""medvlp: modular medical vision-language pre-training. The names below are what users and authors import.

Nothing is imported before it is used: ``import medvlp_core`` and everything that an author declares with stay free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvlp_core.api import build, evaluate, plan, pretrain, resume
    from medvlp_core.errors import (
        DataError,
        Diagnostics,
        KernelError,
        MedvlpError,
        PluginError,
        Position,
        Problem,
        SpecError,
        did_you_mean,
    )
    from medvlp_core.inference import load
    from medvlp_core.plugins.hooks import hookimpl
    from medvlp_core.plugins.registry import PluginComponents, PluginKernels
    from medvlp_core.spec.component import ComponentSpec, component, param
    from medvlp_core.spec.contract import AtLeast, Constraint, Contract, Dim, Dims, Divides, Equal, OneOf, TensorSpec
    from medvlp_core.spec.fields import Field
    from medvlp_core.spec.kernel import KernelOp
    from medvlp_core.spec.pretrained import is_skipping_pretrained_init, skip_pretrained_init
    from medvlp_core.spec.roles import Role

__version__ = "0.1.0"

__all__ = [
    "AtLeast",
    "ComponentSpec",
    "Constraint",
    "Contract",
    "DataError",
    "Diagnostics",
    "Dim",
    "Dims",
    "Divides",
    "Equal",
    "Field",
    "KernelError",
    "KernelOp",
    "MedvlpError",
    "OneOf",
    "PluginComponents",
    "PluginError",
    "PluginKernels",
    "Position",
    "Problem",
    "Role",
    "SpecError",
    "TensorSpec",
    "build",
    "component",
    "did_you_mean",
    "evaluate",
    "hookimpl",
    "is_skipping_pretrained_init",
    "load",
    "param",
    "plan",
    "pretrain",
    "resume",
    "skip_pretrained_init",
]

#: The module of each name.
_HOMES = {
    "api": (
        "build",
        "evaluate",
        "plan",
        "pretrain",
        "resume",
    ),
    "errors": (
        "DataError",
        "KernelError",
        "MedvlpError",
        "PluginError",
        "Position",
        "Problem",
        "Diagnostics",
        "SpecError",
        "did_you_mean",
    ),
    "inference": ("load",),
    "plugins.hooks": ("hookimpl",),
    "plugins.registry": (
        "PluginComponents",
        "PluginKernels",
    ),
    "spec.component": (
        "ComponentSpec",
        "component",
        "param",
    ),
    "spec.contract": (
        "AtLeast",
        "Constraint",
        "Contract",
        "Dim",
        "Dims",
        "Divides",
        "Equal",
        "OneOf",
        "TensorSpec",
    ),
    "spec.fields": ("Field",),
    "spec.kernel": ("KernelOp",),
    "spec.pretrained": (
        "is_skipping_pretrained_init",
        "skip_pretrained_init",
    ),
    "spec.roles": ("Role",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"medvlp_core.{module}"), name)
    raise AttributeError(f"module 'medvlp_core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
