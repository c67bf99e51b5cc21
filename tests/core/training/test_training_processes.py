"""Several processes train as one does: the same losses, gradients and weights, in float64 over gloo."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import in_two_processes
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from medvlp_core.data.order import DataOrder, Share
from medvlp_core.nn.batch import Batch, StepOutput
from medvlp_core.runtime.distributed import all_gather_object, process_group, world_size
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.loop import train
from medvlp_core.training.parallel import for_processes
from medvlp_core.training.state import TrainState, gather_to_main
from medvlp_core.training.stop import StopRequest

CPU = torch.device("cpu")
#: 23 pairs in batches of 8: the third step of each epoch has 7, which neither 2 processes nor 2 x 3 passes share evenly.
SPEC: dict[str, Any] = {
    "steps": 7,
    "batch_size": 8,
    "drop_last": False,
    "learning_rate": 0.01,
    "ema_decay": 0.9,
    "max_grad_norm": 0.1,
}
CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp, 3 passes": {"gradient_accumulation_steps": 3},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, 3 passes": {"parallel": "fsdp", "gradient_accumulation_steps": 3},
}


class Block(nn.Module):
    """A layer with parts, as encoders have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).tanh()


class Blocks(nn.Module):
    """A mean over pairs of something that is not linear. Pair 9 makes it NaN, if it should."""

    def update_followers(self) -> None:
        """Nothing follows it."""

    def buffers_after_step(self) -> tuple[str, ...]:
        """It keeps nothing of a step."""
        return ()

    def __init__(self, is_bad: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.slots = nn.Parameter(torch.randn(5))
        self.is_bad = is_bad

    def forward(self, batch: Batch) -> StepOutput:
        x = batch["image"].flatten(1) * self.slots
        for block in self.blocks:
            x = block(x)
        loss = (x.sum(dim=1) - 1).square().mean()
        if self.is_bad and 9 in batch["record_index"].tolist():
            loss = loss * float("nan")
        return StepOutput(loss=loss, losses={"a.fit": loss}, ports={})


class Pairs:
    """23 pairs of random numbers."""

    images = torch.randn(23, 5, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def records(self, split: str) -> list[Any]:
        return [SimpleNamespace(id=f"study-{index}") for index in range(len(self.images))]

    def training_batches(self, order: DataOrder, steps: range, *, share: Share, **_: Any) -> Iterator[Batch]:
        for step in steps:
            for part in share.of(order.pairs(step)):
                index = torch.tensor([draw.row for draw in part])
                ids = torch.zeros(len(part), 1, dtype=torch.long)
                rows = {"token_ids": ids, "text_is_valid": ids == 0, "word_ids": ids, "record_index": index}
                yield {"image": self.images[index], **rows}


def run(change: dict[str, Any], *, is_bad: bool = False) -> dict[str, Any]:
    """Train; what the main process has in the end."""
    torch.manual_seed(3)
    model = Blocks(is_bad).double()
    spec = TrainSpec(**SPEC, **change)
    forward = for_processes(model, spec, CPU, world_size())
    state = TrainState.fresh(model, spec, CPU)
    events: list[Any] = []
    gradients: list[dict[str, Tensor]] = []

    def keep(*_: Any) -> None:
        # Copies: DistributedDataParallel uses the same memory in every step.
        gradients.append(gather_to_main({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}))

    handle = register_optimizer_step_pre_hook(keep)
    train(
        state,
        Pairs(),  # type: ignore[arg-type]
        spec,
        forward=forward,
        device=CPU,
        notify=events.append,
        save=lambda _: None,
        stop=StopRequest(),
    )
    handle.remove()
    assert state.ema is not None
    bias = dict(model.named_parameters())["blocks.0.linear.bias"].detach()
    bias = bias.full_tensor() if isinstance(bias, DTensor) else bias
    return {
        "totals": [getattr(event, "total", None) for event in events],
        "records": [sorted(event.records) for event in events if hasattr(event, "records")],
        "gradients": gradients,
        "weights": gather_to_main(dict(model.named_parameters())),
        "ema": gather_to_main(state.ema.weights),
        "is_equal_everywhere": len(set(all_gather_object(bias.sum().item()))) == 1,
    }


def one_of_two(rank: int, folder: Path) -> None:
    """What each of two processes does."""
    with process_group(CPU):
        found = {name: run(change) for name, change in CASES.items()}
        found["bad"] = run({"gradient_accumulation_steps": 2}, is_bad=True)
    if rank == 0:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def sync_errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes found, by case."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(one_of_two, folder)
    found: dict[str, dict[str, Any]] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does_with_the_whole_batch(sync_errors: dict[str, dict[str, Any]], case: str) -> None:
    two, one = sync_errors[case], run({})
    assert len(one["totals"]) == 7
    assert two["totals"] == pytest.approx(one["totals"], rel=1e-6)  # they are summed in single precision
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
    for theirs, ours in zip(two["gradients"], one["gradients"], strict=True):
        close(theirs, ours)
    close(two["weights"], one["weights"])
    close(two["ema"], one["ema"])


def test_a_bad_step_in_one_process_is_skipped_in_all(sync_errors: dict[str, dict[str, Any]]) -> None:
    two, one = sync_errors["bad"], run({}, is_bad=True)
    assert two["is_equal_everywhere"]
    assert two["records"] == one["records"]
    assert len(two["records"]) >= 2, "once an epoch"
    assert all("study-9" in records for records in two["records"])
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-9, atol=1e-12)
