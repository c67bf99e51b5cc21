"""Compiles Triton kernels for GPUs that are not here, and reports what they need: registers, spills, shared memory, tensor cores.

Triton's wheel brings an assembler and a disassembler, so a machine without a GPU can tell that a configuration will not compile,
spills or misses the tensor cores. The work is done in subprocesses without Triton's variables, of which ``TRITON_INTERPRET`` would
interpret functions instead of compiling them and others would choose another assembler, and with an empty cache of their own.

A configuration that takes the last registers of one compiler spills under the next, and so each has a budget: nine tenths of the
registers that its threads can have.

Example::

    case = Case(
        kernel="medvlp_mpma.kernels.memory_topk.triton_kernel:threshold_kernel",
        signature={"q": "*bf16", ...},
        constants={"QUERIES": 16, ...},
        warps=8,
        stages=2,
        arch=90,
    )
    print(table(run_gate([case])))
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from medvlp_mpma.kernels.options import launch_options

#: Shared memory that a program may use, in bytes, by compute capability (CUDA C programming guide). What is compiled for 8.0 also
#: serves 8.6, 8.9 and 12.0, which have 99 KB instead of 163.
SHARED_LIMITS = {80: 99 * 1024, 90: 227 * 1024}

Constant = int | float | bool | str | None


def register_budget(warps: int) -> int:
    """Registers that a thread of a program may use: 9/10 of min(256, 65536 / threads), which is 230 up to 8 warps and 115 for 16.

    65536 is what a multiprocessor has, in all architectures from 8.0 on; 255 is the most that a thread can name.
    """
    return 9 * min(256, 65536 // (32 * warps)) // 10


@attrs.frozen(kw_only=True)
class Case:
    """One kernel with one configuration for one architecture.

    ``kernel`` is ``module:function``. ``signature`` gives the types of the arguments that are not in ``constants``: ``*bf16``,
    ``*fp16``, ``*fp32``, ``i32``, ``fp32``. An argument that is None at a launch, or an integer 1, is a constant. Pointers count as
    aligned to 16 bytes; name the integers that are multiples of 16 in ``divisible``: the compiler specialises on both.
    """

    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Constant]
    warps: int
    stages: int
    arch: int
    divisible: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, int | bool]:
        """What Triton's compiler is told besides, as a launch would."""
        return launch_options(self.warps, self.stages)

    @property
    def config(self) -> str:
        """The constants, warps and stages in one line."""
        constants = " ".join(f"{name}={value}" for name, value in self.constants.items())
        dtypes = "/".join(dict.fromkeys(kind[1:] for kind in self.signature.values() if kind.startswith("*")))
        return f"{dtypes} {constants} warps={self.warps} stages={self.stages}"


@attrs.frozen(kw_only=True)
class Compiled:
    """What a case needs on the GPU; ``error`` holds the compiler's last line if it does not compile.

    ``registers`` are per thread, ``spill_bytes`` too (they count the whole stack frame), ``shared_bytes`` per program.
    ``tensor_core`` names the instructions found: ``HGMMA`` (wgmma of sm_90), ``HMMA``, both, or none.
    """

    kernel: str
    arch: int
    config: str
    warps: int
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    tensor_core: str = ""
    seconds: float = 0.0
    error: str = ""

    @property
    def runs(self) -> bool:
        """Whether a GPU can launch it at all, however slowly: it compiles, and its shared memory is there."""
        return not self.error and self.shared_bytes <= SHARED_LIMITS[self.arch]

    def faults(self, tensor_core: str = "") -> list[str]:
        """What speaks against the configuration, given the tensor-core instructions that are expected."""
        if self.error:
            return [f"does not compile: {self.error}"]
        found = [f"spills {self.spill_bytes} bytes"] if self.spill_bytes else []
        if self.registers > (budget := register_budget(self.warps)):
            found.append(f"uses {self.registers} registers, the budget of {self.warps} warps is {budget}")
        if self.shared_bytes > (limit := SHARED_LIMITS[self.arch]):
            found.append(f"wants {self.shared_bytes} bytes of shared memory, the limit is {limit}")
        if self.tensor_core != tensor_core:
            found.append(f"uses {self.tensor_core or 'no tensor cores'}, expected {tensor_core or 'none'}")
        return found


