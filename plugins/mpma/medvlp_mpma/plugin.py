"""Registers the MPMA components, presets and kernels. Light: no torch here or in ``specs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from medvlp_core import KernelOp, hookimpl
from medvlp_mpma.specs import SPECS

if TYPE_CHECKING:
    from medvlp_core import PluginComponents, PluginKernels

#: The version of medvlp's plugin interface that this bundle is written for.
MEDVLP_INTERFACE = 2

PRESETS = Path(__file__).parent / "presets"

#: One first run does both ops.
FIRST_RUN = "medvlp_mpma.kernels.first_run:FIRST_RUN"

KERNELS = (
    KernelOp(
        name="mpma.memory_attention",
        summary="attention over the keys of a sample and memory slots that all samples share, one softmax",
        build="medvlp_mpma.kernels.memory_attention.op:KERNEL",
        benchmark="medvlp_mpma.kernels.memory_attention.benchmark:BENCHMARK",
        first_run=FIRST_RUN,
    ),
    KernelOp(
        name="mpma.memory_topk",
        summary="attention over the K best memory slots of each query",
        build="medvlp_mpma.kernels.memory_topk.op:KERNEL",
        benchmark="medvlp_mpma.kernels.memory_topk.benchmark:BENCHMARK",
        first_run=FIRST_RUN,
    ),
)


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


@hookimpl
def medvlp_register_kernels(registry: PluginKernels) -> None:
    """Register the ops of the memory."""
    for op in KERNELS:
        registry.add(op)
