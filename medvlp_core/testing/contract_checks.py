"""Conformance: what a built component really takes and gives, beside what its contract declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from medvlp_core.spec.contract import TensorSpec
from medvlp_core.spec.roles import HEADS, Role
from medvlp_core.testing.checks import MODULE_ROLES, CheckFailed, NotApplicable, check, expect
from medvlp_core.testing.subject import Example, Outputs, Pass, Subject
from medvlp_core.testing.synthetic_batch import TEXT_PORTS, SyntheticBatch, is_along

KINDS: dict[str, Callable[[Tensor], bool]] = {
    "float": lambda one: one.dtype.is_floating_point,
    "int": lambda one: one.dtype == torch.int64,
    "bool": lambda one: one.dtype == torch.bool,
}


def given_tensors(example: Example, module: Any, one: Pass) -> tuple[Outputs, dict[str, Tensor]]:
    """The outputs of a call, and all tensors by port, vectors of an alignment included."""
    with torch.no_grad():
        outputs = example.call(module, one.arguments)
        tensors = dict(outputs.ports)
        if example.role is Role.ALIGNMENT:
            tensors |= example.embed(module, example.embedding_inputs(one.synthetic_batch))
    return outputs, tensors


def declared(example: Example, one: Pass) -> dict[str, TensorSpec]:
    """What the contract gives in the view of a call, by port; shape ports carry no tensor."""
    specs = [spec for spec in example.contract.gives.values() if spec.dtype != "shape"]
    return {spec.port or "": spec for spec in specs if spec.view in (None, one.view) or not example.is_viewed}


def compared(subject: Subject) -> Iterator[tuple[Example, Pass, str, TensorSpec, Tensor, dict[str, int]]]:
    """Every port that is declared and given, with both, and what is known of the sizes."""
    for example, module, one in subject.calls():
        _, tensors = given_tensors(example, module, one)
        sizes = {**_reported(module), **example.sizes, "B": one.synthetic_batch.batch}
        for port, spec in declared(example, one).items():
            if port in tensors:
                yield example, one, port, spec, tensors[port], sizes


def _reported(module: Any) -> dict[str, int]:
    """Sizes that only the built module knows."""
    return dict(module.dims()) if callable(getattr(module, "dims", None)) else {}


@check("contract", roles=MODULE_ROLES)
def gives_the_declared_ports(subject: Subject) -> None:
    """A call gives every port that the contract declares, and no other."""
    for example, module, one in subject.calls():
        _, tensors = given_tensors(example, module, one)
        specs = {spec.port or "" for spec in example.contract.gives.values() if spec.dtype != "shape"}
        missing, extra = sorted(specs - set(tensors)), sorted(set(tensors) - specs)
        expect(not missing, f"{example}: the contract gives {', '.join(missing)}, and forward did not ({one.view} view)")
        expect(not extra, f"{example}: forward gave {', '.join(extra)}; declare it in the contract's gives, or leave it out")


@check("contract", roles=MODULE_ROLES)
def gives_the_declared_shapes(subject: Subject) -> None:
    """Every output has the declared dimensions, for two batch sizes and odd text lengths."""
    for example, one, port, spec, tensor, sizes in compared(subject):
        wanted = [_wanted(spec, axis, one.synthetic_batch, sizes, one) for axis in range(len(spec.dims))]
        is_equal = tensor.ndim == len(wanted) and all(b in (None, a) for a, b in zip(tensor.shape, wanted, strict=True))
        shown = ", ".join(
            f"{dim}={size}" if size is not None and dim != size else str(dim) for dim, size in zip(spec.dims, wanted, strict=True)
        )
        expect(is_equal, f"{example}: {port} is {tuple(tensor.shape)} ({one.view} view), and the contract says ({shown})")


def _wanted(spec: TensorSpec, axis: int, synthetic_batch: SyntheticBatch, sizes: dict[str, int], one: Pass) -> int | None:
    """The number that an axis must have; None where any will do."""
    dim = spec.dims[axis]
    if axis == 1 and is_along(spec, TEXT_PORTS, synthetic_batch.contract):
        return max(synthetic_batch.lengths)
    if axis == 1 and spec.port == "image_tokens":
        return (
            synthetic_batch.patches - synthetic_batch.masked
            if one.view == "masked" and spec.layout == "dropped"
            else synthetic_batch.patches
        )
    if axis == 1 and spec.port == "image_is_masked":
        return synthetic_batch.patches
    if axis == 1 and is_along(spec, {"fused_image_tokens", "image_tokens"}, synthetic_batch.contract):
        need = next((n for n in synthetic_batch.contract.needs.values() if n.port == "image_tokens"), None)
        return synthetic_batch.token_count(need, one.view) if need else None
    return dim if isinstance(dim, int) else sizes.get(dim)


@check("contract", roles=MODULE_ROLES)
def gives_the_declared_dtypes(subject: Subject) -> None:
    """Every output has the declared kind of dtype; floats come back in the dtype of the inputs."""
    for example, _, port, spec, tensor, _ in compared(subject):
        is_right = KINDS[spec.dtype](tensor)
        expect(is_right, f"{example}: {port} is {tensor.dtype}, and the contract says {spec.dtype}")
        is_single = spec.dtype != "float" or tensor.dtype == torch.float32
        expect(is_single, f"{example}: {port} is {tensor.dtype} although all weights and inputs are float32")


@check("contract", roles=HEADS)
def gives_the_declared_losses(subject: Subject) -> None:
    """Forward returns exactly the loss terms of the contract, each a finite scalar."""
    for example, module, one in subject.calls():
        with torch.no_grad():
            found = example.call(module, one.arguments).losses
        names = set(example.contract.losses)
        expect(
            set(found) == names,
            f"{example}: forward returned the losses {sorted(found)}, and the contract declares {sorted(names)}",
        )
        for name, value in found.items():
            is_scalar = value.ndim == 0 and value.is_floating_point()
            expect(is_scalar, f"{example}: the loss {name} is {value.dtype} of shape {tuple(value.shape)}, expected a float scalar")
            expect(bool(torch.isfinite(value)), f"{example}: the loss {name} is {value.item()}")


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
    if not any(need.is_optional for example in subject.examples for need in example.contract.needs.values()):
        raise NotApplicable("nothing that it needs is optional")
    for example, module, one in subject.calls():
        optional = [name for name, need in example.contract.needs.items() if need.is_optional]
        if one.view == "masked":  # there the encoder's own mask is never absent
            optional = [name for name in optional if example.contract.needs[name].port != "image_is_masked"]
        arguments = {name: value for name, value in one.arguments.items() if name not in optional}
        try:
            with torch.no_grad():
                example.call(module, arguments)
        except Exception as error:
            text = f"{example}: without {', '.join(optional)} forward raises {type(error).__name__}: {error}"
            raise CheckFailed(f"{text}; give it the default None") from error


@check("contract", roles=(Role.FUSION, Role.ALIGNMENT))
def gives_true_attention_maps(subject: Subject) -> None:
    """``attention_maps``, if it has them, are (B, L, N) weights whose rows at valid tokens sum to 1."""
    if not any(hasattr(example.build(), "attention_maps") for example in subject.examples):
        raise NotApplicable("it has no attention_maps()")
    for example, module, one in subject.calls():
        with torch.no_grad():
            maps = module.attention_maps(**one.arguments)
        if maps is None:
            continue
        tokens = next((name for name, need in example.contract.needs.items() if need.port == "image_tokens"), None)
        count = one.arguments[tokens].shape[1] if tokens else one.synthetic_batch.patches
        wanted = (one.synthetic_batch.batch, max(one.synthetic_batch.lengths), count)
        expect(tuple(maps.shape) == wanted, f"{example}: attention_maps() gives {tuple(maps.shape)}, expected {wanted} (B, L, N)")
        valid = maps[one.synthetic_batch.fixed["text_is_valid", None]]
        sums = valid.sum(dim=-1)
        is_true = bool((valid >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
        found = f"sum to {sums.min():.3g} to {sums.max():.3g}, lowest weight {valid.min():.3g}"
        expect(is_true, f"{example}: rows of attention_maps() at valid tokens {found}; expected weights >= 0 that sum to 1")
