"""One training step, followed op by op with tensors that have shapes and no numbers.

Weights, images and all that is computed from them are fake tensors; token ids and masks are real, so that what depends on them (how
many words are masked) has its true size. A step of any size is traced in seconds, and nothing is approximated in its shapes.
"""

from __future__ import annotations

import bisect
import functools
import math
import textwrap
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import attrs
import torch
from torch import Tensor, nn

from medvlp_bench.estimate.fake import HALF, GpuFunctions, fake_mode_of, processes
from medvlp_bench.estimate.inside_torch import (
    FakeTensor,
    TorchDispatchMode,
    cpu_attention,
    cpu_attention_backward,
    current_node,
    flop_registry,
    next_sequence_number,
    run_backward,
    sdpa_backward_flop,
    sdpa_flop,
    tree_leaves,
    tree_map_only,
)
from medvlp_core import MedvlpError, Problem, Role
from medvlp_core.model import ComposedModel, PartFailed
from medvlp_core.nn import Batch
from medvlp_core.planning import TrainSpec
from medvlp_core.runtime import AUTOCAST_DTYPES
from medvlp_core.training import layers_of, prepare

aten = torch.ops.aten


def _of_tensors(formula: Callable[..., int]) -> Callable[..., int]:
    """A formula as :class:`FlopCounterMode` calls it: with tensors."""
    found = functools.partial(formula)
    found._get_raw = True  # type: ignore[attr-defined]
    return found


#: Operations that torch's own table lacks: its attention for CPUs.
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    cpu_attention: _of_tensors(sdpa_flop),
    cpu_attention_backward: _of_tensors(sdpa_backward_flop),
}

#: What runs in no component: the sum of the losses, gradients of weights that serve twice.
REST = "(rest)"

#: Comparing all texts of a large batch with each other makes billions of numbers, which no shape depends on.
LARGEST_REAL = 2**25

_ALLOCATORS = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "detach", "lift_fresh"}


@attrs.frozen
class Op:
    """One operation: floating-point operations of its products (0 if it has none), bytes read and written, and where it belongs."""

    name: str
    component: str
    is_backward: bool
    flops: int
    moved: int
    is_half: bool
    is_pointwise: bool


@attrs.define(kw_only=True)
class StepTrace:
    """A forward and backward pass of ``pairs`` pairs.

    ``kept`` are the bytes that each component leaves behind for the backward pass (predictions too). Peaks are the most bytes
    beside weights, optimiser and batch: with gradients as they come, without gradients, and without those of layers.
    ``gathered`` are the bytes of parameters that sharded layers would gather: for every call, and again for its backward pass.
    """

    pairs: int
    batch_bytes: int
    ops: list[Op]
    kept: dict[str, int]
    peak: int
    peak_without_gradients: int
    peak_without_layers: int
    gathered: int

    def flops(self, component: str | None = None, *, is_backward: bool | None = None) -> int:
        """Of a component, a direction, or all."""
        return sum(op.flops for op in self.ops if component in (None, op.component) and is_backward in (None, op.is_backward))


