"""The benchmarks of the memory's ops: floors as designed, contenders that agree, variants of our kernels, the command."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_attention import composite, tuning
from medvlp_mpma.kernels.memory_topk import benchmark as topk
from medvlp_mpma.plugin import KERNELS
from triton_patch import at_startup

from medvlp_core.cli import main
from medvlp_core.kernels.benchmark import Contender, KernelBenchmark, check, load_benchmark
from medvlp_core.kernels.machine import Rates, device_label, measure_rates
from medvlp_core.kernels.timing import floor_of, measure

CPU = torch.device("cpu")
BENCHMARKS = {"attention": attention.BENCHMARK, "topk": topk.BENCHMARK}
SMALL = {"attention": {"H": 2, "L": 9, "S": 7, "M": 21, "D": 16}, "topk": {"H": 2, "L": 9, "M": 41, "D": 16, "K": 5}}

#: An H100 as design notes assume it, and from there GFLOP and MB of both passes and their floors in microseconds, in bfloat16.
H100 = Rates(flops=798e12, bytes=3.0e12, exps=3.7e12)
DESIGN = {
    "A": (12.0, 60, 20, 30, 120, 40, 60),
    "B": (56.6, 143, 71, 141, 286, 177, 248),
    "C": (105.6, 77, 132, 264, 160, 331, 463),
    "D": (35.7, 91, 45, 89, 184, 112, 157),
    "E": (32.2, 127, 42, 81, 255, 101, 143),
    "F": (11.5, 142, 47, 29, 282, 94, 141),
}


def test_the_plugin_names_both() -> None:
    assert [load_benchmark(op) for op in KERNELS] == [attention.BENCHMARK, topk.BENCHMARK]
    assert "".join(shape.letter for one in BENCHMARKS.values() for shape in one.shapes) == "ABCDEFG"


@pytest.mark.parametrize("shape", attention.SHAPES, ids=lambda shape: shape.letter)
def test_floors_of_attention_are_those_of_the_design(shape: attention.Shape) -> None:
    flops, moved, fast, flops_back, moved_back, back, both = DESIGN[shape.letter]
    forward, backward = (attention.work(shape, direction, 2) for direction in ("forward", "backward"))
    assert forward.flops / 1e9 == pytest.approx(flops, abs=0.06)
    assert forward.bytes / 1e6 == pytest.approx(moved, abs=0.6)
    assert backward.flops / 1e9 == pytest.approx(flops_back, abs=0.6)
    assert backward.bytes / 1e6 == pytest.approx(moved_back, abs=0.6)
    floors = [1e6 * floor_of(attention.BENCHMARK, shape, way, torch.bfloat16, H100) for way in ("forward", "backward", "both")]
    assert floors == pytest.approx([fast, back, both], abs=1.01)
    assert forward.exps / 3.7e12 < forward.flops / 798e12


def test_floor_of_topk_is_that_of_the_design() -> None:
    (shape,) = topk.SHAPES
    forward = topk.work(shape, "forward", 2)
    assert shape["B"] * shape["L"] == 38_144
    assert forward.flops / 1e9 == pytest.approx(120, abs=2.5)
    assert forward.bytes / 1e9 == pytest.approx(0.1, abs=0.05)
    assert 1e6 * floor_of(topk.BENCHMARK, shape, "forward", torch.bfloat16, H100) == pytest.approx(150, abs=4)
    backward = topk.work(shape, "backward", 2)
    assert backward.flops < forward.flops / 10  # winners alone


def small_shapes(name: str) -> list[attention.Shape]:
    shapes = [shape.resized(B=2, **SMALL[name]) for shape in BENCHMARKS[name].shapes[:1]]
    assert set(shapes[0].sizes) == {*SMALL[name], "B"}
    return shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_all_contenders_agree_with_the_reference(name: str, dtype: torch.dtype) -> None:
    benchmark = BENCHMARKS[name]
    found = check(benchmark, small_shapes(name), CPU, dtype)
    assert [f"{one.contender}: {one.worst}" for one in found if one.is_red] == []
    seen = {(one.contender, one.case) for one in found}
    if name == "attention":
        assert seen >= {("cat + SDPA", "odd sizes"), ("cat + math", "odd sizes"), ("naive", "padding"), ("composite", "padding")}
        assert ("cat + SDPA", "padding") not in seen
    else:
        assert seen >= {("masked-dense", "odd sizes"), ("gather", "odd sizes"), ("composite", "odd sizes")}
        assert "all slots" not in {contender for contender, _ in seen}


def test_every_shape_has_cases_of_its_own() -> None:
    for benchmark in BENCHMARKS.values():
        for shape in benchmark.shapes:
            cases = list(benchmark.check_cases(shape, CPU, torch.float32))
            for case in cases:
                assert case.inputs["q"].shape[0] == 3
                assert case.inputs["mem_k"].shape[0] == shape["M"] - 5
            if benchmark is attention.BENCHMARK:
                assert cases[1].inputs.options["key_lens"].min() == 0
                assert not {"composite", "naive", "triton"} & set(cases[1].skip)


def test_every_contender_is_timed_or_gives_the_reason() -> None:
    rates = Rates(flops=1e9, bytes=1e9, exps=1e9)
    for name, benchmark in BENCHMARKS.items():
        rows = measure(benchmark, small_shapes(name), CPU, torch.float32, rates, rounds=1)
        assert {row.contender for row in rows} == {one.name for one in benchmark.contenders}
        assert all(row.times or row.reason for row in rows)
        timed = {row.contender for row in rows if row.times}
        assert timed >= {"composite", benchmark.baseline}
        if "TRITON_INTERPRET" not in os.environ:
            assert "triton" not in timed
        saved = {row.contender: row.saved_bytes or 0 for row in rows if row.times}
        assert saved["composite"] < saved[benchmark.baseline]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    gpu, dtype = torch.device("cuda", 0), torch.bfloat16
    rates = measure_rates(gpu, dtype)
    assert "GPU" in device_label(gpu) or "NVIDIA" in device_label(gpu)
    for benchmark in BENCHMARKS.values():
        shapes = [shape.resized(B=2) for shape in benchmark.shapes]
        assert [f"{one.contender}: {one.worst}" for one in check(benchmark, shapes, gpu, dtype) if one.is_ours and one.is_red] == []
        rows = measure(benchmark, shapes, gpu, dtype, rates, rounds=2)
        assert {row.reason for row in rows if row.is_ours} == {""}
        assert all(row.peak_bytes and min(row.times) > 0 for row in rows if row.is_ours)


def test_gather_is_not_started_where_its_gradient_does_not_fit() -> None:
    gather = next(one for one in topk.CONTENDERS if one.name == "gather")
    (shape,) = topk.SHAPES
    (reason,) = gather.unsupported_reasons(CPU, torch.float32, shape)
    assert "its backward pass makes a tensor of 240 GB" in reason
    assert gather.unsupported_reasons(CPU, torch.float32, shape.resized(B=1, H=1)) == ()


def variant(benchmark: KernelBenchmark, name: str) -> Contender:
    """Our composite through the door that variants of our kernels take."""
    make = attention.direct(composite.forward, composite.backward, lambda: attention.with_tiles({}))
    assert benchmark is attention.BENCHMARK
    return Contender(name=name, about="", make=make, is_ours=True)


def test_variants_are_checked_like_backends() -> None:
    (shape,) = small_shapes("attention")
    found = check(attention.BENCHMARK, [shape], CPU, torch.float32, contenders=[variant(attention.BENCHMARK, "direct")])
    assert [(one.case, one.is_red) for one in found] == [("odd sizes", False), ("padding", False)]
    one_fold = next(one for one in attention.CONTENDERS if one.name == "composite, one fold")
    assert one_fold.unsupported_reasons(CPU, torch.float32, shape)
    inputs = attention.make_inputs(shape, CPU, torch.float32, 0)
    torch.testing.assert_close(one_fold.make(inputs)(), attention.by_backend("composite")(inputs)())


def test_tiles_of_choice_count_only_inside() -> None:
    tiles = attention.Tiles(block_l=32, block_n=16, block_d=16, warps=4, stages=1)
    inputs = composite.AttentionInputs(*(torch.zeros(1, 2, 1, 16) for _ in range(3)), *(torch.zeros(3, 1, 16) for _ in range(2)))
    before = tuning.choose
    with attention.with_tiles({"forward": tiles, "grad_query": tiles}):
        assert tuning.choose("forward", inputs) is tiles
        assert not tuning.holds_all_queries(inputs)
    with attention.with_tiles({"grad_query_with_keys": tiles}):
        assert tuning.holds_all_queries(inputs)
    assert tuning.choose is before


INTERPRETED = """
import torch
from medvlp_core.kernels.benchmark import check
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_topk import benchmark as topk
import attrs
cpu = torch.device("cpu")
tiles = attention.Tiles(block_l=16, block_n=16, block_d=16, warps=4, stages=1)
every = {"forward": tiles, "grad_query": tiles, "grad_key": tiles, "grad_slot": tiles}
serves = lambda one: attrs.evolve(one, unsupported_reasons=lambda *_: ())
contenders = [serves(attention.triton_with("tiles", every))]
shape = attention.SHAPES[0].resized(H=1, L=9, S=7, M=21, D=16)
found = check(attention.BENCHMARK, [shape], cpu, torch.float32, contenders=contenders)
shape = topk.SHAPES[0].resized(L=20, M=25, D=16, K=5)
found += check(topk.BENCHMARK, [shape], cpu, torch.float32, contenders=[serves(topk.triton_with("tiles", tiles=every))])
assert len(found) == 3, found
assert not [one for one in found if one.is_red], [one.worst for one in found]
assert "interpreter" in attention.triton_with("tiles", {}).unsupported_reasons(cpu, torch.float32, attention.SHAPES[0])[0]
print("all right")
"""


def test_triton_kernels_with_other_tiles_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = at_startup({**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "all right\n", done.stderr


def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLP_PLUGINS", "mpma,bench")
    for module in (attention, topk):
        for shape in module.SHAPES:
            monkeypatch.setitem(shape.sizes, "H", 1)  # type: ignore[arg-type]
    out = tmp_path / "bench"
    options = ["--shape", "A", "--shape", "G", "--scale", "0.001", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    assert main(["bench", "kernels", *options]) == 0
    printed = capsys.readouterr().out
    assert "mpma.memory_attention, forward + backward, against cat + SDPA" in printed
    assert "mpma.memory_topk, forward + backward, against masked-dense" in printed
    with (out / "kernels.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert {line["shape"] for line in lines} == {"A", "G"}
    assert (out / "roofline.png").stat().st_size > 10_000
