"""Conformance: how a module behaves: repeatable, blind to padding, the same alone and in a batch, storable, compilable."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import MODULE_ROLES, CheckFailed, NotApplicable, check, expect
from medvlp_core.testing.other_device import MixedDevices, OtherDeviceTensor, on_other_device, to_other_device
from medvlp_core.testing.subject import Example, Pass, Subject
from medvlp_core.testing.synthetic_batch import all_close, other_values, rows

#: Roles whose outputs are features, a vector or token each, and not draws.
DETERMINISTIC = tuple(role for role in MODULE_ROLES if role is not Role.MASKING)


def everything(example: Example, module: Any, arguments: dict[str, Tensor], *, seed: int = 7) -> dict[str, Tensor]:
    """Ports and losses of a call, without gradient; each call draws the same, so that nothing is blamed on chance."""
    torch.manual_seed(seed)
    copies = {name: tensor.clone() for name, tensor in arguments.items()}  # it may write into them, which is checked elsewhere
    with torch.no_grad():
        return example.call(module, copies).tensors()


def difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str | None:
    """The first port or loss in which two calls differ by a bit, and by how much; None if they are equal."""
    for name, tensor in first.items():
        other = second[name]
        if tensor.shape != other.shape:
            return f"{name} is {tuple(tensor.shape)} and {tuple(other.shape)}"
        if not torch.equal(tensor, other):
            return f"{name} differs by up to {(tensor.double() - other.double()).abs().max().item():.2g}"
    return None


@check("behaviour", roles=MODULE_ROLES)
def starts_from_the_seed(subject: Subject) -> None:
    """Weights are drawn from torch's global random state and nowhere else, and the state is not set anew."""
    for example in subject.examples:
        first, again = (example.build(seed=5).state_dict() for _ in range(2))
        _expect_seed(example, 5, "building it")
        unequal = difference(first, again)
        expect(unequal is None, f"{example}: built twice after torch.manual_seed(5), {unequal}; draw with torch's functions")


def _expect_seed(example: Example, seed: int, what: str) -> None:
    text = f"{example}: {what} calls torch.manual_seed, so that the run's own seed no longer counts; leave it out"
    expect(torch.initial_seed() == seed, text)


@check("behaviour", roles=MODULE_ROLES)
def repeats_with_the_seed(subject: Subject) -> None:
    """In training mode, the same seed gives the same masks and dropout, so that runs can be repeated."""
    for example in subject.examples:
        for one in example.passes():
            found = []
            for module in (example.build(), example.build()):  # two, for one may remember what it has seen
                found.append(everything(example, module, one.arguments))
                _expect_seed(example, 7, "calling it")
            unequal = difference(*found)
            expect(unequal is None, f"{example}: called twice after torch.manual_seed(7), {unequal}; draw with torch's functions")


@check("behaviour", roles=DETERMINISTIC)
def is_deterministic_in_eval(subject: Subject) -> None:
    """In evaluation mode nothing is drawn: two calls give the same, whatever the seed."""
    for example, module, one in subject.calls():
        unequal = difference(everything(example, module, one.arguments), everything(example, module, one.arguments, seed=8))
        text = f"{example}: two calls in evaluation mode: {unequal}; draw only if self.training"
        expect(unequal is None, text)


@check("behaviour", roles=MODULE_ROLES)
def does_not_change_its_inputs(subject: Subject) -> None:
    """A call, in training mode and with backward, changes none of the tensors that it gets."""
    for example in subject.examples:
        module = example.build()
        for one in example.passes():
            before = {name: tensor.clone() for name, tensor in one.arguments.items()}
            outputs = example.call(module, one.arguments).tensors()
            roots = [value.sum() for value in outputs.values() if value.requires_grad]
            if roots:
                torch.stack(roots).sum().backward()
            changed = [name for name, tensor in before.items() if not torch.equal(tensor, one.arguments[name])]
            expect(not changed, f"{example}: a call changed {', '.join(changed)} in place; others need it too, so work on a copy")


def text_arguments(example: Example, one: Pass) -> Iterator[tuple[str, str, Tensor]]:
    """The arguments along the text whose content a component reads: name, port, tensor."""
    for name, tensor in one.arguments.items():
        port = example.contract.needs[name].port or name
        if example.is_text(port) and port not in ("text_is_valid", "word_ids", "text_is_masked"):
            yield name, port, tensor


@check("behaviour", roles=MODULE_ROLES)
def stays_on_its_device(subject: Subject) -> None:
    """A call makes its tensors where weights and inputs are, so that it runs on a GPU too."""
    for example, module, one in subject.calls():
        to_other_device(module)
        arguments: dict[str, Tensor] = {name: OtherDeviceTensor(tensor) for name, tensor in one.arguments.items()}
        advice = "make tensors with device=, and keep those of the module as buffers"
        try:
            with torch.no_grad(), on_other_device():
                tensors = example.call(module, arguments).tensors()
        except MixedDevices as error:
            raise CheckFailed(f"{example}: {error}; {advice}") from error
        for name, tensor in tensors.items():
            expect(isinstance(tensor, OtherDeviceTensor), f"{example}: {name} is on the CPU, and the inputs are not; {advice}")


