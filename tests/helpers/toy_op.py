"""A toy op with a benchmark: multiplication, with contenders that are right, wrong, absent and failing."""

from __future__ import annotations

import itertools
from pathlib import Path

NUMBERS = itertools.count()

TOY = """\
import torch
from medvlp_core.kernels.benchmark import CheckCase, Contender, FirstRun, Inputs, KernelBenchmark, Shape, Work
from medvlp_core.kernels.dispatch import Backend, Call, Kernel

CALLS = []
ALWAYS = Backend(name="composite", unsupported_reasons=lambda call: ())
KERNEL = Kernel(name="{space}.gate", backends=(ALWAYS,), order=lambda call: ("composite",))

def make_inputs(shape, device, dtype, seed):
    x, w, grad = torch.randn(3, shape["B"], shape["N"], dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return Inputs(tensors={"x": x.requires_grad_(), "w": w.requires_grad_()}, grad=grad)

def by(function, name):
    def make(inputs):
        def call():
            CALLS.append((name, len(inputs["x"])))
            return function(inputs["x"], inputs["w"])
        return call
    return make

def fails(x, w):
    raise RuntimeError("no such unit\\nmore")

RIGHT = Contender(name="plain", about="x w", make=by(lambda x, w: x * w, "plain"))
OURS = Contender(name="ours", about="w x", make=by(lambda x, w: w * x, "ours"), is_ours=True)
WRONG = Contender(name="wrong", about="x + w", make=by(lambda x, w: x + w, "wrong"))
DETACHED = Contender(name="detached", about="half the gradient", make=by(lambda x, w: x * w.detach(), "detached"))
FAILING = Contender(name="failing", about="fails", make=by(fails, "failing"))
FAR = lambda device, dtype, shape: ("far away",)
ABSENT = Contender(name="absent", about="elsewhere", make=by(fails, "absent"), unsupported_reasons=FAR)
OTHER = Contender(name="other", about="a sum", make=by(lambda x, w: x + w, "other"), is_same_op=False, has_backward=False)

def benchmark(*contenders):
    return KernelBenchmark(
        op="{space}.gate",
        shapes=tuple(Shape(letter=letter, about="toy", sizes={"B": 4000, "N": n}) for letter, n in (("A", 8), ("B", 16))),
        contenders=(RIGHT, *contenders),
        baseline="plain",
        make_inputs=make_inputs,
        check_cases=lambda shape, *kind: [CheckCase(name="small", inputs=make_inputs(shape.resized(B=3), *kind, 1))],
        reference=lambda inputs: inputs["x"] * inputs["w"],
        work=lambda shape, direction, size: Work(flops=shape["B"] * shape["N"] * 1e4, bytes=3.0 * size * shape["B"] * shape["N"]),
    )

GOOD = benchmark(OURS, WRONG, FAILING, ABSENT, OTHER)
RED = benchmark(attrs_evolve(DETACHED, is_ours=True), OURS)
FOREIGN = "not a benchmark"

RUNS = []

def run(out, *, minutes, steps, is_rehearsal):
    RUNS.append((minutes, steps, is_rehearsal))
    (out / "summary.md").write_text("done")
    return "red" not in steps

FIRST_RUN = FirstRun(steps=("check", "red"), run=run)
"""

PLUGIN = """\
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.spec.kernel import KernelOp

MEDVLP_INTERFACE = 2

@hookimpl
def medvlp_register_kernels(registry):
    names = {"build": "{space}_toy:KERNEL", "benchmark": "{space}_toy:{name}", "first_run": "{space}_toy:FIRST_RUN"}
    registry.add(KernelOp(name="{space}.gate", summary="a gate", **names))
    registry.add(KernelOp(name="{space}.bare", summary="without a benchmark", build="{space}_toy:KERNEL"))
"""


def new_space() -> str:
    """A namespace that nobody has used."""
    return f"toy{next(NUMBERS)}"


def write_toy(folder: Path, space: str) -> None:
    """The module with the op and its benchmarks."""
    text = TOY.replace("{space}", space).replace("attrs_evolve", "__import__('attrs').evolve")
    (folder / f"{space}_toy.py").write_text(text)


def install(folder: Path, space: str, name: str) -> None:
    """Lay out what pip would install: a plugin whose op has the benchmark ``name``."""
    (folder / f"{space}_plugin.py").write_text(PLUGIN.replace("{space}", space).replace("{name}", name))
    info = folder / f"{space}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {space}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[medvlp.plugins]\n{space} = {space}_plugin\n")
