"""Conformance of alignments: vectors of length one in a shared space, and losses that tell pairs from other pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medvlp_core.spec.roles import Role
from medvlp_core.testing.behaviour_checks import goal
from medvlp_core.testing.checks import NotApplicable, check, expect
from medvlp_core.testing.subject import Example, Subject
from medvlp_core.testing.synthetic_batch import SyntheticBatch, all_close

STEPS = 60
#: By how much the cosine of pairs must be above that of other pairs after them.
MARGIN = 0.05


@check("alignment", roles=(Role.ALIGNMENT,))
def gives_vectors_of_length_one(subject: Subject) -> None:
    """``embed_image`` and ``embed_text`` give L2-normalised vectors of one width, different for different inputs."""
    for example, module, one in subject.calls():
        with torch.no_grad():
            found = example.embed(module, example.embedding_inputs(one.synthetic_batch))
        for port, tensor in found.items():
            lengths = tensor.norm(dim=-1)
            is_unit = torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4)
            span = f"{lengths.min():.3g} to {lengths.max():.3g}"
            expect(is_unit, f"{example}: {port} has vectors of length {span}, expected 1: F.normalize(..., dim=-1)")
            expect(not torch.equal(tensor[0], tensor[1]), f"{example}: {port} is the same for two different inputs")


@check("alignment", roles=(Role.ALIGNMENT,))
def does_not_depend_on_the_order_of_pairs(subject: Subject) -> None:
    """The pairs of a batch in another order give the same losses."""
    for example, module, one in subject.calls():
        order = torch.arange(one.synthetic_batch.batch - 1, -1, -1)
        turned = {name: value[order] for name, value in one.arguments.items()}
        with torch.no_grad():
            first, second = example.call(module, one.arguments).losses, example.call(module, turned).losses
        for name, value in first.items():
            is_equal = all_close(value, second[name])
            expect(is_equal, f"{example}: the loss {name} is {value:.4g}, and {second[name]:.4g} with the pairs in another order")


@check("alignment", roles=(Role.ALIGNMENT,))
def tells_pairs_from_others(subject: Subject) -> None:
    """Trained on a few pairs, vectors of a pair are more alike than those of other pairs, and exchanged texts raise the loss."""
    for example in subject.examples:
        module = example.build()
        one = example.make_pass("clean", (9, 7, 5, 8), seed=5)
        # Features are trained too, as the encoders would be: then it may have no parameters of its own.
        given = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in one.arguments.items()}
        trained = [value for value in (*module.parameters(), *given.values()) if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(STEPS):
            loss = goal(example.call(module, given).tensors())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        module.eval()
        with torch.no_grad():
            pairs, others = (goal(example.call(module, some).tensors()) for some in (given, _exchanged(example, given)))
            alike = _similarities(example, module, one.synthetic_batch, given)
        text = f"{example}: after {STEPS} steps on four pairs the loss is {pairs:.4g}, and {others:.4g} with texts exchanged"
        expect(bool(others > pairs + 1e-3), f"{text}; expected a clearly higher one")
        if alike is not None:
            same, other = alike.diagonal().mean(), alike[~torch.eye(len(alike), dtype=torch.bool)].mean()
            text = f"{example}: after {STEPS} steps on four pairs their vectors have the cosine {same:.2f}, other pairs {other:.2f}"
            expect(bool(same > other + MARGIN), f"{text}; expected a clearly higher one for pairs: is a sign wrong?")


def _similarities(example: Example, module: nn.Module, synthetic_batch: SyntheticBatch, given: dict[str, Tensor]) -> Tensor | None:
    """Cosines of every image with every text, of the tokens that it was trained on; None if it was not trained on tokens."""
    try:
        inputs = example.embedding_inputs(synthetic_batch)
    except NotApplicable:
        return None
    own = {example.contract.needs[name].port: value for name, value in given.items()}
    found = example.embed(module, {name: own.get(name, value) for name, value in inputs.items()})
    return found["image_embedding"] @ found["text_embedding"].T


def _exchanged(example: Example, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every image with the text of the next pair."""
    needs = example.contract.needs
    return {name: value.roll(1, dims=0) if example.is_text(needs[name].port or name) else value for name, value in given.items()}
