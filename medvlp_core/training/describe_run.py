"""What a run says at its start, in a few lines, and what it writes down about the machine and the data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import medvlp_core
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.errors import DataError
from medvlp_core.kernels.machine import device_label
from medvlp_core.model.build import BuiltRun
from medvlp_core.nn.interfaces import ChoosesKernels
from medvlp_core.runtime.device import AUTOCAST_DTYPES
from medvlp_core.runtime.distributed import world_size
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.resume import Resume
from medvlp_core.training.run_folder import METRICS

#: So many training texts are counted at the start: a few seconds at most.
COUNTED_TEXTS = 10_000


def describe_run(built: BuiltRun, folder: Path, device: torch.device, console: Console) -> None:
    """Say in a few lines what is about to be trained."""
    plan, pipeline = built.plan, built.pipeline
    parameters = sum(parameter.numel() for parameter in built.model.parameters() if parameter.requires_grad)
    console.print(f"{plan.name}: {parameters:,} trainable parameters on {device}, {plan.train.precision}", markup=False)
    console.print(f"data: {', '.join(_split_sizes(pipeline))} {pipeline.what_counts()}", markup=False)
    if kernels := kernels_in_use(built.model, device, plan.train.precision):
        console.print(f"kernels: {kernels}", markup=False, soft_wrap=True)
    if cut := cut_texts(built):
        console.print(cut, markup=False, soft_wrap=True)
    console.print(f"run folder: {folder}", markup=False, soft_wrap=True)
    for warning in (*launcher_warnings(plan.train), *norm_warnings(built.model, plan.train)):
        warn(console, warning)


def describe_resume(resume: Resume, machine: dict[str, Any], set_aside: Sequence[str], console: Console) -> None:
    """Say where a run is resumed, what is not as it was, and which checkpoints (``set_aside``) will be written anew."""
    console.print(f"resumed after step {resume.step}", markup=False)
    for name in set_aside:
        console.print(f"{name} is set aside, and deleted when it is written anew", markup=False)
    if missing := resume.missing_lines():
        warn(console, f"{missing} lines of {METRICS} are not there any more")
    for change in resume.environment_changes(machine):
        warn(console, f"{change}: the last digits may differ")
    for change in resume.data_changes:
        warn(console, f"{change}: the pixels of the images are not compared")


def run_metadata(built: BuiltRun, device: torch.device) -> dict[str, Any]:
    """What a resumed run must have in common with this one; of ``machine`` the last digits may depend."""
    return {
        "name": built.plan.name,
        "seed": built.plan.train.seed,
        "data": built.pipeline.source.fingerprint(),
        "processes": world_size(),
        "machine": {
            "device": device.type,
            "hardware": device_label(device),
            "threads": torch.get_num_threads(),
            "kernels": kernels_in_use(built.model, device, built.plan.train.precision),
            "versions": {"medvlp": medvlp_core.__version__, "torch": torch.__version__},
        },
    }


def warn(console: Console, text: str) -> None:
    """A line that stands out."""
    console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


def launcher_warnings(spec: TrainSpec) -> Iterator[str]:
    """Settings of ``accelerate launch`` that the recipe contradicts: only the recipe counts.

    Example:
        >>> list(launcher_warnings(TrainSpec(steps=1)))
        []
    """
    settings = {
        "ACCELERATE_MIXED_PRECISION": ("no", spec.precision, f"train.precision: {spec.precision}"),
        "ACCELERATE_DYNAMO_BACKEND": ("no", "inductor" if spec.compile else "no", f"train.compile: {str(spec.compile).lower()}"),
        "ACCELERATE_USE_FSDP": ("false", str(spec.parallel == "fsdp").lower(), f"train.parallel: {spec.parallel}"),
        "ACCELERATE_USE_DEEPSPEED": ("false", "false", f"train.parallel: {spec.parallel}"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            "1",
            str(spec.gradient_accumulation_steps),
            f"train.gradient_accumulation_steps: {spec.gradient_accumulation_steps}",
        ),
    }
    for name, (default, ours, setting) in settings.items():
        value = os.environ.get(name, default).lower()
        if value not in (default, ours):
            yield f"{name}={value} is not read: the recipe says {setting}"


def norm_warnings(model: nn.Module, spec: TrainSpec) -> Iterator[str]:
    """Batch norms, which make a step depend on how its pairs are shared between micro-batches and processes."""
    slices = world_size() * spec.gradient_accumulation_steps
    if slices > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        pairs = f"{spec.batch_size // slices} pairs of one micro-batch of one process"
        yield f"batch norms see the {pairs}, not the {spec.batch_size} of a step"


def kernels_in_use(model: nn.Module, device: torch.device, precision: str) -> str:
    """Every op that the model calls and the backend that serves it, e.g. ``mpma.memory_topk composite``; empty if none does.

    Raises:
        KernelError: a backend that was asked for cannot serve (MV401).
    """
    dtype = str(AUTOCAST_DTYPES.get(precision, torch.float32)).removeprefix("torch.")
    found: dict[str, set[str]] = {}
    for module in model.modules():
        if isinstance(module, ChoosesKernels):
            for op, backend in module.kernel_choices(device.type, dtype).items():
                found.setdefault(op, set()).add(backend)
    return ", ".join(f"{op} {' and '.join(sorted(backends))}" for op, backends in sorted(found.items()))


def cut_texts(built: BuiltRun) -> str | None:
    """How many training texts are as long as the tokenizer allows, so that what is longer was cut; None if there is none.

    A tokenizer gives no more than its maximum, so a text that just fits is counted too.
    """
    length = built.plan.port_size("token_ids", 1)
    if length is None or "text" not in built.pipeline.plan.fields:
        return None
    records = built.pipeline.records("train")
    texts = [record.text for record in records[:: -(-len(records) // COUNTED_TEXTS)]]
    full = 0
    for start in range(0, len(texts), 500):
        is_valid = built.pipeline.tokenizer.encode(texts[start : start + 500]).text_is_valid
        full += int((is_valid.sum(dim=1) >= length).sum())
    return f"texts: {full} of {len(texts)} training texts fill all {length} tokens; what is longer is cut" if full else None


def _split_sizes(pipeline: InputPipeline) -> list[str]:
    sizes = []
    for split in pipeline.source.splits():
        try:
            sizes.append(f"{split} {len(pipeline.records(split))}")
        except DataError:  # images without texts; only the splits that are used must have pairs
            sizes.append(f"{split} 0")
    return sizes
