"""``medvlp kernels``: which implementation of each op serves on this machine, and why not another. Imports the ops and torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import attrs

from medvlp_core.cli.common import columns, print_problems
from medvlp_core.cli.folding import print_folded
from medvlp_core.cli.json_output import add_json_argument, print_json, problem_data
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


@attrs.frozen(kw_only=True)
class Answer:
    """Which backend serves an op's example call on a device: ``chosen``, or ``problem`` if none does.

    ``reasons`` says for every backend why it cannot serve, ``states`` in words what is with each that was not chosen.
    """

    label: str
    call: Call
    chosen: str
    problem: Problem | None
    reasons: dict[str, tuple[str, ...]]
    states: dict[str, str]


def configure(parser: argparse.ArgumentParser) -> None:
    """The dtype that is asked about."""
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the tensors (default: bfloat16 on a GPU, else float32)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print op by op. 1 if one of them cannot be loaded, or MEDVLP_KERNELS is wrong."""
    requested = requested_backend()
    from medvlp_core.plugins.host import load_plugins

    host = load_plugins()
    devices = devices_here()
    found: dict[str, list[Answer] | PluginError] = {}
    ops = {op.name: op for op in sorted(host.kernels.values(), key=lambda op: op.name)}
    for name, op in ops.items():
        try:
            found[name] = answers(op, requested, devices, arguments.dtype)
        except PluginError as error:
            found[name] = error
    problems = [problem for answer in found.values() if isinstance(answer, PluginError) for problem in answer.problems]
    told = [*(broken.problem for broken in host.broken), *problems]
    if arguments.json:
        shown = [op_data(ops[name], answer) for name, answer in found.items()]
        print_json("kernels", problems=told, requested=requested, ops=shown)
        return 1 if problems else 0
    if VARIABLE in os.environ:
        print(f"{VARIABLE}={requested} (a backend that a recipe names counts more)\n")
    for index, (name, answer) in enumerate(found.items()):
        print_folded([*([""] if index else []), f"{name}: {ops[name].summary}"])
        print_folded(op_lines(answer))
    if not found:
        print("no plugin registers a kernel")
    if host.broken:
        print("broken plugins, skipped:", file=sys.stderr)
    print_problems(told, sys.stderr)
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


def answers(op: KernelOp, requested: str, devices: list[Device], dtype: str | None) -> list[Answer]:
    """What serves the op's example call, device by device.

    Raises:
        PluginError: it cannot be imported (MV303), or its kernel is of another op or cannot answer (MV302).
    """
    import torch

    from medvlp_core.kernels.dispatch import load_kernel

    kernel = load_kernel(op)
    found = []
    for device in devices:
        used = dtype or ("bfloat16" if device.type == "cuda" else "float32")
        call = attrs.evolve(kernel.example, device=device.type, dtype=used)
        # A backend may look at the current GPU, so let it be the one in question.
        with torch.cuda.device(device.name) if device.type == "cuda" else nullcontext():
            try:
                found.append(_answer(kernel, requested, call, device.label))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                hint = "Kernel(example=Call(...)) needs every size that its backends look at"
                text = f"{op.name} cannot say who serves its example call: {reason}"
                raise PluginError(Problem(code="MV302", text=text, details=(op.build,), hint=hint)) from error
    return found


def _answer(kernel: Kernel, requested: str, call: Call, label: str) -> Answer:
    problem = None
    try:
        chosen = kernel.preview(requested, call)
    except KernelError as error:
        chosen, problem = "", error.problems[0]
    order = kernel.order(call)

    def state(name: str, reasons: tuple[str, ...]) -> str:
        if reasons:
            return f"cannot serve: {'; '.join(reasons)}"
        if requested != "auto":
            return f"can serve; {VARIABLE} requests {requested}"
        return f"can serve; {chosen} comes first" if name in order else "can serve, only when asked for by name"

    reasons = kernel.reasons(call)
    states = {name: state(name, why) for name, why in reasons.items() if name != chosen}
    return Answer(label=label, call=call, chosen=chosen, problem=problem, reasons=reasons, states=states)


def op_lines(found: list[Answer] | PluginError) -> Iterator[str]:
    """What is to be said of one op."""
    if isinstance(found, PluginError):
        yield f"  cannot be used ({found.problems[0].code})"
        return
    example = found[0].call if found else None
    if example is not None and (example.sizes or example.features):
        sizes = " ".join(f"{letter}={size}" for letter, size in example.sizes)
        yield f"  asked about a call with {', '.join(filter(None, [sizes, *sorted(example.features)]))}"
    for one in found:
        stops = f"a call stops with [{one.problem.code}] {one.problem.text}" if one.problem is not None else ""
        yield f"  {one.label}, {one.call.dtype}: {one.chosen or stops}"
        yield from columns(list(one.states.items()), indent="    ")


def op_data(op: KernelOp, found: list[Answer] | PluginError) -> dict[str, Any]:
    """The same as plain data; an op that cannot be used has no devices, and its problem is among those of the document."""
    answered = [] if isinstance(found, PluginError) else found
    example = {"sizes": dict(answered[0].call.sizes), "features": sorted(answered[0].call.features)} if answered else None
    devices = [
        {
            "device": one.label,
            "dtype": one.call.dtype,
            "backend": one.chosen or None,
            "problem": problem_data(one.problem) if one.problem is not None else None,
            "unsupported_reasons": {name: list(reasons) for name, reasons in one.reasons.items()},
        }
        for one in answered
    ]
    return {
        "name": op.name,
        "summary": op.summary,
        "can_be_used": not isinstance(found, PluginError),
        "example": example,
        "devices": devices,
    }
