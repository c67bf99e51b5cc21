"""Where tensors live and in which precision the model runs."""

from __future__ import annotations

import os
import re
import textwrap
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from medvlp_core.errors import Problem, SpecError

T = TypeVar("T", dict[str, Tensor], tuple[Any, ...])

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str | None) -> torch.device:
    """The device called ``name``; None = the GPU if there is one, else the CPU.

    Of several processes that ``torchrun`` or ``accelerate launch`` started, each gets the GPU of its own number (LOCAL_RANK).

    Raises:
        SpecError: no such device here, or one GPU for several processes (MV104).
    """
    is_launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if name in (None, "cuda") and is_launched and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    elif name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    elif is_launched and name.startswith("cuda:"):
        text = f"{name!r} cannot serve several training processes"
        raise SpecError(
            Problem(code="MV104", text=text, hint="give --device cuda, or leave it away: each process takes its own GPU")
        )
    hint = f"devices here: {', '.join(usable_devices())}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SpecError(Problem(code="MV104", text=f"there is no device {name!r}", hint=hint)) from error
    try:
        if device.type == "meta":
            raise ValueError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        # torch follows its first sentence with lists of backends and advice to developers.
        first = textwrap.shorten(re.split(r"\.\s|\n", str(error))[0].rstrip("."), width=100, placeholder=" ...")
        raise SpecError(Problem(code="MV104", text=f"device {name!r} cannot be used: {first}", hint=hint)) from error
    return device


def usable_devices() -> list[str]:
    """The devices of this machine that torch can compute on: ``cpu``, and its GPUs."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def to_device(batch: T, device: torch.device) -> T:
    """A batch, or a NamedTuple of tensors, on ``device``."""
    if isinstance(batch, dict):
        return {name: item.to(device, non_blocking=True) for name, item in batch.items()}
    return type(batch)(*(item.to(device, non_blocking=True) for item in batch))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context of a forward pass in ``fp32``, ``bf16`` or ``fp16`` (weights stay in fp32).

    Raises:
        SpecError: fp16 anywhere but on a GPU (MV104): on CPUs it is slower than fp32 and its gradients vanish.
    """
    if precision == "fp16" and device.type != "cuda":
        problem = Problem(
            code="MV104",
            text=f"train.precision: fp16 needs a GPU, and the run is on {device.type}",
            hint="use bf16 or fp32",
        )
        raise SpecError(problem)
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPES.get(precision), enabled=precision in AUTOCAST_DTYPES)