def run_gate(cases: Sequence[Case], processes: int = 2) -> list[Compiled]:
    """Compile all cases in subprocesses; the results stand in the order of the cases."""
    shares = [share for i in range(processes) if (share := cases[i::processes])]
    with ThreadPoolExecutor(max(1, len(shares))) as pool:
        parts = list(pool.map(_compile_in_processes, shares))
    return [parts[i % processes][i // processes] for i in range(len(cases))]


def table(results: Sequence[Compiled]) -> str:
    """The results as text, one line each."""
    lines = [f"{'kernel':<24} {'arch':<5} {'regs':>4} {'spill':>5} {'shared':>7} {'tensor':<6} {'s':>5}  configuration"]
    for one in results:
        place = f"{one.kernel.rpartition(':')[2]:<24} sm_{one.arch:<2}"
        numbers = f"{one.registers:>4} {one.spill_bytes:>5} {one.shared_bytes:>7} {one.tensor_core:<6} {one.seconds:>5.1f}"
        lines.append(f"{place} {numbers}  {one.config} {one.error}".rstrip())
    return "\n".join(lines)


def summary(results: Sequence[Compiled]) -> str:
    """The largest figures of each kernel on each architecture, with the registers that are left of the budget."""
    groups: dict[tuple[int, str], list[Compiled]] = {}
    for one in results:
        groups.setdefault((one.arch, one.kernel.rpartition(":")[2]), []).append(one)
    lines = [f"{'kernel':<24} {'arch':<5} {'cases':>5} {'regs':>4} {'left':>4} {'spills':>6} {'shared':>7} tensor cores"]
    for (arch, name), found in sorted(groups.items()):
        most = {field: max(getattr(one, field) for one in found) for field in ("registers", "shared_bytes")}
        left = min(register_budget(one.warps) - one.registers for one in found)
        spills = sum(one.spill_bytes > 0 for one in found)
        cores = " ".join(sorted({one.tensor_core or "none" for one in found}))
        numbers = f"{len(found):>5} {most['registers']:>4} {left:>4} {spills:>6} {most['shared_bytes']:>7} {cores}"
        lines.append(f"{name:<24} sm_{arch:<2} {numbers}")
    return "\n".join(lines)


def compile_case(case: Case) -> Compiled:
    """Compile one case in this process, which must not have ``TRITON_INTERPRET`` set."""
    result = Compiled(kernel=case.kernel, arch=case.arch, config=case.config, warps=case.warps)
    started = time.perf_counter()
    try:
        result = _compiled(case, result)
    except Exception as error:  # whatever the compiler raises is the result
        lines = str(error).strip().splitlines() or [""]
        cause = f" {error.__cause__}" if error.__cause__ else ""  # Triton points at the line, and its cause says what is wrong
        result = attrs.evolve(result, error=f"{type(error).__name__}: {lines[-1].strip()}{cause}")
    return attrs.evolve(result, seconds=time.perf_counter() - started)


def _compiled(case: Case, result: Compiled) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = case.kernel.partition(":")
    function = getattr(importlib.import_module(module), name)
    names: list[str] = function.arg_names
    if unknown := [one for one in (*case.signature, *case.constants, *case.divisible) if one not in names]:
        raise ValueError(f"{name} has no arguments {unknown}")
    kinds = {one: case.signature.get(one, "constexpr") for one in names}
    if missing := [one for one, kind in kinds.items() if kind == "constexpr" and one not in case.constants]:
        raise ValueError(f"no type and no constant for the arguments {missing}")
    is_multiple = [one for one, kind in kinds.items() if kind.startswith("*") or one in case.divisible]
    source = ASTSource(
        function,
        kinds,
        {(names.index(one),): value for one, value in case.constants.items()},
        {(names.index(one),): [["tt.divisibility", 16]] for one in is_multiple},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", case.arch, 32), options=case.options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage, code = (subprocess.check_output([tool, option, file.name], text=True) for option in ("-res-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump does not tell registers: {usage}")
    return attrs.evolve(
        result,
        registers=int(found[1]),
        spill_bytes=int(found[2]),
        shared_bytes=compiled.metadata.shared,
        tensor_core="+".join(kind for kind in ("HGMMA", "HMMA") if re.search(rf"\b{kind}\b", code)),
    )


def _compile_in_processes(cases: Sequence[Case]) -> list[Compiled]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    request = json.dumps([attrs.asdict(case) for case in cases])
    command = [sys.executable, "-m", "medvlp_mpma.kernels.compile_gate"]
    with tempfile.TemporaryDirectory() as cache:
        environment["TRITON_CACHE_DIR"] = cache
        done = subprocess.run(command, input=request, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"the compiling process ended with {done.returncode}:\n{done.stderr}")
    # Compilers print; the answer is the last line.
    return [Compiled(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def _main() -> None:
    cases = [Case(**{**one, "divisible": tuple(one["divisible"])}) for one in json.loads(sys.stdin.read())]
    print(json.dumps([attrs.asdict(compile_case(case)) for case in cases]))


if __name__ == "__main__":
    _main()
