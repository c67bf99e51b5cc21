"""Benchmarks of ops: the check that comes first, and paired ratios. On a toy op."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from toy_op import new_space, write_toy

from medvlp_core.errors import PluginError
from medvlp_core.kernels.benchmark import Inputs, KernelBenchmark, check, load_benchmark, load_first_run, scaled, wrong_rivals
from medvlp_core.kernels.benchmark_report import Outcome, check_table, milliseconds, time_table
from medvlp_core.kernels.machine import HostClock, Rates, measure_rates
from medvlp_core.kernels.timing import floor_of, geometric_mean, measure, paired_ratio
from medvlp_core.spec.kernel import KernelOp

CPU = torch.device("cpu")


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace that nobody has used, with the toy's module importable; only it is loaded."""
    name = new_space()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MEDVLP_PLUGINS", name)
    write_toy(tmp_path, name)
    return name


@pytest.fixture
def toy(space: str) -> Any:
    """The toy's module."""
    __import__(f"{space}_toy")
    return sys.modules[f"{space}_toy"]


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


# ---------------------------------------------------------------------------------------------------------------- declarations


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


def test_a_first_run_that_is_none_is_the_plugins_fault(space: str, toy: Any) -> None:
    op = KernelOp(name=f"{space}.gate", summary="", build="", first_run=f"{space}_toy:FIRST_RUN")
    assert load_first_run(op) is toy.FIRST_RUN
    for name in ("FOREIGN", "MISSING"):
        with pytest.raises(PluginError, match=r"MV302|MV303"):
            load_first_run(attrs.evolve(op, first_run=f"{space}_toy:{name}"))
