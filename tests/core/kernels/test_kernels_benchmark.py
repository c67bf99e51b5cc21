"""Benchmarks of ops: the check that comes first, paired ratios, what is written, and the command's exit codes. On a toy op."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from medvlp_core.cli import main
from medvlp_core.errors import PluginError
from medvlp_core.kernels.benchmark import Inputs, KernelBenchmark, check, load_benchmark, scaled, wrong_rivals
from medvlp_core.kernels.benchmark_report import CSV_COLUMNS, Outcome, check_table, milliseconds, time_table
from medvlp_core.kernels.machine import HostClock, Rates, measure_rates
from medvlp_core.kernels.timing import floor_of, geometric_mean, measure, paired_ratio
from medvlp_core.spec.kernel import KernelOp

CPU = torch.device("cpu")
NUMBERS = itertools.count()

TOY = """\
import torch
from medvlp_core.kernels.benchmark import CheckCase, Contender, Inputs, KernelBenchmark, Shape, Work
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
"""

PLUGIN = """\
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.spec.kernel import KernelOp

MEDVLP_INTERFACE = 1

@hookimpl
def medvlp_register_kernels(registry):
    registry.add(KernelOp(name="{space}.gate", summary="a gate", build="{space}_toy:KERNEL", benchmark="{space}_toy:{name}"))
    registry.add(KernelOp(name="{space}.bare", summary="without a benchmark", build="{space}_toy:KERNEL"))
"""


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace that nobody has used, with the toy's module importable; only it is loaded."""
    name = f"toy{next(NUMBERS)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MEDVLP_PLUGINS", name)
    text = TOY.replace("{space}", name).replace("attrs_evolve", "__import__('attrs').evolve")
    (tmp_path / f"{name}_toy.py").write_text(text)
    return name


@pytest.fixture
def toy(space: str) -> Any:
    """The toy's module."""
    __import__(f"{space}_toy")
    return sys.modules[f"{space}_toy"]


def install(folder: Path, space: str, name: str) -> None:
    """Lay out what pip would install: a plugin whose op has the benchmark ``name``."""
    (folder / f"{space}_plugin.py").write_text(PLUGIN.replace("{space}", space).replace("{name}", name))
    info = folder / f"{space}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {space}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[medvlp.plugins]\n{space} = {space}_plugin\n")


