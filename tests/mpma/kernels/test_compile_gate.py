"""Every configuration of the tables compiles for sm_80 and sm_90: without spills, within its budgets, on tensor cores.

Strict with the Triton that the project pins, from a record of its figures (``gate_record.py``); other Tritons are reported on.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from unittest import mock

import attrs
import gate_record
import medvlp_mpma
import pytest
from gate_record import ARCHITECTURES, CASES, Record
from medvlp_mpma.kernels import compile_gate
from medvlp_mpma.kernels.compile_gate import Case, Compiled, register_budget
from medvlp_mpma.kernels.memory_topk.gate import threshold_case

IS_CONSTRAINED = gate_record.installed_triton() == gate_record.constrained_triton()


def test_the_record_is_current() -> None:
    assert gate_record.Record.read().complaints() == [], f"compile and record anew: {gate_record.COMMAND}"


def test_every_configuration_compiles_and_fits(show_at_the_end: Callable[[str], None]) -> None:
    record = Record.read()
    lacking = record.lacks(CASES)
    fresh = compile_gate.run_gate(lacking) if IS_CONSTRAINED else []
    known = [case for case in CASES if case not in lacking]
    cases, results = [*lacking[: len(fresh)], *known], [*fresh, *(record.result(case) for case in known)]
    source = f"{len(known)} of {len(CASES)} from the record, {len(fresh)} compiled now" if fresh else "all from the record"
    show_at_the_end(f"Triton {gate_record.constrained_triton()}, {source}\n{compile_gate.summary(results)}")
    print(compile_gate.table(results))
    assert gate_record.faults_of(cases, results) == {}


def test_the_record_is_what_the_compiler_says(show_at_the_end: Callable[[str], None]) -> None:
    """A few configurations, other ones each day, are compiled and compared with the record, number by number.

    Another Triton gives other numbers: then what is wrong is shown, and only a configuration that cannot run is a failure.
    """
    day = date.today().toordinal()
    cases = gate_record.sample(CASES, day)
    results = compile_gate.run_gate(cases)
    installed = gate_record.installed_triton()
    show_at_the_end(f"Triton {installed}, compiled now (drawn with seed {day})\n{compile_gate.table(results)}")
    if IS_CONSTRAINED:
        record = Record.read()
        lacking = record.lacks(cases)
        recorded = [case for case in cases if case not in lacking]
        found = [attrs.evolve(one, seconds=0.0) for case, one in zip(cases, results, strict=True) if case in recorded]
        assert found == [record.result(case) for case in recorded]
    elif faults := gate_record.faults_of(cases, results):
        text = "; ".join(f"{name.partition(' ')[0].rpartition(':')[2]}: {', '.join(found)}" for name, found in faults.items())
        warnings.warn(f"the tables are made for Triton {gate_record.constrained_triton()}, under {installed}: {text}", stacklevel=1)
    assert [one for one in results if not one.runs] == []


# ------------------------------------------------------------------------------------------------------- no stale record passes


def test_a_case_has_its_own_figures() -> None:
    assert len({gate_record.key(case) for case in CASES}) == len(CASES)
    case = CASES[0]
    others = [
        attrs.evolve(case, constants={**case.constants, "BLOCK_N": 16}),
        attrs.evolve(case, warps=2),
        attrs.evolve(case, stages=7),
        attrs.evolve(case, arch=90),
        attrs.evolve(case, divisible=()),
    ]
    assert len({gate_record.key(one) for one in (case, *others)}) == 1 + len(others)


def test_figures_of_another_compiler_count_for_nothing() -> None:
    record = Record.read()
    older = attrs.evolve(record, triton="3.1.4")
    assert older.lacks(CASES) == list(CASES)
    assert "Triton 3.1.4" in older.complaints()[0]
    with mock.patch.object(gate_record, "constrained_triton", return_value="77.0"):
        assert record.lacks(CASES) == list(CASES)


def test_the_constrained_triton_is_that_of_the_constraints(tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    assert gate_record.constrained_triton(path) == gate_record.TRITON
    path.write_text("torch==2.15.0\n# triton==1.0\ntriton == 3.10.1  # comment\n", encoding="utf-8")
    assert gate_record.constrained_triton(path) == "3.10.1"
    path.write_text("torch==2.15.0\n", encoding="utf-8")
    assert gate_record.constrained_triton(path) == gate_record.TRITON


MUTATIONS = {
    "source": ("kernels/memory_topk/triton_kernel.py", "NUMBER_STEPS = tl.constexpr(8)", "NUMBER_STEPS = tl.constexpr(9)"),
    "table": ("kernels/memory_attention/tables/sm_90.json", '"stages": 3', '"stages": 4'),
}


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and words of ``gate_record.py --check`` for copies of the plug-in with one thing changed."""
    processes = {}
    for name, (file, old, new) in MUTATIONS.items():
        folder = tmp_path_factory.mktemp(name)
        copy = Path(shutil.copytree(Path(medvlp_mpma.__file__).parent, folder / "medvlp_mpma"))
        text = (copy / file).read_text(encoding="utf-8")
        assert old in text
        (copy / file).write_text(text.replace(old, new), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
        command = [sys.executable, gate_record.__file__, "--check"]
        processes[name] = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return {name: (process.communicate()[0], process.returncode)[::-1] for name, process in processes.items()}


def test_a_changed_kernel_finds_no_figures(checks: dict[str, tuple[int, str]]) -> None:
    """And those of the module that was not changed are found."""
    code, text = checks["source"]
    of_kernel = [[case for case in CASES if "threshold" in case.kernel and case.arch == arch] for arch in ARCHITECTURES]
    assert code == 1, text
    assert text.splitlines() == [
        *(f"threshold_kernel sm_{found[0].arch}: {len(found)} configurations are not in the record" for found in of_kernel),
        f"{sum(map(len, of_kernel))} configurations of the record are of other sources or tables",
    ]


def test_a_changed_table_finds_no_figures(checks: dict[str, tuple[int, str]]) -> None:
    code, text = checks["table"]
    of_rules = [case for case in CASES if "attention" in case.kernel and case.arch == 90 and case.stages == 3]
    assert code == 1, text
    assert text.splitlines()[-1] == f"{len(of_rules)} configurations of the record are of other sources or tables"


def test_device_code_imports_triton_alone() -> None:
    """Else the text of its module would not be all that its figures depend on."""
    for module in sorted({case.kernel.partition(":")[0] for case in CASES}):
        tree = ast.parse(gate_record.source_text(module))
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert names <= {"__future__", "triton", "triton.language"}, module


# ------------------------------------------------------------------------------------------------------------- the gate itself


def test_the_gate_sees_spills_and_errors() -> None:
    good = threshold_case(512, 64, "bf16", 90)
    crowded = attrs.evolve(good, constants={**good.constants, "QUERIES": 64, "PIECES": 8})
    illegal = attrs.evolve(good, constants={**good.constants, "CHUNK": 24})
    incomplete = attrs.evolve(good, constants={name: value for name, value in good.constants.items() if name != "PIECE"})
    results = compile_gate.run_gate([good, crowded, illegal, incomplete])
    assert results[0].faults("HGMMA") == []
    assert results[0].faults("HMMA") == ["uses HGMMA, expected HMMA"]
    assert results[1].faults("HGMMA") == [
        f"spills {results[1].spill_bytes} bytes",
        "uses 255 registers, the budget of 4 warps is 230",
    ]
    assert results[1].runs
    assert "power of 2" in results[2].faults()[0]
    assert "no constant for the arguments ['PIECE']" in results[3].faults()[0]
    assert not any(one.runs for one in results[2:])


def test_faults_are_all_named() -> None:
    one = Compiled(kernel="module:kernel", arch=80, config="", warps=16, registers=116, spill_bytes=8, shared_bytes=99 * 1024 + 1)
    assert one.faults("HMMA") == [
        "spills 8 bytes",
        "uses 116 registers, the budget of 16 warps is 115",
        "wants 101377 bytes of shared memory, the limit is 101376",
        "uses no tensor cores, expected HMMA",
    ]
    assert not one.runs


def test_a_budget_is_nine_tenths_of_what_a_thread_can_have() -> None:
    assert [register_budget(warps) for warps in (1, 4, 8, 16, 32)] == [230, 230, 230, 115, 57]


def in_this_process(cases: Sequence[Case]) -> list[Compiled]:
    return [Compiled(kernel=case.kernel, arch=case.arch, config=case.config, warps=case.warps) for case in cases]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_results_keep_the_order_of_the_cases(processes: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_gate, "_compile_in_processes", in_this_process)
    cases = CASES[:count]
    results = compile_gate.run_gate(cases, processes)
    assert [(one.arch, one.config) for one in results] == [(case.arch, case.config) for case in cases]
