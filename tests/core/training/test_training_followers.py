"""Parts that follow the weights of another one (a teacher), and parts that share them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from state_bundle import RECIPE, Images, Run, plan_of
from torch import Tensor

from medvlp_core.describe import forward_source
from medvlp_core.model.build import build_model
from medvlp_core.training.events import StepSkipped
from medvlp_core.training.init_from import load_initial_weights

#: A teacher with batch statistics and dropout, from which the student learns.
TAUGHT = (
    RECIPE.replace("{use: st.encoder}", "{use: st.encoder, has_batch_norm: true, dropout: 0.1}")
    .replace("  decoders:\n", "  parts:\n    teacher: {follow: model.image_encoder, decay: 0.75}\n  decoders:\n")
    .replace(
        "{use: st.fit}",
        "{use: st.fit, needs: {image_tokens: image_encoder.image_tokens}}\n"
        "    distil:\n      use: st.distil\n"
        "      needs: {image_tokens: image_encoder.image_tokens, teacher_tokens: teacher.image_tokens}",
    )
)
SHARED = RECIPE.replace(
    "  decoders:\n", "  parts:\n    again: {share: model.image_encoder, needs: {image: image}}\n  decoders:\n"
).replace(
    "{use: st.fit}",
    "{use: st.fit, needs: {image_tokens: image_encoder.image_tokens}}\n"
    "    other: {use: st.fit, needs: {image_tokens: again.image_tokens}}",
)


def averaged(run: Run) -> dict[str, Tensor]:
    assert run.state.ema is not None
    return {name: value.clone() for name, value in run.state.ema.weights.items()}


def both(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights and buffers of the teacher and of the student."""
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    return tuple(
        {name.removeprefix(one): value for name, value in state.items() if name.startswith(one)}
        for one in ("parts.teacher.", "image_encoder.")
    )  # type: ignore[return-value]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_begins_as_its_source_and_follows_it() -> None:
    run = Run.of(TAUGHT)
    expected, source = both(run)
    assert equal(expected, source)

    def follow(run: Run) -> None:
        nonlocal expected
        teacher, source = both(run)
        for name, value in source.items():
            is_buffer = "running" in name or "batches" in name
            expected[name] = value if is_buffer else expected[name].lerp(value, 0.25)
            torch.testing.assert_close(teacher[name], expected[name], rtol=1e-12, atol=1e-12)

    run.train(seen=follow)
    teacher, source = both(run)
    assert not equal(teacher, source)
    assert int(source["batch_norm.num_batches_tracked"]) == 7, "its own passes count none"


def test_it_is_in_evaluation_mode_and_gets_no_gradient_and_no_optimiser() -> None:
    run = Run.of(TAUGHT.replace("train: {", "train: {ema_decay: 0.9, "))
    for mode in (True, False):
        run.model.train(mode)
        assert not any(module.training for module in run.model.parts["teacher"].modules())
        assert run.model.image_encoder.training is mode  # type: ignore[union-attr]
    given: list[Tensor] = []
    run.model.parts["teacher"].register_forward_hook(lambda module, given_, output: given.append(output.image_tokens))
    run.train(stop_after=2)
    assert len(given) == 2
    assert not any(one.requires_grad for one in given), "no graph is kept"
    assert not any("teacher" in name for name in run.state.optimizer_tensors())
    assert run.state.ema is not None
    assert not any("teacher" in name for name in run.state.ema.weights), "an average of an average is of no use"