class Steps:
    """A clock whose readings are given: round by round, contender by contender, forward and backward."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = iter(seconds)

    def time(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], float]]:
        """The call happens; the reading is the next of the list."""
        seconds = next(self.seconds)
        return function(), lambda: seconds

    def finish(self) -> None:
        """Nothing is pending."""


RATES = Rates(flops=1e9, bytes=1e9, exps=1e9)

# ----------------------------------------------------------------------------------------------------------------------- check


def test_outputs_and_gradients_are_compared(toy: Any) -> None:
    benchmark = toy.benchmark(toy.OURS, toy.WRONG, toy.DETACHED, toy.FAILING, toy.ABSENT, toy.OTHER)
    found = check(benchmark, benchmark.shapes, CPU, torch.float32)
    by_name = {one.contender: one for one in found if one.shape == "A"}
    assert list(by_name) == ["plain", "ours", "wrong", "detached", "failing"]
    assert not by_name["plain"].is_red
    assert set(by_name["ours"].errors) == {"output", "gradient of x", "gradient of w"}
    assert max(by_name["ours"].errors.values()) < 1e-6
    assert by_name["wrong"].is_red
    assert by_name["detached"].errors["output"] < 1e-6
    assert by_name["detached"].worst == "gradient of w 1.0e+00 (at most 1e-04)"
    assert by_name["failing"].reason == "RuntimeError: no such unit"
    marked = wrong_rivals(found)
    assert {name for _, _, name in marked} == {"wrong", "detached", "failing"}
    assert [row[1] for row in check_table(found)[1:]] == ["right", "right", "WRONG", "WRONG", "WRONG"]


def test_nan_is_red(toy: Any) -> None:
    nan = attrs.evolve(toy.RIGHT, name="nan", make=toy.by(lambda x, w: x * w * float("nan"), "nan"))
    (found,) = check(toy.GOOD, toy.GOOD.shapes[:1], CPU, torch.float32, contenders=[nan])
    assert found.is_red
    assert "nan" in found.worst


def test_the_reference_gets_the_rounded_numbers(toy: Any) -> None:
    found = check(toy.GOOD, toy.GOOD.shapes, CPU, torch.float16, contenders=[toy.OURS])
    assert not any(one.is_red for one in found)
    assert max(found[0].errors.values()) > 1e-6  # one rounding of float16


# ---------------------------------------------------------------------------------------------------------------------- timing


def test_ratios_are_paired_by_round(toy: Any) -> None:
    benchmark = toy.benchmark(toy.OURS)
    shape = benchmark.shapes[0].resized(B=2)
    # Rounds start with another contender each; the machine is ten times slower in the second round.
    clock = Steps(2, 4, 1, 1, 10, 10, 20, 40, 2, 4, 1, 2)
    rows = measure(benchmark, [shape], CPU, torch.float32, RATES, rounds=3, clock=clock)
    found = {(row.contender, row.direction): row for row in rows}
    assert found["plain", "forward"].times == (2, 20, 2)
    assert found["ours", "forward"].times == (1, 10, 1)
    assert found["ours", "both"].times == (2, 20, 3)
    assert found["ours", "forward"].ratio == 2.0
    assert found["ours", "backward"].ratio == 4.0
    assert found["ours", "both"].ratio == 3.0
    assert found["plain", "both"].ratio == 1.0
    assert found["ours", "forward"].quantile(0.5) == 1


def test_what_cannot_be_timed_has_a_reason(toy: Any) -> None:
    skipped = {(toy.GOOD.op, "A", "wrong"): "it is wrong"}
    rows = measure(toy.GOOD, [toy.GOOD.shapes[0].resized(B=2)], CPU, torch.float32, RATES, rounds=1, skipped=skipped)
    reasons = {row.contender: row.reason for row in rows if row.direction == "forward"}
    failure = "RuntimeError: no such unit"
    assert reasons == {"plain": "", "ours": "", "wrong": "it is wrong", "failing": failure, "absent": "far away", "other": ""}
    assert all(bool(row.times) == (not row.reason) for row in rows)
    assert [row.direction for row in rows if row.contender == "other"] == ["forward"]
    table = time_table(Outcome(benchmark=toy.GOOD, shapes=toy.GOOD.shapes[:1], rows=rows), "forward")
    assert [row[0] for row in table] == ["ms (times as fast)", "plain", "ours", "other *", "floor of this device"]


def test_a_slow_contender_gets_fewer_rounds(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvlp_core.kernels.timing.SECONDS_FOR_A_CONTENDER", 0.0)
    rows = measure(toy.benchmark(), [toy.GOOD.shapes[0].resized(B=2)], CPU, torch.float32, RATES, rounds=9)
    assert {len(row.times) for row in rows} == {3}
    assert paired_ratio([6.0, 6.0, 6.0, 100.0], [2.0, 3.0, 2.0]) == 3.0


def test_only_the_forward_pass_is_run_if_only_that_is_wanted(toy: Any) -> None:
    made = attrs.evolve(toy.RIGHT, name="plain", make=toy.by(_no_gradient, "plain"))
    benchmark = attrs.evolve(toy.GOOD, contenders=(made,))
    rows = measure(benchmark, [toy.GOOD.shapes[0].resized(B=2)], CPU, torch.float32, RATES, rounds=2, directions=("forward",))
    assert [(row.direction, len(row.times), row.reason) for row in rows] == [("forward", 2, "")]


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no backward pass was wanted")


def _no_gradient(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return _NoBackward.apply(x)


def test_saved_bytes_do_not_count_inputs_and_count_a_storage_once(toy: Any) -> None:
    twice = attrs.evolve(toy.RIGHT, make=toy.by(lambda x, w: (lambda y: y * y)(x.exp()) * w, "plain"))
    benchmark = attrs.evolve(toy.GOOD, contenders=(toy.RIGHT, attrs.evolve(twice, name="twice")))
    rows = measure(benchmark, [toy.GOOD.shapes[0].resized(B=2)], CPU, torch.float32, RATES, rounds=1)
    saved = {row.contender: row.saved_bytes for row in rows}
    assert saved == {"plain": 0, "twice": 2 * (2 * 8 * 4)}  # exp(x), which its own gradient shares, and its square


def test_floors_and_means(toy: Any) -> None:
    shape = toy.GOOD.shapes[0].resized(B=1)
    rates = Rates(flops=8e4, bytes=1.0, exps=1.0)
    assert floor_of(toy.GOOD, shape, "forward", torch.float32, rates) == 96.0
    assert floor_of(toy.GOOD, shape, "both", torch.float16, rates) == 96.0
    rows = measure(toy.benchmark(), [shape], CPU, torch.float32, rates, rounds=1, clock=Steps(48, 192))
    assert [row.share_of_floor for row in rows] == [2.0, 0.5, 0.8]
    pair = [attrs.evolve(rows[0], ratio=ratio) for ratio in (1.0, 4.0)]
    assert geometric_mean(pair) == 2.0
    assert geometric_mean([attrs.evolve(rows[0], ratio=None)]) is None


def test_shapes_shrink_by_a_scale_or_to_what_a_cpu_can_do(toy: Any) -> None:
    def batches(device: str, scale: float | None) -> list[int]:
        return [shape["B"] for shape in scaled(toy.GOOD, toy.GOOD.shapes, torch.device(device), scale)]

    assert batches("cuda", None) == [4000, 4000]
    assert batches("cuda", 0.5) == [2000, 2000]
    assert batches("cpu", 1.0) == [4000, 4000]
    assert batches("cpu", 1e-6) == [1, 1]
    assert batches("cpu", None) == [4000, 4000]  # 3e8 and 6e8 operations are few
    heavy = attrs.evolve(toy.GOOD, work=lambda shape, *_: attrs.evolve(toy.GOOD.work(shape, *_), flops=1e8 * shape["B"]))
    assert [shape["B"] for shape in scaled(heavy, heavy.shapes, CPU, None)] == [20, 20]


def test_the_rates_of_this_machine_are_numbers() -> None:
    rates = measure_rates(CPU, torch.float32)
    assert min(rates.flops, rates.bytes, rates.exps) > 1e6
    assert "GFLOP/s (matmul)" in rates.text
    result, read = HostClock().time(lambda: 7)
    assert (result, read() >= 0.0) == (7, True)
    assert [milliseconds(x) for x in (0.0000123, 0.00123, 0.0123, 0.123, 12.3)] == ["0.0123", "1.23", "12.3", "123", "12,300"]


# --------------------------------------------------------------------------------------------------------------------- command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["bench", "kernels", "--device", "cpu", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_writes_what_it_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any) -> None:
    install(tmp_path, space, "GOOD")
    out = tmp_path / "result"
    code, printed, err = run(capsys, "--scale", "0.001", "--repeats", "2", "--out", str(out))
    assert code == 0
    assert "the batch is shrunk (--scale 1 takes all): A 4 of 4000, B 4 of 4000" in printed
    assert f"{space}.gate, forward + backward, against plain" in printed
    assert "  not timed: absent (A, B): far away" in printed
    assert "  not timed: failing (A, B): wrong or failed in the check: RuntimeError: no such unit" in printed
    assert "wrong or failed in the check: output" in printed
    assert "timing shape A (B=4 N=8) ..." in err
    assert sorted(path.name for path in out.iterdir()) == ["kernels.csv", "roofline.png", "summary.md"]
    assert ("wrong", 4) not in toy.CALLS

    with (out / "kernels.csv").open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        lines = list(reader)
        assert tuple(reader.fieldnames or ()) == CSV_COLUMNS
    assert len(lines) == 2 * (5 * 3 + 1)
    ours = next(line for line in lines if (line["contender"], line["direction"], line["shape"]) == ("ours", "both", "B"))
    assert (ours["dtype"], ours["sizes"], ours["rounds"], ours["baseline"]) == ("float32", "B=4 N=16", "2", "plain")
    assert float(ours["p20_ms"]) <= float(ours["median_ms"]) <= float(ours["p80_ms"])
    assert float(ours["share_of_floor"]) == pytest.approx(float(ours["floor_ms"]) / float(ours["median_ms"]), rel=1e-3)
    assert ours["peak_bytes"] == ""
    absent = next(line for line in lines if line["contender"] == "absent")
    assert (absent["reason"], absent["median_ms"], absent["ratio"], absent["rounds"]) == ("far away", "", "", "0")

    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert "    medvlp bench kernels --device cpu --scale 0.001 --repeats 2\n" in summary
    assert "### Times, forward + backward" in summary
    assert str(tmp_path) not in summary
    with Image.open(out / "roofline.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_nothing_is_timed_while_ours_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any) -> None:
    install(tmp_path, space, "RED")
    out = tmp_path / "result"
    code, printed, err = run(capsys, "--out", str(out))
    assert code == 1
    assert "nothing is timed: what is ours gives wrong numbers\n" in err
    assert f"    {space}.gate, shape A, small: detached: gradient of w 1.0e+00 (at most 1e-04)\n" in err
    assert "rates of the device" not in printed
    assert {batch for _, batch in toy.CALLS} == {3}  # only the check called anything
    assert not out.exists()


def test_one_op_shape_and_direction(capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str) -> None:
    install(tmp_path, space, "GOOD")
    out = tmp_path / "result"
    wanted = ["--op", f"{space}.gate", "--shape", "B", "--direction", "forward"]
    code, printed, _ = run(capsys, *wanted, "--scale", "0.001", "--repeats", "1", "--out", str(out))
    assert code == 0
    assert "backward" not in printed.partition("rates")[2]
    with (out / "kernels.csv").open(encoding="utf-8", newline="") as stream:
        assert {(line["shape"], line["direction"]) for line in csv.DictReader(stream)} == {("B", "forward")}


def test_without_matplotlib_there_is_no_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    install(tmp_path, space, "GOOD")
    code, printed, err = run(capsys, "--scale", "0.001", "--repeats", "1", "--out", str(tmp_path / "result"))
    assert code == 0
    assert "roofline.png is skipped: matplotlib is not installed (pip install matplotlib)" in err
    assert printed.rstrip().endswith("kernels.csv, summary.md")


def test_wrong_names_are_found_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, space: str, toy: Any
) -> None:
    install(tmp_path, space, "GOOD")
    code, _, err = run(capsys, "--op", f"{space}.gat")
    assert (code, err) == (2, f"medvlp bench: there is no op '{space}.gat'\n    hint: did you mean '{space}.gate'?\n")
    assert run(capsys, "--op", f"{space}.bare")[0] == 2
    code, _, err = run(capsys, "--shape", "Z")
    assert (code, err) == (2, "medvlp bench: there is no shape 'Z'\n    hint: shapes: A, B\n")
    assert main(["bench", "engines"]) == 2
    assert run(capsys, "--scale", "2")[0] == 2
    assert run(capsys, "--repeats", "0")[0] == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    assert run(capsys, "--out", str(tmp_path / "full"))[0] == 1
    assert toy.CALLS == []


def test_without_any_benchmark(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLP_PLUGINS", "")
    code, _, err = run(capsys)
    assert (code, err) == (2, "medvlp bench: no plugin registers a kernel that has a benchmark\n")


@pytest.mark.parametrize("name", ["FOREIGN", "MISSING"])
def test_a_benchmark_that_is_none_is_the_plugins_fault(space: str, toy: Any, name: str) -> None:
    op = KernelOp(name=f"{space}.gate", summary="", build="", benchmark=f"{space}_toy:{name}")
    with pytest.raises(PluginError, match=r"MV302|MV303"):
        load_benchmark(op)


def test_declarations_are_checked(toy: Any) -> None:
    with pytest.raises(ValueError, match="baseline 'fast'"):
        attrs.evolve(toy.GOOD, baseline="fast")
    with pytest.raises(ValueError, match="contenders"):
        toy.benchmark(toy.OURS, toy.OURS)
    assert isinstance(toy.GOOD, KernelBenchmark)
    assert isinstance(toy.GOOD.make_inputs(toy.GOOD.shapes[0], CPU, torch.float32, 0), Inputs)