@check("behaviour", roles=DETERMINISTIC)
def ignores_padding(subject: Subject) -> None:
    """What stands at padding positions changes no valid position, no other output and no loss."""
    if not any(True for example in subject.examples for one in example.passes() for _ in text_arguments(example, one)):
        raise NotApplicable("it takes no text")
    generator = torch.Generator().manual_seed(3)
    for example, module, one in subject.calls():
        valid = one.synthetic_batch.fixed["text_is_valid", None]
        arguments = dict(one.arguments)
        for name, _, tensor in text_arguments(example, one):
            keep = valid if tensor.ndim == 2 else valid[:, :, None]
            arguments[name] = torch.where(keep, tensor, other_values(tensor, generator, vocabulary=one.synthetic_batch.vocabulary))
        first, second = everything(example, module, one.arguments), everything(example, module, arguments)
        for port, tensor in first.items():
            other = second[port]
            if example.is_text(port):
                tensor, other = tensor[valid], other[valid]
            names = ", ".join(name for name, _, _ in text_arguments(example, one))
            text = f"{example}: other content at the padding of {names} changes {port}"
            expect(all_close(tensor, other), f"{text}; leave positions out where text_is_valid is False")


@check("behaviour", roles=DETERMINISTIC)
def is_the_same_alone_and_in_a_batch(subject: Subject) -> None:
    """A pair alone, its text without padding, gives the features that it has in a batch."""
    for example, module, one in subject.calls():
        synthetic_batch = one.synthetic_batch
        with torch.no_grad():
            if subject.role is Role.ALIGNMENT:
                _compare_embeddings(example, module, one)
                continue
            whole = example.call(module, one.arguments).ports
            for row in range(synthetic_batch.batch):
                length = synthetic_batch.lengths[row]
                local_only = {name: _cut(example, name, value, length) for name, value in rows(one.arguments, row).items()}
                for port, tensor in example.call(module, local_only).ports.items():
                    spec = example.declared(port)
                    if spec is None or spec.dims[0] != "B":
                        continue  # its rows are scored positions, not pairs
                    expected = whole[port][row : row + 1]
                    expected = expected[:, :length] if example.is_text(port) else expected
                    is_equal = all_close(tensor, expected)
                    expect(
                        is_equal, f"{example}: pair {row + 1} of {synthetic_batch.batch} has another {port} alone than in the batch"
                    )


def _cut(example: Example, name: str, value: Tensor, length: int) -> Tensor:
    return value[:, :length] if example.is_text(example.contract.needs[name].port or name) else value


def _compare_embeddings(example: Example, module: Any, one: Pass) -> None:
    inputs = example.embedding_inputs(one.synthetic_batch)
    whole = example.embed(module, inputs)
    for row, length in enumerate(one.synthetic_batch.lengths):
        local_only = {name: value[row : row + 1] for name, value in inputs.items()}
        local_only |= {name: local_only[name][:, :length] for name in ("text_tokens", "text_is_valid", "word_ids")}
        for port, tensor in example.embed(module, local_only).items():
            is_equal = all_close(tensor, whole[port][row : row + 1])
            expect(is_equal, f"{example}: pair {row + 1} of {one.synthetic_batch.batch} has another {port} alone than in the batch")


@check("behaviour", roles=DETERMINISTIC)
def survives_a_state_dict(subject: Subject) -> None:
    """After a training step, the weights saved as a checkpoint saves them make a module of another seed equal."""
    for example in subject.examples:
        trained, other = example.build(0), example.build(1)
        train_steps(example, trained, steps=2)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/weights.safetensors"
            try:
                save_model(trained, path)
                load_model(other, path, strict=True)
            except RuntimeError as error:
                raise CheckFailed(f"{example}: its weights cannot be saved and loaded again: {_first_lines(error)}") from error
        for one in example.passes():
            unequal = difference(*(everything(example, module.eval(), one.arguments) for module in (trained, other)))
            text = f"{example}: after loading the weights of another instance, {unequal}"
            expect(unequal is None, f"{text}; make all that it learns or draws a parameter or a persistent buffer")


