"""Every configuration of the tables compiles for sm_80 and sm_90, without spills, within shared memory, on tensor cores."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from medvlp_mpma.kernels import compile_gate
from medvlp_mpma.kernels.compile_gate import Case, Compiled
from medvlp_mpma.kernels.memory_attention import gate as attention_gate
from medvlp_mpma.kernels.memory_topk import gate as topk_gate
from medvlp_mpma.kernels.memory_topk.gate import threshold_case
from medvlp_mpma.kernels.tables import gpu_tables

ARCHITECTURES = tuple(int(name.removeprefix("sm_")) for name in gpu_tables(topk_gate.tuning.TABLES))


#: All that is gated: every kernel for every architecture that has tables.
CASES = tuple(case for arch in ARCHITECTURES for gate in (attention_gate, topk_gate) for case in gate.cases(arch))


def expected_tensor_core(case: Case) -> str:
    """16-bit products run on tensor cores, float32 ones do not."""
    is_half = any(kind in ("*bf16", "*fp16") for kind in case.signature.values())
    return {80: "HMMA", 90: "HGMMA"}[case.arch] if is_half else ""


def test_every_configuration_compiles_and_fits(show_at_the_end: Callable[[str], None]) -> None:
    results = compile_gate.run_gate(CASES)
    text = compile_gate.table(results)
    show_at_the_end(text)
    print(text)
    faults = {
        f"{one.kernel} sm_{one.arch} {one.config}": found
        for case, one in zip(CASES, results, strict=True)
        if (found := one.faults(expected_tensor_core(case)))
    }
    assert faults == {}


def test_the_gate_sees_spills_and_errors() -> None:
    good = threshold_case(512, 64, "bf16", 90)
    crowded = attrs.evolve(good, constants={**good.constants, "QUERIES": 64, "PIECES": 8})
    illegal = attrs.evolve(good, constants={**good.constants, "CHUNK": 24})
    incomplete = attrs.evolve(good, constants={name: value for name, value in good.constants.items() if name != "PIECE"})
    results = compile_gate.run_gate([good, crowded, illegal, incomplete])
    assert results[0].faults("HGMMA") == []
    assert results[0].faults("HMMA") == ["uses HGMMA, expected HMMA"]
    assert results[1].faults("HGMMA") == [f"spills {results[1].spill_bytes} bytes"]
    assert "power of 2" in results[2].faults()[0]
    assert "no constant for the arguments ['PIECE']" in results[3].faults()[0]


def test_faults_are_all_named() -> None:
    one = Compiled(kernel="module:kernel", arch=80, config="", spill_bytes=8, shared_bytes=99 * 1024 + 1)
    assert one.faults("HMMA") == [
        "spills 8 bytes",
        "wants 101377 bytes of shared memory, the limit is 101376",
        "uses no tensor cores, expected HMMA",
    ]


@pytest.mark.parametrize("processes", [1, 3])
def test_results_keep_the_order_of_the_cases(processes: int) -> None:
    cases = [threshold_case(256, 64, kind, arch) for arch in ARCHITECTURES for kind in ("bf16", "fp32")]
    results = compile_gate.run_gate(cases, processes)
    assert [(one.arch, one.config) for one in results] == [(case.arch, case.config) for case in cases]
