"""A second device for machines that have none: its tensors report ``meta``, and their numbers are kept on the CPU. Imports torch.

As on a GPU, an operation on its tensors together with some of the CPU is refused. Unlike those of torch's ``meta`` they have
numbers, so that a forward pass which reads some (``nonzero``, ``item``) can be tried as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

#: Every other name that torch knows asks for a driver.
DEVICE = torch.device("meta")
#: Copies go from device to device, and an index may stay on the CPU.
MAY_MIX = ("copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_")


class MixedDevices(RuntimeError):
    """An operation gets tensors of both devices."""


class OtherDeviceTensor(Tensor):
    """A tensor of the second device."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> OtherDeviceTensor:
        """Of the same sizes and strides."""
        made: OtherDeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        made.numbers = numbers.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.numbers})"

    def tolist(self) -> Any:
        """Its numbers; torch has no ``tolist`` for subclasses."""
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Compute with the numbers."""
        return compute(function, args, kwargs or {})


class OtherDeviceMode(TorchDispatchMode):
    """Makes what is asked for on the second device there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute with the numbers, also where no tensor goes in."""
        return compute(function, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[None]:
    """Calls with tensors of the second device go inside. There is no autocast, for torch has none for ``meta``."""
    mode: TorchDispatchMode = OtherDeviceMode()  # type: ignore[no-untyped-call]
    with mode, patch.object(torch, "autocast", lambda *args, **kwargs: nullcontext()):
        yield


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do on the CPU what is asked for, and give the result the device that it would have.

    Raises:
        MixedDevices: tensors of both devices go in; a scalar of the CPU may.
    """
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    is_there = any(isinstance(one, OtherDeviceTensor) for one in tensors)
    name = function.overloadpacket.__name__
    if is_there and name not in MAY_MIX and any(one.ndim and not isinstance(one, OtherDeviceTensor) for one in tensors):
        raise MixedDevices(f"{name} gets a tensor on the CPU while weights and inputs are elsewhere")
    if name == "copy_":
        is_there = isinstance(args[0], OtherDeviceTensor)
    if kwargs.get("device") is not None:
        is_there = torch.device(kwargs["device"]) == DEVICE
        kwargs = {**kwargs, "device": "cpu"}
    # An operation in place gives the tensor that it got.
    same = {id(one.numbers): one for one in tensors if isinstance(one, OtherDeviceTensor)}
    args, kwargs = tree_map_only(OtherDeviceTensor, lambda one: one.numbers, (args, kwargs))
    found = function(*args, **kwargs)
    return (
        tree_map_only(Tensor, lambda one: same[id(one)] if id(one) in same else OtherDeviceTensor(one), found)
        if is_there
        else found
    )


def to_other_device(module: nn.Module) -> None:
    """Move parameters and buffers, which is all that ``module.to(device)`` moves."""
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                part._parameters[name] = (
                    None if parameter is None else nn.Parameter(OtherDeviceTensor(parameter), requires_grad=False)
                )
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else OtherDeviceTensor(buffer)
