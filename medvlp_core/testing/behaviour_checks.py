"""Conformance: how a module behaves: repeatable, blind to padding, the same alone and in a batch, storable, compilable."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from medvlp_core.spec.contract import TensorSpec
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import MODULE_ROLES, CheckFailed, NotApplicable, check, expect
from medvlp_core.testing.contract_checks import KINDS
from medvlp_core.testing.other_device import MixedDevices, OtherDeviceTensor, on_other_device, to_other_device
from medvlp_core.testing.subject import Example, ExampleCall, Pass, Subject
from medvlp_core.testing.synthetic_batch import all_close, other_values

#: Roles whose outputs are features, a vector or token each, and not draws.
DETERMINISTIC = tuple(role for role in MODULE_ROLES if role is not Role.MASKING)
#: Ports that are compared with those of other batches.
VECTORS = ("image_embedding", "text_embedding")


def everything(call: ExampleCall, module: Any, arguments: dict[str, Tensor], *, seed: int = 7) -> dict[str, Tensor]:
    """Ports and losses of a call, without gradient; each call draws the same, so that nothing is blamed on chance."""
    torch.manual_seed(seed)
    copies = {name: tensor.clone() for name, tensor in arguments.items()}  # it may write into them, which is checked elsewhere
    with torch.no_grad():
        return call.run(module, copies).tensors()


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
        _expect_seed(str(example), 5, "building it")
        unequal = difference(first, again)
        expect(unequal is None, f"{example}: built twice after torch.manual_seed(5), {unequal}; draw with torch's functions")


def _expect_seed(who: str, seed: int, what: str) -> None:
    text = f"{who}: {what} calls torch.manual_seed, so that the run's own seed no longer counts; leave it out"
    expect(torch.initial_seed() == seed, text)


@check("behaviour", roles=MODULE_ROLES)
def repeats_with_the_seed(subject: Subject) -> None:
    """In training mode, the same seed gives the same masks and dropout, so that runs can be repeated."""
    for call in subject.each_call():
        for one in call.passes():
            found = []
            for module in (call.example.build(), call.example.build()):  # two, for one may remember what it has seen
                found.append(everything(call, module, one.arguments))
                _expect_seed(str(call), 7, "calling it")
            unequal = difference(*found)
            expect(unequal is None, f"{call}: called twice after torch.manual_seed(7), {unequal}; draw with torch's functions")


@check("behaviour", roles=DETERMINISTIC)
def is_deterministic_in_eval(subject: Subject) -> None:
    """In evaluation mode nothing is drawn: two calls give the same, whatever the seed."""
    for call, module, one in subject.passes():
        unequal = difference(everything(call, module, one.arguments), everything(call, module, one.arguments, seed=8))
        text = f"{call}: two calls in evaluation mode: {unequal}; draw only if self.training"
        expect(unequal is None, text)


@check("behaviour", roles=MODULE_ROLES)
def does_not_change_its_inputs(subject: Subject) -> None:
    """A call, in training mode and with backward, changes none of the tensors that it gets."""
    for call in subject.each_call():
        module = call.example.build()
        for one in call.passes():
            before = {name: tensor.clone() for name, tensor in one.arguments.items()}
            outputs = call.run(module, one.arguments).tensors()
            roots = [value.sum() for value in outputs.values() if value.requires_grad]
            if roots:
                torch.stack(roots).sum().backward()
            changed = [name for name, tensor in before.items() if not torch.equal(tensor, one.arguments[name])]
            expect(not changed, f"{call}: a call changed {', '.join(changed)} in place; others need it too, so work on a copy")


def text_arguments(call: ExampleCall, one: Pass) -> Iterator[tuple[str, Tensor]]:
    """The arguments along the text whose content a call reads: name, tensor."""
    for name, tensor in one.arguments.items():
        if call.is_text(call.port(name)) and call.port(name) not in ("text_is_valid", "word_ids", "text_is_masked"):
            yield name, tensor


def with_other_text(call: ExampleCall, one: Pass, keep: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The arguments with other content of the text where ``keep`` (B, L) is False."""
    arguments = dict(one.arguments)
    for name, tensor in text_arguments(call, one):
        where = keep if tensor.ndim == 2 else keep[:, :, None]
        arguments[name] = torch.where(where, tensor, other_values(tensor, generator, vocabulary=one.synthetic_batch.vocabulary))
    return arguments


