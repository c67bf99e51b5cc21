"""Modules of random components: each checks what it is given against its contract, and gives what that promises."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from medvlp_core.nn import Alignment, Decoder, Fusion, ImageEncoder, Masking, Output, Part, TextEncoder

KINDS = {torch.float32: "float", torch.int64: "int", torch.bool: "bool"}


class Random(nn.Module):
    """What all have in common. Mixed into the class of a role."""

    def prepare(self, spec: Any, dims: Any) -> None:
        self.contracts = type(spec).CALLS
        self.sizes = {name: dims[name] for contract in self.contracts.values() for name in contract.sizes}
        self.scale = nn.Parameter(torch.ones(()))

    def answer(self, call: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
        contract = self.contracts[call]
        found: dict[str, int] = {}
        for argument, need in contract.needs.items():
            if need.dtype == "shape":
                continue
            if argument not in given:
                assert need.is_optional, f"{argument} is missing"
                continue
            value = given[argument]
            assert KINDS[value.dtype] == need.dtype, f"{argument} is {value.dtype}"
            assert value.ndim == len(need.dims), f"{argument} has the shape {tuple(value.shape)}, expected {need.dims}"
            for dim, size in zip(need.dims, value.shape, strict=True):
                if isinstance(dim, int):
                    assert size == dim, f"{argument} has the shape {tuple(value.shape)}, expected {need.dims}"
                else:
                    assert found.setdefault(dim, size) == size, f"{dim} of {argument} is {size} and {found[dim]}"
                    limit = self.sizes.get(dim, size)
                    assert size <= limit if dim == "L" else size == limit, f"{dim} of {argument} is {size}, built for {limit}"
        assert set(given) <= set(contract.needs), f"unknown arguments {set(given) - set(contract.needs)}"
        total = self.scale * sum((value.mean() for value in given.values() if value.is_floating_point()), start=torch.zeros(()))
        ports = {}
        for spec in contract.gives.values():
            if spec.dtype == "shape" or (spec.when is not None and spec.when not in given):
                continue
            shape = [dim if isinstance(dim, int) else self.size(dim, found, given) for dim in spec.dims]
            if spec.dtype == "bool":
                ports[str(spec.port)] = torch.zeros(shape, dtype=torch.bool)
                ports[str(spec.port)][..., ::2] = True
            elif spec.dtype == "int":
                ports[str(spec.port)] = torch.ones(shape, dtype=torch.int64)
            else:
                ports[str(spec.port)] = total.expand(shape)
        self.total = total
        return ports

    def size(self, dim: str, found: dict[str, int], given: dict[str, Tensor]) -> int:
        if dim == "Nv":  # the visible patches
            return int((~given["image_is_masked"])[0].sum())
        return found[dim] if dim in found else self.sizes[dim]

    def named(self, call: str, given: dict[str, Tensor]) -> Any:
        ports = self.answer(call, given)
        return collections.namedtuple("Ports", ports)(**ports) if ports else collections.namedtuple("Ports", ())()

    def output(self, call: str, given: dict[str, Tensor]) -> Output:
        ports = self.answer(call, given)
        return Output(ports=ports, losses=dict.fromkeys(self.contracts[call].losses, self.total))

    def tensor(self, call: str, given: dict[str, Tensor]) -> Any:
        ports = self.answer(call, given)
        names = {spec.port for spec in self.contracts[call].gives.values() if spec.dtype != "shape"}
        return next(iter(ports.values())) if len(names) == 1 else Output(ports=ports)


def _module(base: type, methods: dict[str, str]) -> type:
    """A class of a role whose methods answer in a form: ``named``, ``output`` or ``tensor``."""

    def init(self: Any, spec: Any, dims: Any) -> None:
        nn.Module.__init__(self)
        self.prepare(spec, dims)

    def method(call: str, form: str) -> Callable[..., Any]:
        def answer(self: Any, **given: Tensor) -> Any:
            return getattr(self, form)(call, given)

        return answer

    space = {name: method(name, form) for name, form in methods.items()}
    return type(f"Random{base.__name__}", (Random, base), {"__init__": init, **space})


RandomMasking = _module(Masking, {"forward": "named"})
RandomImageEncoder = _module(ImageEncoder, {"forward": "named"})
RandomFusion = _module(Fusion, {"forward": "named"})
RandomPart = _module(Part, {"forward": "tensor"})
RandomAlignment = _module(Alignment, {"forward": "output", "embed_image": "tensor", "embed_text": "tensor"})
RandomDecoder = _module(Decoder, {"forward": "output"})


class RandomTextEncoder(_module(TextEncoder, {"encode": "tensor"})):  # type: ignore[misc]
    """``encode`` answers for ``fused`` too: then what it reads comes from elsewhere."""

    def embed(self, **given: Tensor) -> Any:
        return self.tensor("embed", given)
