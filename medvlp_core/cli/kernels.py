"""``medvlp kernels``: which implementation of each op serves on this machine, and why not another. Imports the ops and torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import attrs

from medvlp_core.cli.common import columns, print_problems
from medvlp_core.cli.folding import print_folded
from medvlp_core.errors import KernelError, PluginError, Problem
from medvlp_core.kernels.dispatch import VARIABLE, Call, Kernel, requested_backend
from medvlp_core.spec.kernel import KernelOp

DTYPES = ("float32", "bfloat16", "float16", "float64")


@attrs.frozen(kw_only=True)
class Device:
    """A device of this machine: a torch device of its kind, and how it is shown."""

    name: str
    label: str

    @property
    def type(self) -> str:
        """The torch device type, ``cpu`` or ``cuda``."""
        return self.name.partition(":")[0]


def configure(parser: argparse.ArgumentParser) -> None:
    """The dtype that is asked about."""
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the tensors (default: bfloat16 on a GPU, else float32)")


def run(arguments: argparse.Namespace) -> int:
    """Print op by op. 1 if one of them cannot be loaded, or MEDVLP_KERNELS is wrong."""
    requested = requested_backend()
    from medvlp_core.plugins.host import load_plugins

    host = load_plugins()
    problems: list[Problem] = []
    if VARIABLE in os.environ:
        print(f"{VARIABLE}={requested} (a backend that a recipe names counts more)\n")
    devices = devices_here()
    for index, op in enumerate(sorted(host.kernels.values(), key=lambda op: op.name)):
        print_folded([*([""] if index else []), f"{op.name}: {op.summary}"])
        try:
            lines = list(op_lines(op, requested, devices, arguments.dtype))
        except PluginError as error:
            problems += error.problems
            lines = [f"  cannot be used ({error.problems[0].code})"]
        print_folded(lines)
    if not host.kernels:
        print("no plugin registers a kernel")
    if host.broken:
        print("broken plugins, skipped:", file=sys.stderr)
    print_problems([*(broken.problem for broken in host.broken), *problems], sys.stderr)
    return 1 if problems else 0


def devices_here() -> list[Device]:
    """The devices that torch can use here; GPUs of one kind are one device."""
    import torch

    from medvlp_core.runtime.device import usable_devices

    kinds: dict[str, list[str]] = {}
    for name in usable_devices():
        label = f"{{}} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name
        if name == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
            label = "cpu (Triton's interpreter is on)"
        kinds.setdefault(label, []).append(name)
    return [Device(name=names[0], label=label.format(", ".join(names))) for label, names in kinds.items()]


def op_lines(op: KernelOp, requested: str, devices: list[Device], dtype: str | None) -> Iterator[str]:
    """What is to be said of one op.

    Raises:
        PluginError: it cannot be imported (MV303), or its kernel is of another op or cannot answer (MV302).
    """
    import torch

    from medvlp_core.kernels.dispatch import load_kernel

    kernel = load_kernel(op)
    if kernel.example.sizes or kernel.example.features:
        sizes = " ".join(f"{letter}={size}" for letter, size in kernel.example.sizes)
        yield f"  asked about a call with {', '.join(filter(None, [sizes, *sorted(kernel.example.features)]))}"
    for device in devices:
        used = dtype or ("bfloat16" if device.type == "cuda" else "float32")
        call = attrs.evolve(kernel.example, device=device.type, dtype=used)
        # A backend may look at the current GPU, so let it be the one in question.
        with torch.cuda.device(device.name) if device.type == "cuda" else nullcontext():
            try:
                found = device_lines(kernel, requested, call)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                hint = "Kernel(example=Call(...)) needs every size that its backends look at"
                text = f"{op.name} cannot say who serves its example call: {reason}"
                raise PluginError(Problem(code="MV302", text=text, details=(op.build,), hint=hint)) from error
        yield f"  {device.label}, {used}: {found[0]}"
        yield from found[1:]


def device_lines(kernel: Kernel, requested: str, call: Call) -> list[str]:
    """Which path serves a call, and a row for each other path."""
    try:
        chosen = kernel.preview(requested, call)
        answer = chosen
    except KernelError as error:
        chosen, answer = "", f"a call stops with [{error.problems[0].code}] {error.problems[0].text}"
    order = kernel.order(call)

    def state(name: str, reasons: tuple[str, ...]) -> str:
        if reasons:
            return f"cannot serve: {'; '.join(reasons)}"
        if requested != "auto":
            return f"can serve; {VARIABLE} requests {requested}"
        return f"can serve; {chosen} comes first" if name in order else "can serve, only when asked for by name"

    rows = [(name, state(name, why)) for name, why in kernel.reasons(call).items() if name != chosen]
    return [answer, *columns(rows, indent="    ")]