@check("behaviour", roles=MODULE_ROLES)
def stays_on_its_device(subject: Subject) -> None:
    """A call makes its tensors where weights and inputs are, so that it runs on a GPU too; ``generate`` is not tried."""
    for call, module, one in subject.passes():
        if call.is_writing:  # it reads what it wrote, and the stand-in for a device has no numbers
            continue
        to_other_device(module)
        arguments: dict[str, Tensor] = {name: OtherDeviceTensor(tensor) for name, tensor in one.arguments.items()}
        advice = "make tensors with device=, and keep those of the module as buffers"
        try:
            with torch.no_grad(), on_other_device():
                tensors = call.run(module, arguments).tensors()
        except MixedDevices as error:
            raise CheckFailed(f"{call}: {error}; {advice}") from error
        for name, tensor in tensors.items():
            expect(isinstance(tensor, OtherDeviceTensor), f"{call}: {name} is on the CPU, and the inputs are not; {advice}")


@check("behaviour", roles=DETERMINISTIC)
def ignores_padding(subject: Subject) -> None:
    """What stands at padding positions changes no valid position, no other output and no loss."""
    if not any(True for call in subject.each_call() for one in call.passes() for _ in text_arguments(call, one)):
        raise NotApplicable("it takes no text")
    generator = torch.Generator().manual_seed(3)
    for call, module, one in subject.passes():
        valid = one.synthetic_batch.fixed["text_is_valid", None]
        arguments = with_other_text(call, one, valid, generator)
        first, second = everything(call, module, one.arguments), everything(call, module, arguments)
        for port, tensor in first.items():
            other = second[port]
            if call.is_text(port):
                tensor, other = tensor[valid], other[valid]
            names = ", ".join(name for name, _ in text_arguments(call, one))
            text = f"{call}: other content at the padding of {names} changes {port}"
            expect(all_close(tensor, other), f"{text}; leave positions out where text_is_valid is False")


def _rows_of_pairs(call: ExampleCall, one: Pass) -> dict[str, TensorSpec]:
    """The given ports with a row for each pair; the rows of others are scored positions, not pairs."""
    return {port: spec for port, spec in call.given(one.arguments).items() if spec.dims[:1] == ("B",)}


@check("behaviour", roles=DETERMINISTIC)
def is_the_same_alone_and_in_a_batch(subject: Subject) -> None:
    """A pair alone, its text without padding, gives the features that it has in a batch, unless a call declares ``mixes_rows``."""
    for call, module, one in subject.passes():
        ports = _rows_of_pairs(call, one)
        if call.contract.mixes_rows and not ports.keys() & VECTORS:  # whatever it says, vectors are compared with other batches'
            continue
        synthetic_batch = one.synthetic_batch
        with torch.no_grad():
            whole = call.run(module, one.arguments).ports
            for row, length in enumerate(synthetic_batch.lengths):
                local_only = {
                    name: _cut(call, call.port(name), value, length) for name, value in call.pair(one.arguments, row).items()
                }
                found = call.run(module, local_only).ports
                for port in (port for port in ports if port in found):
                    is_equal = all_close(found[port], _cut(call, port, whole[port][row : row + 1], length))
                    text = f"{call}: pair {row + 1} of {synthetic_batch.batch} has another {port} alone than in the batch"
                    expect(is_equal, text)


def _cut(call: ExampleCall, port: str, value: Tensor, length: int) -> Tensor:
    return value[:, :length] if call.is_text(port) else value


@check("behaviour", roles=DETERMINISTIC)
def mixes_rows_as_declared(subject: Subject) -> None:
    """What the other pairs are changes neither a pair's features nor its part in a loss, unless a call declares ``mixes_rows``.

    A loss may be any mean over pairs, tokens or patches: then its gradient at a pair depends on how many others count, and not on
    what they are.
    """
    if all(call.contract.mixes_rows for call in subject.each_call()):
        raise NotApplicable("all its calls declare mixes_rows")
    generator = torch.Generator().manual_seed(3)
    advice = "leave other pairs out, or declare it: Contract(..., mixes_rows=True)"
    for call, module, one in subject.passes():
        if call.contract.mixes_rows:
            continue
        first, first_slopes = everything(call, module, one.arguments), _slopes(call, module, one.arguments)
        for row, length in enumerate(one.synthetic_batch.lengths):
            # Ids stay what they are where losses are compared: which positions count may hang on them.
            other = _with_other_rows(call, one, row, generator, with_ids=True)
            second = everything(call, module, other)
            for port in (port for port in _rows_of_pairs(call, one) if port in first):
                pair = [_cut(call, port, found[port][row : row + 1], length) for found in (first, second)]
                text = f"{call}: {port} of pair {row + 1} of {one.synthetic_batch.batch} is another with other pairs beside it"
                expect(all_close(*pair), f"{text}; {advice}")
            second_slopes = _slopes(call, module, _with_other_rows(call, one, row, generator, with_ids=False))
            for (loss, name), slope in first_slopes.items():
                other_slope = second_slopes.get((loss, name), torch.zeros_like(slope))
                most = float((slope[row] - other_slope[row]).abs().max())
                pair_of = f"pair {row + 1} of {one.synthetic_batch.batch}"
                text = f"{call}: what the loss {loss} asks of {name} of {pair_of} depends on the other pairs"
                expect(most <= 1e-3 * float(slope[row].abs().max()) + 1e-7, f"{text}; {advice}")


