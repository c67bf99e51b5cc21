"""Conformance: what a built component really takes and gives, beside what its contract declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from medvlp_core.spec.contract import CLEAN, TensorSpec
from medvlp_core.spec.roles import HEADS, Role
from medvlp_core.testing.checks import MODULE_ROLES, CheckFailed, NotApplicable, check, expect
from medvlp_core.testing.subject import ExampleCall, Pass, Subject
from medvlp_core.testing.synthetic_batch import TEXT_PORTS, is_along

KINDS: dict[str, Callable[[Tensor], bool]] = {
    "float": lambda one: one.dtype.is_floating_point,
    "int": lambda one: one.dtype == torch.int64,
    "bool": lambda one: one.dtype == torch.bool,
}


def compared(subject: Subject) -> Iterator[tuple[ExampleCall, Pass, str, TensorSpec, Tensor, dict[str, int]]]:
    """Every port that is declared and given, with both, and what is known of the sizes."""
    for call, module, one in subject.passes():
        with torch.no_grad():
            tensors = call.run(module, one.arguments).ports
        sizes = {**_reported(module), **call.sizes, "B": one.synthetic_batch.batch}
        for port, spec in call.given(one.arguments).items():
            if port in tensors:
                yield call, one, port, spec, tensors[port], sizes


def _reported(module: Any) -> dict[str, int]:
    """Sizes that only the built module knows."""
    return dict(module.dims()) if callable(getattr(module, "dims", None)) else {}


@check("contract", roles=MODULE_ROLES)
def gives_the_declared_ports(subject: Subject) -> None:
    """A call gives every port that the contract declares, and no other."""
    for call, module, one in subject.passes():
        with torch.no_grad():
            tensors = call.run(module, one.arguments).ports
        specs = set(call.given(one.arguments))
        missing, extra = sorted(specs - set(tensors)), sorted(set(tensors) - specs)
        expect(not missing, f"{call}: the contract gives {', '.join(missing)}, and {call.name} did not ({one.view} view)")
        expect(not extra, f"{call}: {call.name} gave {', '.join(extra)}; declare it in the contract's gives, or leave it out")


@check("contract", roles=MODULE_ROLES)
def gives_the_declared_shapes(subject: Subject) -> None:
    """Every output has the declared dimensions, for two batch sizes and odd text lengths."""
    for call, one, port, spec, tensor, sizes in compared(subject):
        wanted = [_wanted(spec, axis, one, sizes) for axis in range(len(spec.dims))]
        is_equal = tensor.ndim == len(wanted) and all(b in (None, a) for a, b in zip(tensor.shape, wanted, strict=True))
        shown = ", ".join(
            f"{dim}={size}" if size is not None and dim != size else str(dim) for dim, size in zip(spec.dims, wanted, strict=True)
        )
        expect(is_equal, f"{call}: {port} is {tuple(tensor.shape)} ({one.view} view), and the contract says ({shown})")


def _wanted(spec: TensorSpec, axis: int, one: Pass, sizes: dict[str, int]) -> int | None:
    """The number that an axis must have; None where any will do."""
    dim, synthetic_batch = spec.dims[axis], one.synthetic_batch
    if axis == 1 and is_along(spec, TEXT_PORTS, synthetic_batch.contract):
        return max(synthetic_batch.lengths)
    if axis == 1 and spec.port == "image_tokens":
        return synthetic_batch.patches - (synthetic_batch.masked if spec.layout == "dropped" else 0)
    if axis == 1 and spec.port == "image_is_masked":
        return synthetic_batch.patches
    if axis == 1 and is_along(spec, {"fused_image_tokens", "image_tokens"}, synthetic_batch.contract):
        need = next((n for n in synthetic_batch.contract.needs.values() if n.port == "image_tokens"), None)
        return synthetic_batch.token_count(need, one.view) if need else None
    return dim if isinstance(dim, int) else sizes.get(dim)


@check("contract", roles=MODULE_ROLES)
def gives_the_declared_dtypes(subject: Subject) -> None:
    """Every output has the declared kind of dtype; floats come back in the dtype of the inputs."""
    for call, _, port, spec, tensor, _ in compared(subject):
        is_right = KINDS[spec.dtype](tensor)
        expect(is_right, f"{call}: {port} is {tensor.dtype}, and the contract says {spec.dtype}")
        is_single = spec.dtype != "float" or tensor.dtype == torch.float32
        expect(is_single, f"{call}: {port} is {tensor.dtype} although all weights and inputs are float32")


@check("contract", roles=HEADS)
def gives_the_declared_losses(subject: Subject) -> None:
    """A call returns exactly the loss terms of its contract, each a finite scalar."""
    for call, module, one in subject.passes():
        with torch.no_grad():
            found = call.run(module, one.arguments).losses
        names = set(call.contract.losses)
        text = f"{call}: {call.name} returned the losses {sorted(found)}, and the contract declares {sorted(names)}"
        expect(set(found) == names, text)
        for name, value in found.items():
            is_scalar = value.ndim == 0 and value.is_floating_point()
            expect(is_scalar, f"{call}: the loss {name} is {value.dtype} of shape {tuple(value.shape)}, expected a float scalar")
            expect(bool(torch.isfinite(value)), f"{call}: the loss {name} is {value.item()}")


@check("contract", roles=MODULE_ROLES)
def reports_the_declared_sizes(subject: Subject) -> None:
    """``dims()`` of the built module, if it has one, agrees with the solved sizes."""
    modules = [(example, module) for example in subject.examples if hasattr(module := example.build(), "dims")]
    if not modules:
        raise NotApplicable("it has no dims()")
    for example, module in modules:
        is_method = callable(module.dims)
        expect(is_method, f"{example}: its attribute `dims` shadows the method of that name; call it self.sizes or the like")
        wrong = {name: size for name, size in module.dims().items() if example.sizes.get(name, size) != size}
        shown = ", ".join(f"{name}={size} (planned {example.sizes[name]})" for name, size in wrong.items())
        expect(not wrong, f"{example}: dims() reports {shown}")


@check("contract", roles=MODULE_ROLES)
def works_without_optional_inputs(subject: Subject) -> None:
    """What the contract marks as optional may be absent."""
    if not any(need.is_optional for call in subject.each_call() for need in call.contract.needs.values()):
        raise NotApplicable("nothing that it needs is optional")
    for call, module, one in subject.passes():
        optional = [name for name, need in call.contract.needs.items() if need.is_optional]
        if one.view != CLEAN:  # there the view's own mask is never absent
            optional = [name for name in optional if call.port(name) != "image_is_masked"]
        arguments = {name: value for name, value in one.arguments.items() if name not in optional}
        try:
            with torch.no_grad():
                call.run(module, arguments)
        except Exception as error:
            text = f"{call}: without {', '.join(optional)} {call.name} raises {type(error).__name__}: {error}"
            raise CheckFailed(f"{text}; give it the default None") from error


@check("contract", roles=(Role.FUSION, Role.ALIGNMENT))
def gives_true_attention_maps(subject: Subject) -> None:
    """``attention_maps``, if it has them, are (B, L, N) weights whose rows at valid tokens sum to 1."""
    if not any(hasattr(example.build(), "attention_maps") for example in subject.examples):
        raise NotApplicable("it has no attention_maps()")
    for call, module, one in subject.passes():
        if call.name != "forward":  # whose arguments the maps are made from
            continue
        with torch.no_grad():
            maps = module.attention_maps(**one.arguments)
        if maps is None:
            continue
        tokens = next((name for name in one.arguments if call.port(name) == "image_tokens"), None)
        count = one.arguments[tokens].shape[1] if tokens else one.synthetic_batch.patches
        wanted = (one.synthetic_batch.batch, max(one.synthetic_batch.lengths), count)
        expect(tuple(maps.shape) == wanted, f"{call}: attention_maps() gives {tuple(maps.shape)}, expected {wanted} (B, L, N)")
        valid = maps[one.synthetic_batch.fixed["text_is_valid", None]]
        sums = valid.sum(dim=-1)
        is_true = bool((valid >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
        found = f"sum to {sums.min():.3g} to {sums.max():.3g}, lowest weight {valid.min():.3g}"
        expect(is_true, f"{call}: rows of attention_maps() at valid tokens {found}; expected weights >= 0 that sum to 1")