def trace_step(model: ComposedModel, batch: Batch, spec: TrainSpec, *, is_gpu: bool, gpus: int = 1) -> StepTrace:
    """Follow one forward and backward pass of a model with fake weights (:func:`fake_model`), which stays as it was.

    Raises:
        MedvlpError: a component looks at numbers that do not exist (MV603).

    ``is_gpu``: with the attention kernels and the autocast of a GPU; else as a CPU does it. ``gpus``: pairs are contrasted with as
    many on each other GPU.
    """
    model.train()
    prepare(model, attrs.evolve(spec, compile=False))
    recorder = Recorder(model, batch)
    dtype = AUTOCAST_DTYPES.get(spec.precision)
    others = patch.multiple(torch.distributed, **processes(gpus)) if gpus > 1 else nullcontext()
    try:
        with others, recorder, GpuFunctions(dtype) if is_gpu else nullcontext():
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                output = model(batch)
            kept = recorder.kept()
            # Not loss.backward(): it would leave GpuFunctions, and layers may compute their forward pass again.
            run_backward((output.loss,), (torch.ones_like(output.loss),), False, False, (), True, accumulate_grad=True)
    except PartFailed as error:
        raise _cannot_follow(model, recorder.component, error.__cause__ or error) from error.__cause__
    except MedvlpError:
        raise
    except Exception as error:
        raise _cannot_follow(model, recorder.component, error) from error
    finally:
        recorder.leave()
        unprepare(model)
    return StepTrace(
        pairs=len(batch["image"]),
        batch_bytes=sum(x.untyped_storage().nbytes() for x in batch.values()),
        ops=recorder.ops,
        kept=kept,
        peak=recorder.peak,
        peak_without_gradients=recorder.peak_without_gradients,
        peak_without_layers=recorder.peak_without_layers,
        gathered=recorder.gathered,
    )


def _cannot_follow(model: ComposedModel, path: str, error: BaseException) -> MedvlpError:
    component = model.plan.components.get(path)
    what = textwrap.shorten(f"{type(error).__name__}: {error}", width=160, placeholder=" ...")
    text = f"{component.label if component else 'the step'} cannot be followed without numbers: {what}"
    hint = "it may depend on the values of images or features, which an estimate does not have"
    return MedvlpError(Problem(code="MV603", text=text, position=component.position() if component else None, hint=hint))


def unprepare(model: ComposedModel) -> None:
    """Undo what a step did to a model: recomputing layers, gradients."""
    for layer in layers_of(model):
        layer.__dict__.pop("forward", None)
    model.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------------------------ recording