def _with_other_rows(call: ExampleCall, one: Pass, row: int, generator: torch.Generator, *, with_ids: bool) -> dict[str, Tensor]:
    """The arguments with other content in all rows but one; what is valid and what is masked stays."""
    arguments = dict(one.arguments)
    for name, value in one.arguments.items():
        if not call.has_rows(name):
            continue
        if value.is_floating_point() or (with_ids and call.port(name) == "token_ids"):
            other = other_values(value, generator, vocabulary=one.synthetic_batch.vocabulary)
            other[row] = value[row]
            arguments[name] = other
    return arguments


def _slopes(call: ExampleCall, module: nn.Module, arguments: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """The gradient of every loss at every float argument that it depends on."""
    if not call.contract.losses:
        return {}
    leaves = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in arguments.items()}
    features = {name: value for name, value in leaves.items() if value.requires_grad and call.has_rows(name)}
    given = {name: value.clone() for name, value in leaves.items()}  # it may write into them, which is checked elsewhere
    found: dict[tuple[str, str], Tensor] = {}
    torch.manual_seed(7)
    for loss, value in call.run(module, given).losses.items():
        if features and value.requires_grad:
            slopes = torch.autograd.grad(value, [*features.values()], retain_graph=True, allow_unused=True)
            found |= {(loss, name): slope for name, slope in zip(features, slopes, strict=True) if slope is not None}
    return found


@check("behaviour", roles=DETERMINISTIC)
def sees_only_the_past(subject: Subject) -> None:
    """A port with ``sees="past"`` is at each position what the text up to there makes it, whatever follows and wherever it ends."""
    promised = {
        (str(call), port)
        for call in subject.each_call()
        for one in call.passes()
        for port, spec in call.given(one.arguments).items()
        if spec.sees == "past"
    }
    if not promised:
        raise NotApplicable("it gives no port with sees='past'")
    generator = torch.Generator().manual_seed(3)
    for call, module, one in subject.passes():
        ports = [port for port in call.given(one.arguments) if (str(call), port) in promised]
        for port in ports:
            expect(call.is_text(port), f"{call}: {port} is declared with sees='past', and stands along no text that it takes")
        first = everything(call, module, one.arguments)
        ports = [port for port in ports if port in first]
        valid = one.synthetic_batch.fixed["text_is_valid", None]
        for last in range(max(one.synthetic_batch.lengths) - 1) if ports else ():
            is_past = torch.arange(valid.shape[1]) <= last
            told = with_other_text(call, one, is_past.expand_as(valid), generator)
            ended = {
                name: value & is_past if call.port(name) == "text_is_valid" else value for name, value in one.arguments.items()
            }
            for other, what in ((told, "other tokens after it"), (ended, "the text ending there")):
                second = everything(call, module, other)
                for port in ports:
                    is_equal = all_close(first[port][valid & is_past], second[port][valid & is_past])
                    text = f"{call}: {port} is declared with sees='past', and up to position {last} it is another with {what}"
                    expect(is_equal, f"{text}; mask what follows, or declare sees='all'")


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
        for call, one in all_passes(example.calls):
            unequal = difference(*(everything(call, module.eval(), one.arguments) for module in (trained, other)))
            text = f"{call}: after loading the weights of another instance, {unequal}"
            expect(unequal is None, f"{text}; make all that it learns or draws a parameter or a persistent buffer")


def train_steps(example: Example, module: nn.Module, *, steps: int, rate: float = 1e-2) -> None:
    """Train on the passes of the calls that are trained, towards whatever :func:`goal` says."""
    parameters = [one for one in module.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate) if parameters else None
    module.train()
    for _ in range(steps):
        for call, one in trained_passes(example):
            loss = goal(call.run(module, one.arguments).tensors())
            if optimizer is not None and loss.requires_grad:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def trained_passes(example: Example) -> Iterator[tuple[ExampleCall, Pass]]:
    """Every call that training goes through, with each of its passes."""
    return all_passes(example.trained)