def train_steps(example: Example, module: nn.Module, *, steps: int, rate: float = 1e-2) -> None:
    """Train on the example's passes, towards whatever :func:`goal` says."""
    parameters = [one for one in module.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate) if parameters else None
    module.train()
    for _ in range(steps):
        for one in example.passes():
            loss = goal(example.call(module, one.arguments).tensors())
            if optimizer is not None and loss.requires_grad:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def goal(tensors: Mapping[str, Tensor]) -> Tensor:
    """A scalar that depends on everything: the sum of the losses, or else the distance of all features to fixed random ones."""
    losses = [value for name, value in tensors.items() if name.startswith("loss.")]
    if losses:
        return torch.stack([value.float() for value in losses]).sum()
    generator = torch.Generator().manual_seed(11)
    parts = []
    for name, value in tensors.items():
        # Embeddings of a text encoder are on the way to its tokens: only there may what comes between cut a gradient off.
        if value.is_floating_point() and value.numel() and not (name == "text_embeddings" and "text_tokens" in tensors):
            target = torch.randn(value.shape, generator=generator)
            parts.append((value.float() - target).square().mean())
    return torch.stack(parts).sum() if parts else torch.zeros(())


@check("behaviour", roles=DETERMINISTIC)
def keeps_its_dtypes_under_autocast(subject: Subject) -> None:
    """Under bfloat16 autocast, with bfloat16 features as encoders give them, outputs are finite and losses float32."""
    for example in subject.examples:
        module = example.build()
        for one in example.passes():
            arguments = {name: _as_autocast_gives(example, name, value) for name, value in one.arguments.items()}
            with torch.autocast("cpu", dtype=torch.bfloat16):
                tensors = example.call(module, arguments).tensors()
            for name, tensor in tensors.items():
                allowed = (torch.float32,) if name.startswith("loss.") else (torch.float32, torch.bfloat16)
                wanted = " or ".join(str(dtype) for dtype in allowed)
                expect(tensor.dtype in allowed, f"{example}: under bfloat16 autocast {name} is {tensor.dtype}, expected {wanted}")
                expect(bool(torch.isfinite(tensor).all()), f"{example}: under bfloat16 autocast {name} is not finite")


def _as_autocast_gives(example: Example, name: str, value: Tensor) -> Tensor:
    is_pixels = example.contract.needs[name].port in ("image", "image_target")
    return value.bfloat16() if value.is_floating_point() and not is_pixels else value


@check("behaviour", roles=DETERMINISTIC)
def compiles(subject: Subject) -> None:
    """torch.compile traces a call as one graph, and the traced call gives the same."""
    import torch._dynamo.config

    for example, module, one in subject.calls():
        if one.view == "masked" and not example.is_viewed:
            continue  # the same graph with other sizes
        torch._dynamo.reset()
        settings: dict[str, Any] = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
        with torch._dynamo.config.patch(settings), torch.no_grad():
            compiled: Any = torch.compile(module, fullgraph=True, backend="eager")
            try:
                raw = compiled(**one.arguments)
            except Exception as error:
                raise CheckFailed(f"{example}: torch.compile cannot trace forward: {_first_lines(error)}") from error
        found = {"text_tokens": raw} if subject.role is Role.TEXT_ENCODER else example.read(raw).tensors()
        expected = everything(example, module, one.arguments)
        for name, tensor in found.items():
            is_equal = all_close(tensor, expected[name])
            expect(is_equal, f"{example}: {name} is another when forward is compiled")
    torch._dynamo.reset()


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:300]}"


class _Call(nn.Module):
    """Calls of a component as one module, for wrappers of torch."""

    def __init__(self, example: Example, module: nn.Module) -> None:
        super().__init__()
        self.example, self.module = example, module

    def forward(self, *calls: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The tensors that each call gives."""
        return [self.example.call(self.module, arguments).tensors() for arguments in calls]


@check("behaviour", roles=DETERMINISTIC)
def works_under_ddp(subject: Subject) -> None:
    """DistributedDataParallel finds every parameter in every step, without searching for unused ones."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    if not any(parameter.requires_grad for example in subject.examples for parameter in example.build().parameters()):
        raise NotApplicable("it has nothing to train")
    is_mine = not dist.is_initialized()
    if is_mine:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        for example in subject.examples:
            module = example.build()
            if not any(parameter.requires_grad for parameter in module.parameters()):
                continue
            first, second = (one.arguments for one in example.passes())
            wrapped = DistributedDataParallel(_Call(example, module))
            # The two views are calls of one step; else each call is a step. What a step left out, the next one complains about.
            for calls in [(first, second)] * 2 if example.is_viewed else [(first,), (second,), (first,)]:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # it may say that it would be quicker with other strides
                        torch.stack([goal(tensors) for tensors in wrapped(*calls)]).sum().backward()
                except RuntimeError as error:
                    text = f"{example}: a step leaves parameters without gradient, and DistributedDataParallel stops at the next"
                    is_known = "finished reduction" in str(error)
                    raise CheckFailed(f"{text}: use them in every step" if is_known else f"{example}: {error}") from error
    finally:
        if is_mine:
            dist.destroy_process_group()
