"""Conformance of alignments: vectors of length one in a shared space, and losses that tell pairs from other pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medvlp_core.spec.contract import CLEAN
from medvlp_core.spec.roles import Role
from medvlp_core.testing.behaviour_checks import VECTORS, goal
from medvlp_core.testing.checks import check, expect
from medvlp_core.testing.subject import Example, ExampleCall, Subject
from medvlp_core.testing.synthetic_batch import all_close

STEPS, LENGTHS = 60, (9, 7, 5, 8)
#: By how much the cosine of pairs must be above that of other pairs after them.
MARGIN = 0.05


@check("alignment", roles=(Role.ALIGNMENT,))
def gives_vectors_of_length_one(subject: Subject) -> None:
    """``image_embedding`` and ``text_embedding`` are L2-normalised vectors of one width, different for different inputs."""
    widths: dict[str, set[int]] = {}
    for call, module, one in subject.passes():
        with torch.no_grad():
            found = call.run(module, one.arguments).ports
        for port, tensor in ((port, found[port]) for port in VECTORS if port in found):
            widths.setdefault(str(call.example), set()).add(tensor.shape[-1])
            lengths = tensor.norm(dim=-1)
            is_unit = torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4)
            span = f"{lengths.min():.3g} to {lengths.max():.3g}"
            expect(is_unit, f"{call}: {port} has vectors of length {span}, expected 1: F.normalize(..., dim=-1)")
            expect(not torch.equal(tensor[0], tensor[1]), f"{call}: {port} is the same for two different inputs")
    for label, found_widths in widths.items():
        shown = " and ".join(map(str, sorted(found_widths)))
        expect(len(found_widths) == 1, f"{label}: vectors of images and texts are {shown} wide, expected one shared space")


@check("alignment", roles=(Role.ALIGNMENT,))
def does_not_depend_on_the_order_of_pairs(subject: Subject) -> None:
    """The pairs of a batch in another order give the same losses."""
    for call, module, one in subject.passes():
        order = torch.arange(one.synthetic_batch.batch - 1, -1, -1)
        turned = {name: value[order] for name, value in one.arguments.items()}
        with torch.no_grad():
            first, second = call.run(module, one.arguments).losses, call.run(module, turned).losses
        for name, value in first.items():
            is_equal = all_close(value, second[name])
            expect(is_equal, f"{call}: the loss {name} is {value:.4g}, and {second[name]:.4g} with the pairs in another order")


@check("alignment", roles=(Role.ALIGNMENT,))
def tells_pairs_from_others(subject: Subject) -> None:
    """Trained on a few pairs, vectors of a pair are more alike than those of other pairs, and exchanged texts raise the loss."""
    for example in subject.examples:
        module = example.build()
        (call,) = example.trained
        one = call.make_pass(CLEAN, LENGTHS, seed=5)
        # Features are trained too, as the encoders would be: then it may have no parameters of its own.
        given = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in one.arguments.items()}
        trained = [value for value in (*module.parameters(), *given.values()) if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(STEPS):
            loss = goal(call.run(module, given).tensors())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            pairs, others = (goal(call.run(module, some).tensors()) for some in (given, _exchanged(call, given)))
            alike = _similarities(example, module, {call.port(name): value for name, value in given.items()})
        text = f"{example}: after {STEPS} steps on four pairs the loss is {pairs:.4g}, and {others:.4g} with texts exchanged"
        expect(bool(others > pairs + 1e-3), f"{text}; expected a clearly higher one")
        if alike is not None:
            same, other = alike.diagonal().mean(), alike[~torch.eye(len(alike), dtype=torch.bool)].mean()
            text = f"{example}: after {STEPS} steps on four pairs their vectors have the cosine {same:.2f}, other pairs {other:.2f}"
            expect(bool(same > other + MARGIN), f"{text}; expected a clearly higher one for pairs: is a sign wrong?")


def _similarities(example: Example, module: nn.Module, own: dict[str, Tensor]) -> Tensor | None:
    """Cosines of every image with every text, of the features that it was trained on; None if it was not trained on these."""
    found: dict[str, Tensor] = {}
    for call in example.calls:
        given = call.make_pass(call.views[0], LENGTHS, seed=5).arguments
        is_own = all(call.port(name) in own for name, value in given.items() if value.is_floating_point())
        if call not in example.trained and is_own:
            found |= call.run(module, {name: own.get(call.port(name), value) for name, value in given.items()}).ports
    return found["image_embedding"] @ found["text_embedding"].T if set(VECTORS) <= found.keys() else None


def _exchanged(call: ExampleCall, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every image with the text of the next pair."""
    return {name: value.roll(1, dims=0) if call.is_text(call.port(name)) else value for name, value in given.items()}
