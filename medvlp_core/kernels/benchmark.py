"""What the benchmark of an op declares, and the check that comes before any clock runs.

A plugin's :class:`KernelBenchmark` names shapes and contenders: our backends, and what a user or an expert would write instead. The
modules beside this one do the rest: ``timing`` measures, ``benchmark_report`` and ``benchmark_picture`` write the result down; the
command ``medvlp bench kernels`` of the bundle ``bench`` calls them all. Numbers of a wrong kernel are worth nothing: :func:`check`
compares output and gradients of every contender with a float64 reference first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from medvlp_core.errors import PluginError, Problem
from medvlp_core.plugins.import_string import load_object
from medvlp_core.spec.kernel import KernelOp

#: What is timed: the forward pass as in training (what the backward pass needs is kept), the backward pass, both in turn.
DIRECTIONS = ("forward", "backward", "both")

#: Largest error of an output or gradient, relative to the reference's largest number.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@attrs.frozen(kw_only=True)
class Shape:
    """A size that the op is measured at. Sizes go by letter; ``B`` is the batch.

    Example:
        >>> Shape(letter="A", about="small", sizes={"B": 256, "L": 100}).resized(B=8).text
        'B=8 L=100'
    """

    letter: str
    about: str
    sizes: Mapping[str, int]

    def __getitem__(self, size: str) -> int:
        """A size by its letter."""
        return self.sizes[size]

    def resized(self, **sizes: int) -> Shape:
        """The same shape with some sizes changed."""
        return attrs.evolve(self, sizes={**self.sizes, **sizes})

    @property
    def text(self) -> str:
        """All sizes in one line."""
        return " ".join(f"{letter}={size}" for letter, size in self.sizes.items())


@attrs.frozen(kw_only=True)
class Inputs:
    """One call: tensors that get gradients, other arguments, and the gradient of the output, which backward passes start from."""

    tensors: dict[str, Tensor]
    grad: Tensor
    options: dict[str, Any] = attrs.field(factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name."""
        return self.tensors[name]

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another dtype."""
        tensors = {name: x.detach().to(dtype).requires_grad_() for name, x in self.tensors.items()}
        return attrs.evolve(self, tensors=tensors, grad=self.grad.to(dtype))

    @property
    def bytes(self) -> int:
        """What the tensors take, the gradient of the output included."""
        return sum(x.numel() * x.element_size() for x in (*self.tensors.values(), self.grad))


@attrs.frozen(kw_only=True)
class Work:
    """The least that any implementation has to do: floating-point operations, bytes of memory read or written, exponentials."""

    flops: float
    bytes: float
    exps: float = 0.0


def _nothing_against(device: torch.device, dtype: torch.dtype, shape: Shape) -> tuple[str, ...]:
    return ()


@attrs.frozen(kw_only=True)
class Contender:
    """An implementation that takes part.

    ``make`` turns inputs into a function without arguments that computes the output from ``inputs.tensors``; what it prepares
    outside of that function is not timed. ``unsupported_reasons`` gives reasons why it cannot be measured at a shape (none: it
    can). A wrong contender that is ours stops the benchmark; another is marked. ``is_same_op`` is False for other mathematics, or
    a part of the op: such a contender is shown for orientation and not compared.
    """

    name: str
    about: str
    make: Callable[[Inputs], Callable[[], Tensor]]
    unsupported_reasons: Callable[[torch.device, torch.dtype, Shape], tuple[str, ...]] = _nothing_against
    is_ours: bool = False
    is_same_op: bool = True
    has_backward: bool = True


@attrs.frozen(kw_only=True)
class CheckCase:
    """Inputs for the comparison with the reference; ``skip`` names contenders that do not serve them (padding, for instance)."""

    name: str
    inputs: Inputs
    skip: Collection[str] = ()


@attrs.frozen(kw_only=True)
class KernelBenchmark:
    """The benchmark of an op: what :class:`~medvlp_core.spec.kernel.KernelOp` names in ``benchmark``.

    ``make_inputs`` takes shape, device, dtype and a seed. ``check_cases`` gives small and odd-sized calls like a shape.
    ``reference`` is called in float64. ``work`` takes a shape, ``forward`` or ``backward`` and the bytes of a number.
    ``baseline`` is the contender that ratios are against.
    """

    op: str
    shapes: tuple[Shape, ...]
    contenders: tuple[Contender, ...]
    baseline: str
    make_inputs: Callable[[Shape, torch.device, torch.dtype, int], Inputs]
    check_cases: Callable[[Shape, torch.device, torch.dtype], Iterable[CheckCase]]
    reference: Callable[[Inputs], Tensor]
    work: Callable[[Shape, str, int], Work]

    def __attrs_post_init__(self) -> None:
        """The baseline must be one of the contenders, and every name stand once."""
        names = [one.name for one in self.contenders]
        if self.baseline not in names or len(set(names)) != len(names):
            raise ValueError(f"{self.op}: baseline {self.baseline!r}, contenders {names}")

    def at(self, letters: Collection[str]) -> tuple[Shape, ...]:
        """The shapes with these letters; all if none is given."""
        return tuple(shape for shape in self.shapes if not letters or shape.letter in letters)


def load_benchmark(op: KernelOp) -> KernelBenchmark:
    """Import the benchmark that an op declares.

    Raises:
        PluginError: it cannot be imported (MV303), or there is none for that op (MV302).
    """
    found = load_object(op.benchmark, owner=op.name) if op.benchmark else None
    if not isinstance(found, KernelBenchmark) or found.op != op.name:
        hint = "KernelOp(benchmark=...) must name a KernelBenchmark of medvlp_core.kernels.benchmark, with the op's name"
        raise PluginError(Problem(code="MV302", text=f"{op.name}: {op.benchmark} is not its benchmark", hint=hint))
    return found


class RunsFirst(Protocol):
    """The function of a :class:`FirstRun`."""

    def __call__(self, out: Path, *, minutes: float, steps: Sequence[str], is_rehearsal: bool) -> bool:
        """Do some steps in some minutes and write what they find into the folder ``out``; whether all of it is as it should be."""


@attrs.frozen(kw_only=True)
class FirstRun:
    """The first time on a GPU: what :class:`~medvlp_core.spec.kernel.KernelOp` names in ``first_run``.

    ``run`` does the steps; in a rehearsal the same code at toy size, on a CPU. What it needs is imported when it is called.
    """

    steps: tuple[str, ...]
    run: RunsFirst


def load_first_run(op: KernelOp) -> FirstRun:
    """Import the first run that an op declares.

    Raises:
        PluginError: it cannot be imported (MV303), or is none (MV302).
    """
    found = load_object(op.first_run, owner=op.name) if op.first_run else None
    if not isinstance(found, FirstRun):
        hint = "KernelOp(first_run=...) must name a FirstRun of medvlp_core.kernels.benchmark"
        raise PluginError(Problem(code="MV302", text=f"{op.name}: {op.first_run} is not a first run", hint=hint))
    return found


# ----------------------------------------------------------------------------------------------------------------------- check


@attrs.frozen(kw_only=True)
class Finding:
    """How far a contender is from the reference in a case: per tensor, relative to the reference's largest number."""

    op: str
    shape: str
    contender: str
    is_ours: bool
    case: str
    tolerance: float
    errors: Mapping[str, float] = attrs.field(factory=dict)
    reason: str = ""

    @property
    def is_red(self) -> bool:
        """It failed, or is further away than the tolerance. NaN is red."""
        return bool(self.reason) or not all(error <= self.tolerance for error in self.errors.values())

    @property
    def worst(self) -> str:
        """The largest error and where it is, or why there is none."""
        if self.reason:
            return self.reason
        name = max(self.errors, key=lambda one: (self.errors[one] != self.errors[one], self.errors[one]))
        return f"{name} {self.errors[name]:.1e} (at most {self.tolerance:.0e})"