def test_it_follows_steps_and_not_micro_batches() -> None:
    text = TAUGHT.replace("has_batch_norm: true, dropout: 0.1", "layers: 2")
    whole = both(Run.of(text).train())[0]
    split = both(Run.of(text.replace("steps: 7", "steps: 7, gradient_accumulation_steps: 3")).train())[0]
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-12)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    text = TAUGHT.replace("train: {", "train: {ema_decay: 0.9, ")
    whole = Run.of(text).train()
    folder = Run.of(text).train(stop_after=3).save(tmp_path / "checkpoints" / "step-3")
    resumed = Run.of(text, seed=99, resumed=folder).train()
    assert equal(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


def test_a_skipped_step_does_not_move_it() -> None:
    class Bad(Images):
        bad_rows = (9,)

    found: list[tuple[Any, dict[str, Tensor]]] = []
    run = Run.of(TAUGHT)
    run.images = Bad()
    before = both(run)[0]
    run.train(seen=lambda run: found.append((run.events[-1], both(run)[0])))
    skipped = [isinstance(event, StepSkipped) for event, _ in found]
    assert any(skipped)
    states = [before, *(state for _, state in found)]
    assert [equal(old, new) for old, new in itertools.pairwise(states)] == skipped


class Scaler:
    """A loss scale under which the gradients of the second step overflow, so that its update is skipped and not counted as bad."""

    def __init__(self) -> None:
        self.steps = 0

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return 65536.0

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.steps += 1
        if self.steps == 2:
            for group in optimizer.param_groups:
                group["params"][0].grad.fill_(float("inf"))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.steps != 2:
            optimizer.step()

    def update(self) -> None:
        pass


def test_an_update_that_the_loss_scale_skips_moves_it_neither_and_hands_on_nothing() -> None:
    queue = "    far:\n      use: st.queue\n      needs: {pooled: pool.pooled, image_tokens: image_encoder.image_tokens}\n"
    pool = "    pool: {use: st.pool, needs: {image_tokens: teacher.image_tokens}}\n"
    text = TAUGHT.replace("  decoders:\n", f"{pool}  decoders:\n{queue}").replace("train: {", "train: {ema_decay: 0.9, ")
    run = Run.of(text)
    run.state.scaler = Scaler()  # type: ignore[assignment]
    found = [both(run)[0]]
    averages = [averaged(run)]
    run.train(seen=lambda run: (found.append(both(run)[0]), averages.append(averaged(run))))
    assert not any(isinstance(event, StepSkipped) for event in run.events)
    assert [equal(old, new) for old, new in itertools.pairwise(found)] == [number == 1 for number in range(7)]
    assert [equal(old, new) for old, new in itertools.pairwise(averages)] == [number == 1 for number in range(7)]
    assert int(run.model.decoders["far"].steps) == 6  # type: ignore[arg-type]


def test_init_from_fills_it_from_its_source_or_with_weights_of_its_own(tmp_path: Path) -> None:
    def begun(source: Run) -> Run:
        folder = source.save(tmp_path / str(len(list(tmp_path.iterdir()))))
        run = Run.of(TAUGHT + f"init_from: {{path: {folder}}}\n")
        load_initial_weights(run.model, None, Console(quiet=True))
        return run

    plain = Run.of(RECIPE.replace("{use: st.encoder}", "{use: st.encoder, has_batch_norm: true}"), seed=5).train()
    teacher, source = both(begun(plain))
    assert equal(teacher, source)
    assert equal(source, both(plain)[1])
    taught = Run.of(TAUGHT, seed=6).train()
    teacher, source = both(begun(taught))
    assert not equal(teacher, source)
    assert equal(teacher, both(taught)[0])
    assert equal(source, both(taught)[1])


def test_what_follows_a_head_runs_only_where_somebody_needs_it() -> None:
    plan = plan_of(RECIPE + "").resolved_yaml()
    text = plan.replace("  decoders:\n", "  decoders:\n    slow: {follow: model.decoders.fit, decay: 0.5}\n")
    followed = plan_of(text)
    assert [call.path for call in followed.calls] == ["model.image_encoder", "model.decoders.fit"]
    assert set(followed.losses) == {"fit.fit", "fit.size"}


def test_what_only_a_follower_reads_gets_no_gradient() -> None:
    parts = (
        "  parts:\n    other: {use: st.encoder}\n    pool: {use: st.pool, needs: {image_tokens: image_encoder.image_tokens}}\n"
        "    slow: {follow: model.parts.pool, decay: 0.5, needs: {image_tokens: other.image_tokens}}\n  decoders:\n"
        "    far: {use: st.queue, needs: {pooled: pool.pooled, extra: slow.pooled}}\n"
    )
    run = Run.of(RECIPE.replace("  decoders:\n", parts))
    assert run.plan.unused == {"model.parts.other", "model.parts.slow"}
    run.model(run.images.batch([0, 1])).loss.backward()
    waited_for = [name for name, one in run.model.named_parameters() if one.requires_grad and one.grad is None]
    assert waited_for == [], "another process would wait for their gradients"


@pytest.mark.parametrize("text", [TAUGHT, SHARED])
def test_the_written_out_pass_computes_the_same(text: str) -> None:
    plan = plan_of(text)
    model = build_model(plan, seed=0).double()
    space: dict[str, Any] = {}
    exec(forward_source(plan), space)
    batch = {**Images().batch([0, 1, 2]), "progress": torch.tensor(0.5)}
    gradients = []
    for forward in (lambda: space["forward"](model, batch)[0], lambda: model(batch).loss):
        model.zero_grad()
        torch.manual_seed(0)
        loss = forward()
        loss.backward()
        gradients.append([loss.detach(), *(one.grad.clone() for one in model.parameters() if one.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert ("with torch.no_grad():" in forward_source(plan)) == (text is TAUGHT)


def test_shared_weights_get_the_gradients_of_both_uses() -> None:
    run = Run.of(SHARED)
    assert not any("again" in name for name in run.model.state_dict())
    batch = run.images.batch([0, 1, 2])
    run.model(batch).loss.backward()
    found = {name: one.grad.clone() for name, one in run.model.named_parameters() if one.grad is not None}
    sums: dict[str, Tensor] = {}
    for head in ("fit", "other"):
        run.model.zero_grad()
        losses = run.model(batch).losses
        (losses[f"{head}.fit"] + losses[f"{head}.size"]).backward()
        for name, one in run.model.named_parameters():
            if one.grad is not None:
                sums[name] = sums.get(name, 0) + one.grad.clone()
    torch.testing.assert_close(found, sums, rtol=1e-9, atol=1e-12)
