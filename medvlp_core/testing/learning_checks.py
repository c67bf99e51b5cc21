"""Conformance: whether a module can learn: gradients reach its parameters and its inputs, and training lowers its loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from medvlp_core.testing.behaviour_checks import DETERMINISTIC, goal, train_steps, trained_passes
from medvlp_core.testing.checks import NotApplicable, check, expect
from medvlp_core.testing.subject import Example, ExampleCall, Subject

#: How far training on two batches must lower the loss, as a share, in so many steps; whether it has is asked every ``STRIDE``.
STEPS, STRIDE, FALL = 40, 8, 0.02

#: Float inputs that are no features of an encoder but what a decoder reconstructs.
TARGETS = ("image", "image_target", "progress")


@check("learning", roles=DETERMINISTIC)
def teaches_every_parameter(subject: Subject) -> None:
    """Every parameter that is not frozen gets a finite gradient that is not zero everywhere."""
    trained = 0
    for example in subject.examples:
        module = example.build()
        # After some steps, for a gate that starts at zero holds back the gradient of what lies behind it.
        train_steps(example, module, steps=2)
        module.zero_grad()
        # Twice, so that a mask that dropout happened to draw does not look like a dead parameter.
        for call, one in (*trained_passes(example), *trained_passes(example)):
            loss = goal(call.run(module, one.arguments).tensors())
            if loss.requires_grad:
                loss.backward()
        parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        trained += len(parameters)
        without = [name for name, value in parameters.items() if value.grad is None]
        advice = "use it, or freeze it with requires_grad_(False)"
        expect(not without, f"{example}: no gradient reaches {', '.join(without[:5])}; {advice}")
        infinite = [name for name, value in parameters.items() if not torch.isfinite(value.grad).all()]
        expect(not infinite, f"{example}: the gradient of {', '.join(infinite[:5])} is not finite")
        dead = [name for name, value in parameters.items() if not value.grad.any()]
        expect(not dead, f"{example}: the gradient of {', '.join(dead[:5])} is zero everywhere; {advice}")
    if not trained:
        raise NotApplicable("it has no parameters to train")


@check("learning", roles=DETERMINISTIC)
def passes_gradients_on(subject: Subject) -> None:
    """A gradient reaches every feature that a call takes, so that the encoders learn."""
    trained = [call for call in subject.each_call() if not call.is_writing]
    calls = [call for call in trained if any(_is_feature(call, name, value) for name, value in _arguments(call))]
    if not calls:
        raise NotApplicable("it takes no features")
    for call in calls:
        module = call.example.build()
        train_steps(call.example, module, steps=2)  # for a gate that starts at zero
        cut: dict[str, int] = {}
        more = ((call.longest, 5, 4, 7), call.views[0])
        synthetic_batches = [*call.passes(), *(call.make_pass(more[1], more[0], seed=seed) for seed in range(2, 5))]
        for one in synthetic_batches:
            arguments = {
                name: value.clone().requires_grad_() if _is_feature(call, name, value) else value
                for name, value in one.arguments.items()
            }
            features = {name: value for name, value in arguments.items() if value.requires_grad}
            loss = goal(call.run(module, arguments).tensors())
            if loss.requires_grad:
                loss.backward()
            for name, value in features.items():
                cut[name] = cut.get(name, 0) + (value.grad is None or not bool(value.grad.any()))
            wild = [name for name, value in features.items() if value.grad is not None and not torch.isfinite(value.grad).all()]
            expect(not wild, f"{call}: the gradient of {', '.join(wild)} is not finite")
        # In a single batch a margin may be kept by chance, and then nothing is left to learn.
        never = [name for name, times in cut.items() if times == len(synthetic_batches)]
        expect(not never, f"{call}: no gradient reaches {', '.join(never)}; is there a detach() or a no_grad()?")


def _arguments(call: ExampleCall) -> Iterator[tuple[str, Tensor]]:
    return (pair for one in call.passes() for pair in one.arguments.items())


def _is_feature(call: ExampleCall, name: str, value: Tensor) -> bool:
    return value.is_floating_point() and call.port(name) not in TARGETS


@check("learning", roles=DETERMINISTIC)
def learns(subject: Subject) -> None:
    """Training on two fixed batches lowers the loss (for features: the distance to a fixed target)."""
    learners = [example for example in subject.examples if any(one.requires_grad for one in example.build().parameters())]
    if not learners:
        raise NotApplicable("it has no parameters to train")
    for example in learners:
        module = example.build()
        before = after = _loss(example, module)
        for _ in range(STEPS // STRIDE):
            train_steps(example, module, steps=STRIDE)
            after = _loss(example, module)
            if before - after > FALL * abs(before):
                break
        text = f"{example}: {STEPS} steps of AdamW took the loss on two batches from {before:.4g} to {after:.4g}"
        expect(before - after > FALL * abs(before), f"{text}; expected it to fall by {FALL:.0%} at least")


def _loss(example: Example, module: nn.Module) -> float:
    """The goal on both passes, without dropout."""
    module.eval()
    with torch.no_grad():
        return sum(goal(call.run(module, one.arguments).tensors()).item() for call, one in trained_passes(example))
