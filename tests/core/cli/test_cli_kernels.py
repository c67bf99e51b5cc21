"""``medvlp kernels``, and the line about kernels in the header of a run: what serves on this machine, and why not another."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from rich.console import Console
from torch import nn

from medvlp_core.cli import main
from medvlp_core.cli.kernels import devices_here
from medvlp_core.errors import KernelError
from medvlp_core.kernels.dispatch import Backend, Call, Kernel, requested_backend
from medvlp_core.model.build import build_run
from medvlp_core.nn.interfaces import ChoosesKernels
from medvlp_core.runtime.device import usable_devices
from medvlp_core.training.describe_run import describe_run, kernels_in_use

NUMBERS = itertools.count()

OPS = """\
from medvlp_core.kernels.dispatch import Backend, Call, Kernel

def needs_half(call):
    return () if call.dtype in ("bfloat16", "float16") else (f"{call.dtype} is too wide", "needs a fast unit")

def serves(call):
    return ()

NEEDS = {"triton": needs_half, "composite": serves, "reference": serves}
BACKENDS = tuple(Backend(name=name, unsupported_reasons=reasons) for name, reasons in NEEDS.items())
ORDER = lambda call: ("triton", "composite")
EXAMPLE = Call("cpu", "float32", (("B", 2), ("M", 40)), frozenset(["bias"]))
GATE = Kernel(name="{space}.gate", backends=BACKENDS, order=ORDER, example=EXAMPLE)
FORGETFUL = Kernel(name="{space}.forgetful", backends=BACKENDS, order=lambda call: ("triton",) * call["M"])
"""

PLUGIN = """\
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.spec.kernel import KernelOp

MEDVLP_INTERFACE = 2

@hookimpl
def medvlp_register_kernels(registry):
    for name in {names!r}:
        registry.add(KernelOp(name="{space}." + name, summary="the " + name, build="{space}_ops:" + name.upper()))
"""

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace that nobody has used; the only one that is loaded."""
    name = f"acme{next(NUMBERS)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MEDVLP_PLUGINS", name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MEDVLP_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return name


def install(folder: Path, space: str, *names: str) -> None:
    """Lay out what pip would install: a plugin with these ops."""
    (folder / f"{space}_ops.py").write_text(OPS.replace("{space}", space))
    (folder / f"{space}_plugin.py").write_text(PLUGIN.replace("{space}", space).replace("{names!r}", repr(names)))
    info = folder / f"{space}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {space}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[medvlp.plugins]\n{space} = {space}_plugin\n")


