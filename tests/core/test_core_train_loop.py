"""The loop on a tiny model and a tiny pipeline that stand in for the real ones."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from medvlp_core.batch import ImageTextBatch, StepOutput
from medvlp_core.blocks import TrainSpec
from medvlp_core.device import autocast, choose_device, to_device, usable_devices
from medvlp_core.errors import DataError, MedvlpError, SpecError
from medvlp_core.train.events import StepDone
from medvlp_core.train.loop import train

CPU = torch.device("cpu")


class Line(nn.Module):
    """Fits y = 3 x; from ``bad_from`` on, its second loss is NaN."""

    def __init__(self, bad_from: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.calls = 0
        self.bad_from = bad_from

    def forward(self, batch: ImageTextBatch) -> StepOutput:
        self.calls += 1
        x = batch.image.flatten(1)
        noise = torch.randn(()) * 0  # draws from the global state, as maskings do
        fit = (self.linear(x) - 3 * x).square().mean() + noise
        other = self.linear.weight.square().mean()
        if self.bad_from is not None and self.calls >= self.bad_from:
            other = other * float("nan")
        return StepOutput(loss=fit + 0.01 * other, losses={"a.fit": fit, "b.size": other}, predictions={})


class Pipeline:
    """``count`` pairs."""

    def __init__(self, count: int) -> None:
        self.count = count

    def records(self, split: str) -> list[Any]:
        return [SimpleNamespace(id=f"study-{index}") for index in range(self.count)]

    def loader(self, split: str, *, batch_size: int, is_training: bool, seed: int, workers: int) -> list[ImageTextBatch]:
        assert split == "train"
        assert is_training
        found = []
        for start in range(0, self.count - batch_size + 1, batch_size):
            index = torch.arange(start, start + batch_size)
            ids = torch.zeros(batch_size, 2, dtype=torch.long)
            image = (index.float() / self.count).reshape(-1, 1, 1, 1)
            found.append(ImageTextBatch(image, None, ids, ids == 0, ids, index))
        return found


def run(model: nn.Module, spec: TrainSpec, count: int = 8) -> tuple[list[StepDone], list[int]]:
    events: list[Any] = []
    saved: list[int] = []
    train(model, Pipeline(count), spec, device=CPU, notify=events.append, save=saved.append)  # type: ignore[arg-type]
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
        events, _ = run(model, TrainSpec(steps=3, batch_size=4, clip_norm=0.001))
    finally:
        handle.remove()
    assert all(norm <= 0.00101 for norm in seen)
    assert events[0].grad_norm > 0.01, "the norm before clipping is reported"


def test_a_loss_that_is_not_finite_stops_before_it_changes_anything() -> None:
    torch.manual_seed(0)
    model = Line(bad_from=3)
    before: list[Tensor] = []

    class Watch(list):  # type: ignore[type-arg]
        def append(self, event: Any) -> None:
            before[:] = [parameter.detach().clone() for parameter in model.parameters()]

    with pytest.raises(MedvlpError) as caught:
        train(
            model,  # type: ignore[arg-type]
            Pipeline(8),  # type: ignore[arg-type]
            TrainSpec(steps=9, batch_size=4),
            device=CPU,
            notify=Watch().append,
            save=lambda step: None,
        )
    text = str(caught.value)
    assert "step 3" in text
    assert "b.size not finite" in text
    assert "study-0, study-1, study-2, study-3" in text
    assert "hint:" in text
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


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
    batch = Pipeline(4).loader("train", batch_size=2, is_training=True, seed=0, workers=0)[0]
    moved = to_device(batch, torch.device("meta"))
    assert isinstance(moved, ImageTextBatch)
    assert moved.image.is_meta
    assert moved.image_target is None
