"""Conformance of ops with several implementations: every path that serves on this machine agrees with the definition."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

from medvlp_core.errors import KernelError
from medvlp_core.kernels.benchmark import Contender, KernelBenchmark, load_benchmark
from medvlp_core.kernels.benchmark import check as compare
from medvlp_core.kernels.dispatch import BACKENDS, Call, Kernel, load_kernel
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.kernel import KernelOp
from medvlp_core.testing.checks import NotApplicable, check, expect

DEFINITION = "reference"
DTYPES = (torch.float32, torch.bfloat16)


@attrs.frozen
class KernelSubject:
    """A registered op under test."""

    host: PluginHost
    name: str

    @property
    def op(self) -> KernelOp:
        """What the plugin declares of it."""
        return self.host.kernels[self.name]

    def kernel(self) -> Kernel:
        """The op with its backends.

        Raises:
            NotApplicable: it cannot be imported.
        """
        try:
            return load_kernel(self.op)
        except Exception as error:
            raise NotApplicable("the kernel cannot be loaded; loads_its_kernel says why") from error

    def benchmark(self) -> KernelBenchmark:
        """What says how to call the op by a path.

        Raises:
            NotApplicable: it declares none, or it cannot be loaded.
        """
        if self.op.benchmark is None:
            raise NotApplicable("it declares no benchmark, and only that says how the op is called")
        try:
            return load_benchmark(self.op)
        except Exception as error:
            raise NotApplicable("its benchmark cannot be loaded; loads_its_kernel says why") from error


def devices() -> Iterator[torch.device]:
    """Where ops can run on this machine."""
    yield torch.device("cpu")
    if torch.cuda.is_available():
        yield torch.device("cuda")


def calls(kernel: Kernel) -> Iterator[Call]:
    """The op's example on every device and in every dtype of the kit."""
    for device in devices():
        for dtype in DTYPES:
            yield attrs.evolve(kernel.example, device=device.type, dtype=str(dtype).removeprefix("torch."))


@check("kernel", roles=())
def loads_its_kernel(subject: KernelSubject) -> None:
    """What ``build`` names is the kernel of the op, what ``benchmark`` names is its benchmark."""
    load_kernel(subject.op)
    if subject.op.benchmark is not None:
        load_benchmark(subject.op)


@check("kernel", roles=())
def has_a_definition(subject: KernelSubject) -> None:
    """It has the path ``reference``, which serves every device and dtype, and no path twice."""
    kernel = subject.kernel()
    names = [backend.name for backend in kernel.backends]
    expect(len(set(names)) == len(names), f"the backends are {', '.join(names)}: one stands twice")
    expect(DEFINITION in names, f"the backends are {', '.join(names)}: {DEFINITION!r}, the definition, is missing")
    for call in calls(kernel):
        reasons = kernel.reasons(call)[DEFINITION]
        expect(not reasons, f"{DEFINITION!r} does not serve {call.dtype} on {call.device}: {'; '.join(reasons)}")


@check("kernel", roles=())
def says_why_a_path_cannot_serve(subject: KernelSubject) -> None:
    """Asked for by name, a path that can serve is chosen, another raises a KernelError (MV401); ``auto`` finds one that can."""
    kernel = subject.kernel()
    for call in calls(kernel):
        reasons = kernel.reasons(call)
        where = f"{call.dtype} on {call.device}"
        for requested in BACKENDS[1:]:
            can_serve = requested in reasons and not reasons[requested]
            try:
                chosen = kernel.preview(requested, call)
            except KernelError as error:
                expect(not can_serve, f"the path {requested!r} serves {where}, and asking for it raised {error}")
            else:
                expect(can_serve and chosen == requested, f"asking for {requested!r} with {where} gave {chosen!r} and no error")
            said = reasons.get(requested, ())
            is_text = isinstance(said, (tuple, list)) and all(isinstance(one, str) and one for one in said)
            expect(is_text, f"the reasons of {requested!r} with {where} are {said!r}, expected a tuple of texts")
        auto = kernel.preview("auto", call)
        expect(not reasons[auto], f"'auto' chose {auto!r} for {where}, which cannot serve: {'; '.join(reasons[auto])}")


@check("kernel", roles=())
def agrees_with_its_definition(subject: KernelSubject) -> None:
    """Every path that serves here gives the output and the gradients of ``reference``, at small odd-sized calls."""
    kernel, benchmark = subject.kernel(), subject.benchmark()
    backends = _contenders(kernel, benchmark)
    if not backends:
        raise NotApplicable(f"it has no backend but {DEFINITION!r}")
    compared: set[str] = set()
    for device in devices():
        for dtype in DTYPES:
            for finding in compare(benchmark, benchmark.shapes[:1], device, dtype, contenders=backends):
                compared.add(finding.contender)
                where = f"{str(dtype).removeprefix('torch.')} on {device.type}, {finding.case}"
                expect(not finding.is_red, f"the path {finding.contender!r} is wrong in {where}: {finding.worst}")
    if not compared:
        raise NotApplicable(f"no path but {DEFINITION!r} serves on this machine")


def _contenders(kernel: Kernel, benchmark: KernelBenchmark) -> list[Contender]:
    """The contenders of the benchmark that are backends of the op: those with their names."""
    by_name = {one.name: one for one in benchmark.contenders}
    names = [backend.name for backend in kernel.backends if backend.name != DEFINITION]
    missing = [name for name in names if name not in by_name]
    expect(not missing, f"the benchmark has no contender named {', '.join(missing)}, after the path of the op")
    strange = [name for name in names if not by_name[name].is_same_op]
    expect(not strange, f"the benchmark says of {', '.join(strange)} that it is another op (is_same_op)")
    return [by_name[name] for name in names]