class Recorder(TorchDispatchMode):
    """Notes every operation and every byte: which component it belongs to, how long its memory lives.

    In the backward pass an operation belongs to the component whose forward pass made the autograd node that runs.
    """

    def __init__(self, model: ComposedModel, batch: Batch) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.fake = fake_mode_of(model)
        self.alive: dict[int, tuple[int, str]] = {}
        self.bytes = self.gradients = self.layer_gradients = self.gathered = 0
        self.peak = self.peak_without_gradients = self.peak_without_layers = 0
        self.component = REST
        self._starts: list[int] = []
        self._owners: list[str] = []
        self._static = {storage_key(value) for value in (*model.parameters(), *model.buffers(), *batch.values())}
        self._gradient_keys: dict[int, bool] = {}  # whether it is one of a layer
        self._in_layers = {id(one) for layer in layers_of(model) for one in layer.parameters()}
        self._parts: list[tuple[nn.Module, str]] = []
        for path, component in model.plan.components.items():
            if path.startswith("model."):
                self._follow(path, component.role, model.part(path))
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._has_gradient) for parameter in trained]
        self._hooks += [layer.register_forward_hook(self._is_called) for layer in layers_of(model)]

    def leave(self) -> None:
        """Take everything off the model again."""
        for hook in self._hooks:
            hook.remove()
        for part, name in self._parts:
            delattr(part, name)

    def kept(self) -> dict[str, int]:
        """Bytes alive now, by component."""
        found: dict[str, int] = {}
        for size, component in self.alive.values():
            found[component] = found.get(component, 0) + size
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, with or without numbers, and note it."""
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        args, kwargs = self._with_known_places(func, args, kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(isinstance(one, FakeTensor) for one in inputs) or _is_large(func, inputs):
            args, kwargs = tree_map_only(Tensor, self._faked, (args, kwargs))
            with self.fake:
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        component, is_backward = self._whose()
        for output in outputs:
            self._allocated(output, component)
        if not _is_view(func) and func.overloadpacket.__name__ not in _ALLOCATORS:
            formula = flop_registry.get(func.overloadpacket) or CPU_ATTENTION.get(func.overloadpacket)
            flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
            moved = sum({storage_key(x): _size(x) for x in (*inputs, *outputs)}.values())
            is_half = any(x.dtype in HALF for x in inputs)
            is_pointwise = torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in ("_to_copy", "native_dropout")
            self.ops.append(Op(func.overloadpacket.__name__, component, is_backward, flops, moved, is_half, is_pointwise))
        return result

    # ------------------------------------------------------------------------------------------------------------ real and fake

    def _with_known_places(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Masks that are known become the places that they choose: then the result has a size."""
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and isinstance(args[0], FakeTensor):
            places: list[Any] = []
            for one in args[1]:
                is_mask = isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) and not isinstance(one, FakeTensor)
                places += one.nonzero(as_tuple=True) if is_mask else [one]
            return (args[0], places, *args[2:]), kwargs
        return args, kwargs

    def _faked(self, x: Tensor) -> Tensor:
        return x if isinstance(x, FakeTensor) else self.fake.from_tensor(x)

    # ------------------------------------------------------------------------------------------------------------------- owners

    def _follow(self, path: str, role: Role, part: nn.Module) -> None:
        for name in ("embed", "encode") if role is Role.TEXT_ENCODER else ("forward",):
            setattr(part, name, self._marked(path, getattr(part, name)))
            self._parts.append((part, name))

    def _marked(self, path: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def marked(*args: Any, **kwargs: Any) -> Any:
            before = self.component
            self._enter(path)
            result = call(*args, **kwargs)
            self._enter(before)  # not after an error: then the component at fault is known
            return result

        return marked

    def _enter(self, path: str) -> None:
        """From the next autograd node on, all belongs to a component."""
        self.component = path
        self._starts.append(next_sequence_number())
        self._owners.append(path)

    def _whose(self) -> tuple[str, bool]:
        node = current_node()
        if node is None:
            return self.component, False
        place = bisect.bisect_right(self._starts, node._sequence_nr()) - 1
        is_leaf = node.name().endswith("AccumulateGrad")
        return (REST if place < 0 or is_leaf else self._owners[place]), True

    # ------------------------------------------------------------------------------------------------------------------- memory

    def _allocated(self, x: Tensor, component: str) -> None:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive or key in self._static or size == 0:
            return
        self.alive[key] = (size, component)
        weakref.finalize(storage, self._freed, key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        self.peak_without_gradients = max(self.peak_without_gradients, self.bytes - self.gradients)
        self.peak_without_layers = max(self.peak_without_layers, self.bytes - self.layer_gradients)

    def _freed(self, key: int) -> None:
        size, _ = self.alive.pop(key)
        self.bytes -= size
        if key in self._gradient_keys:
            self.gradients -= size
            self.layer_gradients -= size if self._gradient_keys.pop(key) else 0

    def _has_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = storage_key(parameter.grad)
        if key in self.alive and key not in self._gradient_keys:
            self._gradient_keys[key] = id(parameter) in self._in_layers
            self.gradients += self.alive[key][0]
            self.layer_gradients += self.alive[key][0] if self._gradient_keys[key] else 0

    def _is_called(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        size = sum(one.numel() * one.element_size() for one in layer.parameters())
        has_backward = any(isinstance(one, Tensor) and one.requires_grad for one in tree_leaves(output))
        self.gathered += 2 * size if has_backward else size


def storage_key(x: Tensor) -> int:
    """A number that all views of one memory share."""
    return x.untyped_storage()._cdata


def _size(x: Tensor) -> int:
    """Bytes that are read or written of a tensor, which may repeat itself or be part of a larger one."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _is_large(func: Any, inputs: list[Tensor]) -> bool:
    """Whether an elementwise operation of real tensors has so many results that it is better followed without numbers."""
    if len(inputs) < 2 or torch.Tag.pointwise not in func.tags:
        return False
    return math.prod(torch.broadcast_shapes(*(one.shape for one in inputs))) > LARGEST_REAL


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