def run(capsys: Capture, *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines about the CPU and what belongs to no device, and stderr. (What a GPU gets differs between machines.)"""
    code = main(list(arguments))
    captured = capsys.readouterr()
    kept, is_kept = [], True
    for line in captured.out.splitlines():
        if line.startswith("  ") and not line.startswith("   "):
            is_kept = not re.match(r"  (cuda|mps)\b", line)
        elif not line.startswith(" "):
            is_kept = True
        if is_kept:
            kept.append(line)
    return code, kept, captured.err


# ------------------------------------------------------------------------------------------------------------------ the command


def test_who_serves_and_the_reasons_against_others(capsys: Capture, tmp_path: Path, space: str) -> None:
    install(tmp_path, space, "gate")
    assert run(capsys, "kernels") == (
        0,
        [
            f"{space}.gate: the gate",
            "  asked about a call with B=2 M=40, bias",
            "  cpu, float32: composite",
            "    triton     cannot serve: float32 is too wide; needs a fast unit",
            "    reference  can serve, only when asked for by name",
        ],
        "",
    )
    assert run(capsys, "kernels", "--dtype", "bfloat16")[1][2:] == [
        "  cpu, bfloat16: triton",
        "    composite  can serve; triton comes first",
        "    reference  can serve, only when asked for by name",
    ]
    assert run(capsys, "kernels", "--dtype", "int8")[0] == 2


def test_the_variable_is_shown_and_counts(capsys: Capture, tmp_path: Path, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, space, "gate")
    monkeypatch.setenv("MEDVLP_KERNELS", "reference")
    code, lines, _ = run(capsys, "kernels")
    assert code == 0
    assert lines[0] == "MEDVLP_KERNELS=reference (a backend that a recipe names counts more)"
    assert lines[4:] == [
        "  cpu, float32: reference",
        "    triton     cannot serve: float32 is too wide; needs a fast unit",
        "    composite  can serve; MEDVLP_KERNELS requests reference",
    ]


def test_a_requested_backend_that_cannot_serve_is_shown_where_it_cannot(
    capsys: Capture, tmp_path: Path, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, space, "gate")
    monkeypatch.setenv("MEDVLP_KERNELS", "triton")
    code, lines, err = run(capsys, "kernels")
    assert (code, err) == (0, "")
    text = f"{space}.gate: the backend 'triton' was requested and cannot serve this call"
    assert lines[4] == f"  cpu, float32: a call stops with [MV401] {text}"
    assert lines[5] == "    triton     cannot serve: float32 is too wide; needs a fast unit"


def test_a_wrong_variable_is_a_problem(capsys: Capture, space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLP_KERNELS", "fast")
    code, lines, err = run(capsys, "kernels")
    assert (code, lines) == (1, [])
    assert err.startswith("[MV401] MEDVLP_KERNELS=fast: no such kernel backend\n    hint: ")


def test_an_op_that_cannot_be_used_does_not_conceal_the_others(capsys: Capture, tmp_path: Path, space: str) -> None:
    install(tmp_path, space, "missing", "gate", "forgetful")
    code, lines, err = run(capsys, "kernels")
    assert code == 1
    assert "  cpu, float32: composite" in lines
    assert lines[lines.index(f"{space}.missing: the missing") + 1] == "  cannot be used (MV303)"
    assert lines[lines.index(f"{space}.forgetful: the forgetful") + 1] == "  cannot be used (MV302)"
    assert f"[MV303] {space}.missing cannot be built: importing '{space}_ops:MISSING' failed\n    AttributeError: " in err
    assert f"[MV302] {space}.forgetful cannot say who serves its example call: KeyError: 'M'\n" in err


def test_broken_plugins_are_named(capsys: Capture, space: str) -> None:
    code, lines, err = run(capsys, "kernels")
    assert (code, lines) == (0, ["no plugin registers a kernel"])
    assert err == f"broken plugins, skipped:\n[MV301] plugin '{space}': it is not installed\n"


def test_list_names_kernels_without_importing_them(capsys: Capture, tmp_path: Path, space: str) -> None:
    install(tmp_path, space, "missing", "gate")
    code, lines, err = run(capsys, "list")
    assert (code, err) == (0, "")
    index = lines.index("kernels:")
    assert lines[index + 1 : index + 3] == [f"  {space}.gate     the gate", f"  {space}.missing  the missing"]
    assert "kernels:" not in run(capsys, "list", "--role", "fusion")[1]


def test_every_usable_device_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    shown = devices_here()
    assert shown[0].name == shown[0].label == "cpu"
    labels = " ".join(device.label for device in shown)
    assert [name for name in usable_devices() if not re.search(rf"{name}\b", labels)] == []
    for device in shown:
        assert device.name in usable_devices()
        assert device.type == torch.device(device.name).type
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert devices_here()[0].label == "cpu (Triton's interpreter is on)"


# ----------------------------------------------------------------------------------------------------------- header of a run


def needs_gpu(call: Call) -> tuple[str, ...]:
    return () if call.device == "cuda" and call.dtype == "bfloat16" else ("not on a GPU",)


GATE = Kernel(
    name="acme.gate",
    backends=(
        Backend(name="triton", unsupported_reasons=needs_gpu),
        Backend(name="composite", unsupported_reasons=lambda call: ()),
    ),
    order=lambda call: ("triton", "composite") if call.device == "cuda" else ("composite",),
)


class Gate(nn.Module):
    """Calls one op, by the path that it is told."""

    def __init__(self, kernel: str = "auto") -> None:
        super().__init__()
        self.kernel = kernel

    def kernel_choices(self, device: str, dtype: str) -> dict[str, str]:
        call = attrs.evolve(GATE.example, device=device, dtype=dtype)
        return {GATE.name: GATE.select(requested_backend(self.kernel), call)}


def test_modules_at_any_depth_name_their_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDVLP_KERNELS", raising=False)
    assert isinstance(Gate(), ChoosesKernels)
    assert not isinstance(nn.Linear(2, 2), ChoosesKernels)
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Gate(), Gate()))
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 1)
    assert kernels_in_use(model, cpu, "bf16") == "acme.gate composite"
    assert kernels_in_use(model, gpu, "bf16") == "acme.gate triton"
    assert kernels_in_use(model, gpu, "fp32") == "acme.gate composite"
    assert kernels_in_use(nn.Sequential(Gate("composite"), model), gpu, "bf16") == "acme.gate composite and triton"
    assert kernels_in_use(nn.Linear(2, 2), cpu, "fp32") == ""


def test_a_requested_backend_that_cannot_serve_stops_a_run_at_its_start() -> None:
    with pytest.raises(KernelError, match=re.escape("[MV401] acme.gate: the backend 'triton' was requested")):
        kernels_in_use(Gate("triton"), torch.device("cpu"), "fp32")


def test_the_header_of_a_run_has_a_line_for_them(plan_text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDVLP_KERNELS", raising=False)
    plan, _ = plan_text()
    assert plan is not None
    built = build_run(plan, seed=0)
    built.model.add_module("gate", Gate())
    console = Console(file=io.StringIO(), width=200)
    describe_run(built, tmp_path, torch.device("cpu"), console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (line,) = [line for line in lines if line.startswith("kernels: ")]
    assert "acme.gate composite" in line
    built.model = nn.Sequential(nn.Linear(2, 2))  # type: ignore[assignment]
    console = Console(file=io.StringIO(), width=200)
    describe_run(built, tmp_path, torch.device("cpu"), console)
    assert "kernels:" not in console.file.getvalue()  # type: ignore[attr-defined]