def check(
    benchmark: KernelBenchmark,
    shapes: Sequence[Shape],
    device: torch.device,
    dtype: torch.dtype,
    *,
    contenders: Sequence[Contender] | None = None,
) -> list[Finding]:
    """Compare output and gradients of every contender that can serve with the reference, at small relatives of the shapes.

    The reference gets the same rounded numbers in float64. Contenders that compute something else are skipped.
    """
    found = []
    for shape in shapes:
        able = [
            one
            for one in contenders or benchmark.contenders
            if one.is_same_op and not one.unsupported_reasons(device, dtype, shape)
        ]
        for case in benchmark.check_cases(shape, device, dtype):
            wanted = _results(benchmark.reference, case.inputs.to(torch.float64), has_backward=True)
            for one in able:
                if one.name in case.skip:
                    continue
                common: dict[str, Any] = {
                    "op": benchmark.op,
                    "shape": shape.letter,
                    "contender": one.name,
                    "is_ours": one.is_ours,
                    "case": case.name,
                    "tolerance": TOLERANCES[dtype],
                }
                results, reason = attempt(lambda one=one, case=case: _results_of(one, case.inputs))  # type: ignore[misc]
                errors = {name: relative_error(x, wanted[name]) for name, x in results.items()} if results else {}
                found.append(Finding(**common, errors=errors, reason=reason))
    return found


