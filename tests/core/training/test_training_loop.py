"""The loop on a tiny model and a tiny pipeline that stand in for the real ones."""

import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from medvlp_core.data.order import DataOrder, Share, seed_of
from medvlp_core.errors import DataError, MedvlpError, SpecError
from medvlp_core.nn.batch import Batch, StepOutput, TokenBatch
from medvlp_core.runtime.device import autocast, choose_device, to_device, usable_devices
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.events import StepDone
from medvlp_core.training.loop import (
    StepMetrics,
    apply_update,
    clip_gradients,
    data_order,
    forward_backward,
    reduce_metrics,
    train,
)
from medvlp_core.training.optim import set_learning_rate
from medvlp_core.training.state import TrainState
from medvlp_core.training.stop import StopRequest

CPU = torch.device("cpu")


class Alone(nn.Module):
    """A model that nothing follows, and that keeps nothing of a step."""

    def update_followers(self) -> None: ...


class Line(Alone):
    """Fits y = 3 x; in its passes ``bad_calls``, from 1, its second loss is NaN."""

    def __init__(self, bad_calls: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.calls = 0
        self.bad_calls = bad_calls

    def forward(self, batch: Batch) -> StepOutput:
        self.calls += 1
        x = batch["image"].flatten(1).to(self.linear.weight.dtype)
        noise = torch.randn(()) * 0  # draws from the global state, as maskings do
        fit = (self.linear(x) - 3 * x).square().mean() + noise
        other = self.linear.weight.square().mean()
        if self.calls in self.bad_calls:
            other = other * float("nan")
        return StepOutput(loss=fit + 0.01 * other, losses={"a.fit": fit, "b.size": other}, ports={})


class Pipeline:
    """``count`` pairs."""

    def __init__(self, count: int) -> None:
        self.count = count

    def records(self, split: str) -> list[Any]:
        return [SimpleNamespace(id=f"study-{index}") for index in range(self.count)]

    def training_batches(self, order: DataOrder, steps: range, *, share: Share, **_: Any) -> Iterator[Batch]:
        for step in steps:
            for part in share.of(order.pairs(step)):
                index = torch.tensor([draw.row for draw in part])
                ids = torch.zeros(len(part), 2, dtype=torch.long)
                image = (index.float() / self.count).reshape(-1, 1, 1, 1)
                rows = {"token_ids": ids, "text_is_valid": ids == 0, "word_ids": ids, "record_index": index}
                yield {"image": image, **rows}


def run(
    model: nn.Module, spec: TrainSpec, count: int = 8, *, state: TrainState | None = None, notify: Any = None
) -> tuple[list[StepDone], list[int]]:
    """The events of a run, and the steps after which it was saved."""
    events: list[Any] = []
    saved: list[int] = []
    state = state or TrainState.fresh(model, spec, CPU)
    train(
        state,
        Pipeline(count),  # type: ignore[arg-type]
        spec,
        forward=model,
        device=CPU,
        notify=lambda event: (events.append(event), notify and notify(event)),
        save=lambda _: saved.append(state.step),
        stop=StopRequest(),
    )
    return events, saved


def test_it_learns_and_reports_every_step() -> None:
    torch.manual_seed(0)
    spec = TrainSpec(steps=200, batch_size=4, learning_rate=0.1, warmup_fraction=0.1, weight_decay=0.0)
    events, saved = run(Line(), spec)
    assert [event.step for event in events] == list(range(1, 201))
    assert [event.epoch for event in events[:5]] == [1, 1, 2, 2, 3]
    assert events[-1].losses["a.fit"] < 0.05 * events[1].losses["a.fit"]
    assert events[7].total == pytest.approx(events[7].losses["a.fit"] + 0.01 * events[7].losses["b.size"], rel=1e-5)
    assert max(event.learning_rate for event in events) == pytest.approx(0.1)
    assert saved == [200]


def test_checkpoints_come_at_the_asked_steps_and_at_the_end() -> None:
    _, saved = run(Line(), TrainSpec(steps=7, batch_size=4, checkpoint_every_steps=3))
    assert saved == [3, 6, 7]


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 2), (2.5, 5), (0.1, 1)])
def test_epochs_become_steps(epochs: float, steps: int) -> None:
    events, _ = run(Line(), TrainSpec(epochs=epochs, batch_size=4))
    assert len(events) == steps


