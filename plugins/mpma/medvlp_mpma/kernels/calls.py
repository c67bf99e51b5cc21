"""What the ops of this bundle share: facts about a call, autocast, checks, and why Triton cannot serve."""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import NoReturn

import torch
from packaging.version import Version
from torch import Tensor
from torch.autograd import forward_ad

from medvlp_core import KernelError, Problem
from medvlp_core.kernels import Call

DTYPES = ("float32", "float16", "bfloat16")

#: Older ones compile no product with fewer than 16 columns, and top-k over a large memory has 2 to 8.
OLDEST_TRITON = "3.5"


def describe(q: Tensor, keys: int, slots: int, *features: str) -> Call:
    """The facts about a call with queries ``q`` (B, L, H, D), ``keys`` keys a sample and ``slots`` memory slots."""
    batch, queries, heads, width = q.shape
    sizes = (("B", batch), ("L", queries), ("S", keys), ("M", slots), ("H", heads), ("D", width))
    return Call(q.device.type, str(q.dtype).removeprefix("torch."), sizes, frozenset(features))


def in_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of the autocast context, if there is one; float64 is left alone, as torch does."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def default_scale(q: Tensor) -> float:
    """``1 / sqrt(D)``."""
    return 1.0 / math.sqrt(max(1, q.shape[-1]))


def running_on(q: Tensor) -> AbstractContextManager[object]:
    """The context of an op's own work: on the GPU of its tensors, for Triton launches on the current one, and without autocast.

    Contexts cost microseconds, and so they are only entered where they change something.
    """
    stack = ExitStack()
    if q.is_cuda:
        stack.enter_context(torch.cuda.device_of(q))
    if not q.is_meta and torch.is_autocast_enabled(q.device.type):
        stack.enter_context(torch.autocast(q.device.type, enabled=False))
    return stack


def refuse(op: str, faults: Iterable[str]) -> None:
    """Raise with all faults of a call, if there are any.

    Raises:
        KernelError: tensors or numbers do not fit together (MV402).
    """
    if found := tuple(faults):
        text = f"{op}: {found[0]}" if len(found) == 1 else f"{op}: the call does not fit together"
        raise KernelError(Problem(code="MV402", text=text, details=found if len(found) > 1 else ()))


def refuse_derivative(op: str, what: str) -> NoReturn:
    """Raise because a fast backend has only its one gradient.

    Raises:
        KernelError: always (MV403).
    """
    hint = "use the backend 'reference' for that (kernel: reference in a recipe, or MEDVLP_KERNELS=reference)"
    raise KernelError(Problem(code="MV403", text=f"{op}: {what}", hint=hint))


def refuse_forward_mode(op: str, *tensors: Tensor) -> None:
    """Refuse forward-mode derivatives, which torch would silently take as 0.

    Raises:
        KernelError: a tensor carries a tangent (MV403).
    """
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        refuse_derivative(op, "it has no forward-mode derivative")


def shape_faults(**expected: tuple[Tensor | None, tuple[int, ...]]) -> list[str]:
    """A sentence for each tensor whose shape is not the expected one; absent tensors have none."""
    pairs = ((name, x, shape) for name, (x, shape) in expected.items() if x is not None)
    return [f"{name} has the shape {tuple(x.shape)}, expected {shape}" for name, x, shape in pairs if tuple(x.shape) != shape]


def place_faults(q: Tensor, large: Iterable[tuple[str, Tensor]], small: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    """A sentence for each tensor on another device than ``q``, or, for the large ones, of another dtype."""
    large = list(large)
    faults = [] if q.dtype.is_floating_point and q.element_size() > 1 else [f"q is {q.dtype}, expected floating-point numbers"]
    faults += [f"{name} is {x.dtype}, and q {q.dtype}" for name, x in large if x.dtype != q.dtype]
    everywhere = [*large, *((name, x) for name, x in small if x is not None)]
    return faults + [f"{name} is on {x.device}, and q on {q.device}" for name, x in everywhere if x.device != q.device]


def number_faults(scale: float, dropout_p: float) -> list[str]:
    """A sentence for each number that is out of its range."""
    faults = [] if 0.0 < scale < math.inf else [f"scale is {scale}, expected a finite number above 0"]
    return faults if 0.0 <= dropout_p < 1.0 else [*faults, f"dropout_p is {dropout_p}, expected 0 <= dropout_p < 1"]


def is_interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels: the variable must be set before they are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def import_problem() -> str | None:
    """Why Triton cannot be imported or is too old, or None."""
    try:
        triton = importlib.import_module("triton")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return "the package triton is not installed (there are builds for Linux)"
        return f"the package triton cannot be imported: {type(error).__name__}: {error}"
    if Version(triton.__version__) < Version(OLDEST_TRITON):
        return f"the package triton is {triton.__version__}, it needs {OLDEST_TRITON} or newer"
    return None


def unsupported_by_triton(call: Call) -> list[str]:
    """What keeps Triton from a call, whatever the op: package, device, dtype."""
    reasons = [problem] if (problem := import_problem()) else []
    if call.device == "cuda":
        if torch.version.hip is not None:
            reasons.append("its kernels are made for NVIDIA GPUs")
        elif torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
            major, minor = torch.cuda.get_device_capability()
            reasons.append(f"it needs a GPU of compute capability 8.0 or newer, this one has {major}.{minor}")
        elif not torch.cuda.is_available():
            reasons.append("there is no GPU that torch can use")
    elif call.device == "cpu":
        if not is_interpreted():
            reasons.append("it needs a GPU (or TRITON_INTERPRET=1, which runs it slowly in Triton's interpreter)")
    else:
        reasons.append(f"it serves NVIDIA GPUs, not {call.device}")
    if call.dtype not in DTYPES:
        reasons.append(f"it computes in {', '.join(DTYPES)}, not in {call.dtype}")
    elif call.dtype == "bfloat16" and is_interpreted():
        reasons.append("Triton's interpreter gives wrong numbers in bfloat16")
    return reasons
