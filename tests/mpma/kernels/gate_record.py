"""What every configuration of the tables needs on its GPU, kept in ``gate_record.json``: compiled once, not in every test run.

    python tests/mpma/kernels/gate_record.py           compile what the record lacks, and write it
    python tests/mpma/kernels/gate_record.py --all     compile everything (minutes); write it if this is the constrained Triton
    python tests/mpma/kernels/gate_record.py --check   say why the record is out of date; exit code 1 if it is

The figures of a case stand under a hash of the case (sizes, switches, dtypes, warps, stages, architecture: all that the tables
decide) and of the text of the module that its kernel is in, and the record names its Triton. A changed kernel, table or compiler
therefore finds no figures: none can pass for another's.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import attrs
from medvlp_mpma.kernels import compile_gate
from medvlp_mpma.kernels.compile_gate import Case, Compiled
from medvlp_mpma.kernels.memory_attention import gate as attention_gate
from medvlp_mpma.kernels.memory_topk import gate as topk_gate
from medvlp_mpma.kernels.tables import gpu_tables
from packaging.version import Version

RECORD = Path(__file__).with_suffix(".json")
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
COMMAND = "python tests/mpma/kernels/gate_record.py"

#: The Triton that the gate is strict with, where constraints.txt does not pin one.
TRITON = "3.9.0"

#: The fields of a result that the record keeps; how long it took is no fact about the configuration.
FIELDS = ("registers", "spill_bytes", "shared_bytes", "tensor_core", "error")

ARCHITECTURES = tuple(int(name.removeprefix("sm_")) for name in gpu_tables(topk_gate.tuning.TABLES))

#: All that is gated: every kernel for every architecture that has tables.
CASES = tuple(case for arch in ARCHITECTURES for gate in (attention_gate, topk_gate) for case in gate.cases(arch))


def constrained_triton(constraints: Path = CONSTRAINTS) -> str:
    """The newest Triton that constraints.txt pins (older Pythons have older ones), else :data:`TRITON`."""
    text = constraints.read_text(encoding="utf-8") if constraints.is_file() else ""
    pinned = re.findall(r"^triton\s*==\s*([\w.]+)", text, flags=re.MULTILINE)
    return max(pinned, key=Version, default=TRITON)


def installed_triton() -> str:
    """The Triton that compiles here."""
    return version("triton")


@functools.cache
def source_text(module: str) -> str:
    """The text of a module with device code, which imports nothing but Triton (a test sees to that)."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")


def key(case: Case) -> str:
    """What the figures of a case stand under: a hash of the case, of the compiler's options and of the kernel's source."""
    parts = [attrs.asdict(case), case.options, source_text(case.kernel.partition(":")[0])]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def expected_tensor_core(case: Case) -> str:
    """16-bit products run on tensor cores, float32 ones do not."""
    is_half = any(kind in ("*bf16", "*fp16") for kind in case.signature.values())
    return {80: "HMMA", 90: "HGMMA"}[case.arch] if is_half else ""


@attrs.frozen(kw_only=True)
class Record:
    """Figures of cases by :func:`key`, as one Triton compiled them."""

    triton: str
    figures: Mapping[str, Mapping[str, int | str]]

    @classmethod
    def read(cls, path: Path = RECORD) -> Record:
        """The committed record; an empty one if there is none."""
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"triton": "", "figures": {}}
        return cls(triton=found["triton"], figures=found["figures"])

    @classmethod
    def of(cls, cases: Sequence[Case], results: Sequence[Compiled], triton: str) -> Record:
        """A record of fresh results."""
        figures = {}
        for case, one in zip(cases, results, strict=True):
            head = {"kernel": case.kernel.rpartition(":")[2], "arch": case.arch}
            figures[key(case)] = head | {name: value for name in FIELDS if (value := getattr(one, name)) or name != "error"}
        return cls(triton=triton, figures=figures)

    def text(self) -> str:
        """The file: one case a line."""
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(figures)}" for name, figures in self.figures.items())
        return f'{{\n  "triton": {json.dumps(self.triton)},\n  "figures": {{\n{lines}\n  }}\n}}\n'

    def lacks(self, cases: Sequence[Case]) -> list[Case]:
        """The cases without figures of the constrained Triton: all, if the record is of another one."""
        return [case for case in cases if self.triton != constrained_triton() or key(case) not in self.figures]

    def result(self, case: Case) -> Compiled:
        """The recorded result of a case that is not lacking."""
        figures = {name: value for name, value in self.figures[key(case)].items() if name in FIELDS}
        return Compiled(kernel=case.kernel, arch=case.arch, config=case.config, warps=case.warps, **figures)  # type: ignore[arg-type]

    def complaints(self, cases: Sequence[Case] = CASES) -> list[str]:
        """Why the record is out of date; empty if it is of these sources, these tables and the constrained compiler."""
        found = []
        if self.triton != (wanted := constrained_triton()):
            found.append(f"the record is of Triton {self.triton or '(none)'}, the constrained one is {wanted}")
        lacking: dict[str, int] = {}
        for case in cases:
            if key(case) not in self.figures:
                name = f"{case.kernel.rpartition(':')[2]} sm_{case.arch}"
                lacking[name] = lacking.get(name, 0) + 1
        found += [f"{name}: {count} configurations are not in the record" for name, count in lacking.items()]
        if left := len(self.figures.keys() - {key(case) for case in cases}):
            found.append(f"{left} configurations of the record are of other sources or tables")
        return found


def sample(cases: Sequence[Case], seed: int, per_architecture: int = 3) -> list[Case]:
    """A few cases drawn at random: for each architecture some of its kernels, one case of each."""
    draw = random.Random(seed)
    chosen = []
    for arch in ARCHITECTURES:
        by_kernel: dict[str, list[Case]] = {}
        for case in cases:
            if case.arch == arch:
                by_kernel.setdefault(case.kernel, []).append(case)
        names = draw.sample(sorted(by_kernel), min(per_architecture, len(by_kernel)))
        chosen += [draw.choice(by_kernel[name]) for name in names]
    return chosen


def faults_of(cases: Sequence[Case], results: Sequence[Compiled]) -> dict[str, list[str]]:
    """What speaks against configurations, by configuration; empty if all keep the rules."""
    return {
        f"{one.kernel} sm_{one.arch} {one.config}": found
        for case, one in zip(cases, results, strict=True)
        if (found := one.faults(expected_tensor_core(case)))
    }


def main(arguments: Sequence[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="compile everything, also what the record has")
    parser.add_argument("--check", action="store_true", help="compile nothing, say why the record is out of date")
    options = parser.parse_args(arguments)
    record, wanted, installed = Record.read(), constrained_triton(), installed_triton()
    if options.check:
        print("\n".join(record.complaints()) or "the record is current")
        return int(bool(record.complaints()))
    if installed != wanted and not options.all:
        print(f"the record is for Triton {wanted}, and this is {installed}: --all compiles everything and writes nothing")
        return 2
    cases = list(CASES) if options.all else record.lacks(CASES)
    results = compile_gate.run_gate(cases)
    print(compile_gate.table(results))
    print(compile_gate.summary(results))
    fresh = {key(case): one for case, one in zip(cases, results, strict=True)}
    faults = faults_of(cases, results)
    print(f"{len(faults)} of {len(cases)} configurations with faults under Triton {installed}", *faults.items(), sep="\n")
    if installed == wanted:
        whole = [fresh.get(key(case)) or record.result(case) for case in CASES]
        RECORD.write_text(Record.of(CASES, whole, installed).text(), encoding="utf-8")
        print(f"wrote {RECORD.name}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