def wrong_rivals(findings: Iterable[Finding]) -> dict[tuple[str, str, str], str]:
    """What is not to be timed, by op, shape and contender, and why."""
    return {(one.op, one.shape, one.contender): f"wrong or failed in the check: {one.worst}" for one in findings if one.is_red}


def attempt(function: Callable[[], Any]) -> tuple[Any, str]:
    """A function's result, or None and the reason why it failed; torch says in warnings why a backend would not serve."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return function(), ""
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                return None, "out of memory"
            said = [str(one.message).partition(" (Triggered")[0] for one in caught] if "No available kernel" in str(error) else []
            return None, _first_line("; ".join(said[:2])) or f"{type(error).__name__}: {_first_line(str(error))}"


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number that is wanted (absolute where all are 0).

    Example:
        >>> relative_error(torch.tensor([1.0, -3.0]), torch.tensor([1.0, -4.0]))
        0.25
    """
    if found.shape != wanted.shape:
        return float("inf")
    if wanted.numel() == 0:
        return 0.0
    largest = wanted.abs().max().item()
    return (found.to(wanted.dtype) - wanted).abs().max().item() / (largest or 1.0)


def _results(function: Callable[[Inputs], Tensor], inputs: Inputs, *, has_backward: bool) -> dict[str, Tensor]:
    out = function(inputs)
    found = {"output": out.detach()}
    if has_backward:
        gradients = torch.autograd.grad(out, list(inputs.tensors.values()), inputs.grad, allow_unused=True)
        found |= {
            f"gradient of {name}": torch.zeros_like(x) if gradient is None else gradient
            for (name, x), gradient in zip(inputs.tensors.items(), gradients, strict=True)
        }
    return found


def _results_of(contender: Contender, inputs: Inputs) -> dict[str, Tensor]:
    return _results(lambda given: contender.make(given)(), inputs, has_backward=contender.has_backward)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:160]


# ---------------------------------------------------------------------------------------------------------------------- shapes

#: So many operations a forward pass may have on a CPU, unless the scale is given.
CPU_FLOPS = 2e9


def scaled(benchmark: KernelBenchmark, shapes: Iterable[Shape], device: torch.device, scale: float | None) -> Iterator[Shape]:
    """The shapes with ``scale`` times their batch. Without a scale: whole on a GPU, on a CPU so small that it takes minutes."""
    for shape in shapes:
        if scale is None and device.type == "cpu":
            a_sample = benchmark.work(shape.resized(B=1), "forward", 4).flops
            wanted = CPU_FLOPS / max(1.0, a_sample)
        else:
            wanted = shape["B"] * (1.0 if scale is None else scale)
        yield shape.resized(B=min(shape["B"], max(1, round(wanted))))