def test_the_parts_of_a_step_by_hand_give_the_weights_of_the_loop() -> None:
    spec = TrainSpec(steps=3, batch_size=4, gradient_accumulation_steps=2, max_grad_norm=0.5, ema_decay=0.9)
    torch.manual_seed(0)
    model = Line()
    by_hand = copy.deepcopy(model)
    events, _ = run(model, spec)
    state = TrainState.fresh(by_hand, spec, CPU)
    batches = Pipeline(8).training_batches(data(spec, 8), range(3), share=Share(micro_batches=2))
    for step in range(3):
        torch.manual_seed(seed_of("masks", spec.seed, step, 0))
        set_learning_rate(state.optimizer, step, 3, spec)
        local = forward_backward(state, by_hand, batches, spec, pairs=4, progress=step / 3, device=CPU)
        assert len(local.rows) == local.pairs == 4
        norm = clip_gradients(state, spec.max_grad_norm)
        metrics = reduce_metrics(local, norm, {"a": torch.tensor(2.0)}, is_stopping=step == 2)
        assert apply_update(state, metrics)
        assert (metrics.total, metrics.losses, metrics.grad_norm) == (
            events[step].total,
            events[step].losses,
            events[step].grad_norm,
        )
        assert (metrics.statistics, metrics.is_stopping) == ({"a": 2.0}, step == 2)
    assert torch.equal(by_hand.linear.weight, model.linear.weight)


def test_an_update_that_is_not_finite_is_not_applied() -> None:
    state = TrainState.fresh(Line(), TrainSpec(steps=1, batch_size=4), CPU)
    metrics = StepMetrics(total=1.0, losses={}, statistics={}, grad_norm=math.inf, is_stopping=False)
    before = copy.deepcopy(state.model.state_dict())
    assert not apply_update(state, metrics)
    assert (state.step, state.bad_steps) == (1, 1)
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(5)
        model = Line()
        run(model, TrainSpec(steps=9, batch_size=4, seed=3))
        weights.append(model.linear.weight.item())
        torch.rand(7)
    assert weights[0] == weights[1]


def test_clipping_bounds_the_gradient_that_is_used() -> None:
    torch.manual_seed(0)
    model = Line()
    seen: list[float] = []

    def hook(optimizer: Any, *_: Any) -> None:
        norms = [parameter.grad.norm() for group in optimizer.param_groups for parameter in group["params"]]
        seen.append(float(torch.stack(norms).norm()))

    handle = register_optimizer_step_pre_hook(hook)
    try:
        events, _ = run(model, TrainSpec(steps=3, batch_size=4, max_grad_norm=0.001))
    finally:
        handle.remove()
    assert all(norm <= 0.00101 for norm in seen)
    assert events[0].grad_norm > 0.01, "the norm before clipping is reported"


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Line(bad_calls=(3, 5))
    spec = TrainSpec(steps=6, batch_size=4, ema_decay=0.5)
    state = TrainState.fresh(model, spec, CPU)
    assert state.ema is not None
    before: list[list[Tensor]] = []

    def watch(_: object) -> None:
        adam = [value for one in state.optimizer.state.values() for value in one.values()]
        everything = [*model.state_dict().values(), *state.ema.weights.values(), *adam]  # type: ignore[union-attr]
        before.append([value.clone() for value in everything])

    events, _ = run(model, spec, state=state, notify=watch)
    assert [type(event).__name__[4:] for event in events] == ["Done", "Done", "Skipped", "Done", "Skipped", "Done"]
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert [getattr(event, "bad_steps", None) for event in events] == [0, 0, None, 1, None, 2]
    for bad in (2, 4):
        assert all(torch.equal(old, new) for old, new in zip(before[bad - 1], before[bad], strict=True))
        assert set(events[bad].records) == {f"study-{draw.row}" for draw in data(spec, 8).pairs(bad)}
        assert math.isnan(events[bad].losses["b.size"])
    assert not all(torch.equal(old, new) for old, new in zip(before[2], before[3], strict=True))


def test_too_many_steps_that_are_not_finite_are_an_error() -> None:
    torch.manual_seed(0)
    spec = TrainSpec(steps=9, batch_size=4, max_bad_steps=1)
    with pytest.raises(MedvlpError) as caught:
        run(Line(bad_calls=(2, 3, 4)), spec)
    records = ", ".join(f"study-{draw.row}" for draw in data(spec, 8).pairs(2))
    text = str(caught.value)
    assert text.startswith("[MV601] training stopped at step 3: b.size not finite, and 1 step before it\n")
    assert f"    records: {records}\n" in text
    assert "hint:" in text