def all_passes(calls: Iterable[ExampleCall]) -> Iterator[tuple[ExampleCall, Pass]]:
    """Each call with each of its passes."""
    return ((call, one) for call in calls for one in call.passes())


def goal(tensors: Mapping[str, Tensor]) -> Tensor:
    """A scalar that depends on everything: the sum of the losses, or else the distance of all features to fixed random ones."""
    losses = [value for name, value in tensors.items() if name.startswith("loss.")]
    if losses:
        return torch.stack([value.float() for value in losses]).sum()
    generator = torch.Generator().manual_seed(11)
    parts = []
    for value in tensors.values():
        if value.is_floating_point() and value.numel():
            target = torch.randn(value.shape, generator=generator)
            parts.append((value.float() - target).square().mean())
    return torch.stack(parts).sum() if parts else torch.zeros(())


@check("behaviour", roles=MODULE_ROLES)
def keeps_its_dtypes_under_autocast(subject: Subject) -> None:
    """Under bfloat16 autocast, with bfloat16 features as encoders give them, outputs are finite, losses float32, ids integers."""
    for call in subject.each_call():
        module = call.example.build()
        for one in call.passes():
            arguments = {name: _as_autocast_gives(call.port(name), value) for name, value in one.arguments.items()}
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = call.run(module, arguments)
            for port, spec in call.given(arguments).items():
                if (tensor := outputs.ports.get(port)) is None:
                    continue
                is_float = spec.dtype == "float"
                is_right = tensor.dtype in (torch.float32, torch.bfloat16) if is_float else KINDS[spec.dtype](tensor)
                wanted = "torch.float32 or torch.bfloat16" if is_float else spec.dtype
                expect(is_right, f"{call}: under bfloat16 autocast {port} is {tensor.dtype}, expected {wanted}")
            for name, tensor in outputs.losses.items():
                is_right = tensor.dtype == torch.float32
                expect(is_right, f"{call}: under bfloat16 autocast loss.{name} is {tensor.dtype}, expected torch.float32")
            for name, tensor in outputs.tensors().items():
                expect(bool(torch.isfinite(tensor).all()), f"{call}: under bfloat16 autocast {name} is not finite")


def _as_autocast_gives(port: str, value: Tensor) -> Tensor:
    is_pixels = port in ("image", "image_target")
    return value.bfloat16() if value.is_floating_point() and not is_pixels else value


@check("behaviour", roles=DETERMINISTIC)
def compiles(subject: Subject) -> None:
    """torch.compile traces a call as one graph, and the traced call gives the same; ``generate`` is not compiled."""
    import torch._dynamo.config

    settings: dict[str, Any] = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
    for call in (call for call in subject.each_call() if not call.is_writing):
        for one in call.passes()[: 2 if call.is_viewed else 1]:  # else the same graph with other sizes
            module = call.example.build().eval()
            torch._dynamo.reset()
            with torch._dynamo.config.patch(settings), torch.no_grad():
                compiled: Any = torch.compile(call.method(module), fullgraph=True, backend="eager")
                try:
                    raw = compiled(**one.arguments)
                except Exception as error:
                    raise CheckFailed(f"{call}: torch.compile cannot trace {call.name}: {_first_lines(error)}") from error
            expected = everything(call, module, one.arguments)
            for name, tensor in call.read(raw).tensors().items():
                is_equal = all_close(tensor, expected[name])
                expect(is_equal, f"{call}: {name} is another when {call.name} is compiled")
    torch._dynamo.reset()


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:300]}"


class _Step(nn.Module):
    """Calls of a component as one module, for wrappers of torch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *calls: tuple[ExampleCall, Pass]) -> list[dict[str, Tensor]]:
        """The tensors that each call gives."""
        return [call.run(self.module, one.arguments).tensors() for call, one in calls]


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
            first, second = ([(call, call.passes()[at]) for call in example.trained] for at in (0, 1))
            wrapped = DistributedDataParallel(_Step(module))
            # The two views are calls of one step; else each pass is a step. What a step left out, the next one complains about.
            is_viewed = any(call.is_viewed for call in example.trained)
            for calls in [[*first, *second]] * 2 if is_viewed else [first, second, first]:
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
