"""An op ``y = x w`` with two paths, right and wrong in one way each; a plugin by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from medvlp_core.kernels.benchmark import CheckCase, Contender, Inputs, KernelBenchmark, Shape, Work
from medvlp_core.kernels.dispatch import Backend, Call, Kernel
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.registry import PluginKernels
from medvlp_core.spec.kernel import KernelOp

MEDVLP_INTERFACE = 2

HERE = "broken_kernels"


def serves(call: Call) -> tuple[str, ...]:
    return ()


def not_here(call: Call) -> tuple[str, ...]:
    return ("not on this machine",)


def by(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], Callable[[], Tensor]]:
    return lambda inputs: lambda: function(inputs["x"], inputs["w"])


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape["B"], 3, generator=generator).to(device, dtype)
    weights = torch.randn(3, generator=generator).to(device, dtype)
    return Inputs(tensors={"x": rows.requires_grad_(), "w": weights.requires_grad_()}, grad=torch.ones_like(rows))


def check_cases(shape: Shape, device: torch.device, dtype: torch.dtype) -> Iterator[CheckCase]:
    yield CheckCase(name="odd", inputs=make_inputs(shape.resized(B=3), device, dtype, 1))


def benchmark(name: str, function: Callable[[Tensor, Tensor], Tensor], contender: str = "composite") -> KernelBenchmark:
    return KernelBenchmark(
        op=name,
        shapes=(Shape(letter="A", about="small", sizes={"B": 8}),),
        contenders=(Contender(name=contender, about="ours", make=by(function), is_ours=True),),
        baseline=contender,
        make_inputs=make_inputs,
        check_cases=check_cases,
        reference=lambda inputs: inputs["x"] * inputs["w"],
        work=lambda shape, direction, size: Work(flops=1.0, bytes=1.0),
    )


def kernel(name: str, **changes: Any) -> Kernel:
    backends = (Backend(name="composite", unsupported_reasons=serves), Backend(name="reference", unsupported_reasons=serves))
    return attrs.evolve(Kernel(name=name, backends=backends, order=lambda call: ("composite",)), **changes)


def right(x: Tensor, w: Tensor) -> Tensor:
    return w * x


RIGHT = kernel("broken.right")
RIGHT_BENCHMARK = benchmark("broken.right", right)

ONLY_DEFINED = kernel(
    "broken.only_defined", backends=(Backend(name="reference", unsupported_reasons=serves),), order=lambda call: ("reference",)
)
ONLY_DEFINED_BENCHMARK = benchmark("broken.only_defined", right, "naive")

WRONG = kernel("broken.wrong")
WRONG_BENCHMARK = benchmark("broken.wrong", lambda x, w: x * w * 1.1)

NO_GRADIENT = kernel("broken.no_gradient")
NO_GRADIENT_BENCHMARK = benchmark("broken.no_gradient", lambda x, w: x * w.detach())

UNNAMED = kernel("broken.unnamed")
UNNAMED_BENCHMARK = benchmark("broken.unnamed", right, "ours")

UNDEFINED = kernel("broken.undefined", backends=(Backend(name="composite", unsupported_reasons=serves),))
UNDEFINED_BENCHMARK = benchmark("broken.undefined", right)

AT_A_LOSS = kernel(
    "broken.at_a_loss",
    backends=(Backend(name="composite", unsupported_reasons=not_here), Backend(name="reference", unsupported_reasons=serves)),
)

OTHER_NAME = kernel("broken.another")


class Blind(Kernel):
    """Chooses what is asked for, whether it can serve or not."""

    def preview(self, requested: str, call: Call) -> str:
        return "composite" if requested == "auto" else requested


BLIND = Blind(name="broken.blind", backends=AT_A_LOSS.backends, order=lambda call: ("composite",))


@hookimpl
def medvlp_register_kernels(registry: PluginKernels) -> None:
    for name in ("right", "only_defined", "wrong", "no_gradient", "unnamed", "undefined", "at_a_loss", "other_name", "blind"):
        constant = name.upper()
        has_benchmark = f"{constant}_BENCHMARK" in globals()
        registry.add(
            KernelOp(
                name=f"broken.{name}",
                summary="x w",
                build=f"{HERE}:{constant}",
                benchmark=f"{HERE}:{constant}_BENCHMARK" if has_benchmark else None,
            )
        )