class Normed(Alone):
    """Batch norm; of its ``bad`` pass everything is NaN."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.norm, self.calls, self.bad = nn.BatchNorm1d(1), 0, bad

    def forward(self, batch: Batch) -> StepOutput:
        self.calls += 1
        loss = self.norm(batch["image"].flatten(1) * (math.nan if self.calls == self.bad else 1.0)).square().mean()
        return StepOutput(loss=loss, losses={"a.fit": loss}, ports={})


def test_batch_norms_forget_a_bad_batch() -> None:
    model = Normed(bad=2)
    run(model, TrainSpec(steps=3, batch_size=4))
    assert model.norm.num_batches_tracked == 2
    assert torch.isfinite(model.norm.running_mean).all()  # type: ignore[arg-type]


def data(spec: TrainSpec, count: int) -> DataOrder:
    return data_order(spec, Pipeline(count))  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient_accumulation_steps", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_micro_batches_give_the_gradient_of_the_whole_batch(gradient_accumulation_steps: int, drop_last: bool) -> None:
    """11 pairs in batches of 4 and 3, in 2, 3 or 4 unequal micro-batches."""
    seen = []
    for micro_batches in (1, gradient_accumulation_steps):
        torch.manual_seed(0)
        model = Line().double()
        spec = TrainSpec(epochs=2, batch_size=4, gradient_accumulation_steps=micro_batches, drop_last=drop_last, learning_rate=0.1)
        events, _ = run(model, spec, 11)
        seen.append((events, model.linear.weight.item()))
    (whole, weight), (parts, same) = seen
    expected = [4, 4, 3] if not drop_last and gradient_accumulation_steps < 4 else [4, 4]
    assert [event.pairs for event in parts] == expected * 2
    if len(whole) == len(parts):
        assert same == pytest.approx(weight, rel=1e-7)
        assert [event.total for event in parts] == pytest.approx([event.total for event in whole], rel=1e-6)


def test_it_resumes_to_the_same_bits() -> None:
    spec = TrainSpec(steps=9, batch_size=4, ema_decay=0.9, seed=3)
    torch.manual_seed(5)
    whole = Line()
    begun = copy.deepcopy(whole)
    state = TrainState.fresh(whole, spec, CPU)
    events, _ = run(whole, spec, state=state)
    first = TrainState.fresh(begun, spec, CPU)

    class Enough(Exception):
        """Ends a run."""

    def stop(event: Any) -> None:
        if event.step == 5:
            raise Enough

    with pytest.raises(Enough):
        run(begun, spec, state=first, notify=stop)
    torch.rand(3)  # whatever happened in between
    again, _ = run(begun, spec, state=first)
    assert [attrs.evolve(one, seconds=0, data_seconds=0) for one in again] == [
        attrs.evolve(one, seconds=0, data_seconds=0) for one in events[5:]
    ]
    assert torch.equal(whole.linear.weight, begun.linear.weight)
    assert state.ema is not None
    assert first.ema is not None
    assert torch.equal(state.ema.weights["linear.weight"], first.ema.weights["linear.weight"])


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    [(field, text, _)] = TrainSpec(steps=1, batch_size=3, gradient_accumulation_steps=4).problems()
    assert (field, text) == ("gradient_accumulation_steps", "4 micro-batches cannot share batch_size=3 pairs")
    monkeypatch.setattr("medvlp_core.training.loop.world_size", lambda: 3)
    spec = TrainSpec(steps=1, batch_size=5, gradient_accumulation_steps=2)
    with pytest.raises(SpecError, match=r"MV104.*=5 pairs cannot be shared by 3 processes with 2 micro-batches each\n.*6 or more"):
        data(spec, 8)


def test_a_split_smaller_than_a_batch_is_said() -> None:
    with pytest.raises(DataError, match="MV503"):
        run(Line(), TrainSpec(steps=1, batch_size=16))


@pytest.mark.parametrize("epochs", [1e300, 6e6])
def test_a_run_without_end_is_refused(epochs: float) -> None:
    with pytest.raises(SpecError, match=r"MV104.*train: epochs=.*longer than a run can be\n.*at most 9999999"):
        run(Line(), TrainSpec(batch_size=4, epochs=epochs))


@pytest.mark.parametrize("steps", [10**7, 10**400])
def test_too_many_steps_are_refused_with_the_recipe(steps: int) -> None:
    with pytest.raises(ValueError, match="must be at most 9999999"):
        TrainSpec(steps=steps)


def test_bf16_on_the_cpu_trains() -> None:
    torch.manual_seed(0)
    events, _ = run(Line(), TrainSpec(steps=200, batch_size=4, learning_rate=0.1, precision="bf16"))
    assert events[-1].losses["a.fit"] < 0.1 * events[1].losses["a.fit"]


def test_autocast_ends_with_the_forward_pass() -> None:
    """In backward it would compute in half precision what the forward pass did not."""
    model, seen = Line(), []

    def forward(batch: Batch) -> StepOutput:
        output = Line.forward(model, batch)
        seen.append(torch.is_autocast_enabled("cpu"))
        output.loss.register_hook(lambda gradient: seen.append(torch.is_autocast_enabled("cpu")))
        return output

    model.forward = forward  # type: ignore[method-assign]
    run(model, TrainSpec(steps=1, batch_size=4, precision="bf16"))
    assert seen == [True, False]


class Steep(Line):
    """Its gradient is infinite in its passes ``bad_calls``, and its loss is not."""

    def forward(self, batch: Batch) -> StepOutput:
        output = super().forward(batch)
        if self.calls in self.steep_calls:
            return output._replace(loss=output.loss + (self.linear.bias * 0).abs().sqrt().sum())
        return output

    def __init__(self, steep_calls: tuple[int, ...]) -> None:
        super().__init__()
        self.steep_calls = steep_calls


@pytest.mark.parametrize(("scale", "bad"), [(2.0**16, 0), (0.5, 1)])
def test_a_loss_scale_takes_gradients_that_are_too_large_upon_itself(scale: float, bad: int) -> None:
    """As with fp16 on a GPU: the update is skipped and the scale halved. Below a scale of 1 the step is a bad one."""
    model, spec = Steep((2,)), TrainSpec(steps=3, batch_size=4)
    state = TrainState.fresh(model, spec, CPU)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    weights: list[float] = []
    events, _ = run(model, spec, state=state, notify=lambda event: weights.append(model.linear.weight.item()))
    assert state.bad_steps == bad
    assert state.scaler.get_scale() == scale / 2
    assert weights[0] == weights[1] != weights[2]
    assert [type(event).__name__ for event in events] == ["StepDone", "StepSkipped" if bad else "StepDone", "StepDone"]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    plain = TrainState.fresh(Line(), spec, CPU)
    plain.scaler = torch.amp.GradScaler("cpu", enabled=True)
    plain.load_scalars(state.scalars())
    assert (plain.scaler.get_scale(), plain.bad_steps) == (scale / 2, bad), "a checkpoint keeps the scale"


def test_devices_and_precisions_that_are_not_there() -> None:
    with pytest.raises(SpecError, match="devices here: cpu"):
        choose_device("cuda:99")
    with pytest.raises(SpecError, match=r"there is no device 'toaster'\n    hint: devices here: cpu"):
        choose_device("toaster")
    for name in ("xla", "cuda:99", "meta", "hpu"):
        with pytest.raises(SpecError) as caught:
            choose_device(name)
        [problem] = caught.value.problems
        assert problem.code == "MV104"
        assert problem.text.startswith(f"device {name!r} cannot be used: ")
        assert len(problem.text) < 140
        assert problem.hint == f"devices here: {', '.join(usable_devices())}"
    assert all(choose_device(name).type == name.partition(":")[0] for name in usable_devices())
    with pytest.raises(SpecError, match="fp16 needs a GPU"):
        autocast(CPU, "fp16")
    assert choose_device("cpu") == CPU


def test_to_device_keeps_the_kind_of_the_batch() -> None:
    order = data(TrainSpec(steps=1, batch_size=2), 4)
    batch = next(Pipeline(4).training_batches(order, range(1), share=Share()))
    moved = to_device(batch, torch.device("meta"))
    assert list(moved) == list(batch) == ["image", "token_ids", "text_is_valid", "word_ids", "record_index"]
    assert all(tensor.is_meta for tensor in moved.values())
    assert not any(tensor.is_meta for tensor in batch.values())
    tokens = to_device(TokenBatch(batch["token_ids"], batch["text_is_valid"], batch["word_ids"]), torch.device("meta"))
    assert isinstance(tokens, TokenBatch)
    assert tokens.word_ids.is_meta


def test_each_launched_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in (None, "cuda"):
        with pytest.raises(SpecError, match="device 'cuda:1' cannot be used"):  # there is none here: it was tried, and no other
            choose_device(name)
    with pytest.raises(SpecError, match="'cuda:0' cannot serve several training processes"):
        choose_device("cuda:0")
