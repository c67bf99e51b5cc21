"""With one process, or inside ``local_only``, nothing is exchanged."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from medvlp_core.runtime.distributed import _GatherRows, add_over_ranks, largest_over_ranks, local_only, sum_over_ranks


@pytest.fixture(params=["no group", "two processes, local_only"])
def alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """What to compute in: as the only process there is, or apart from another one that would answer nothing."""
    if request.param == "no group":
        return nullcontext()

    def exchange(*_: object, **__: object) -> NoReturn:
        raise AssertionError("something was exchanged")

    for name, found in {"is_initialized": True, "get_world_size": 2, "get_rank": 1}.items():
        monkeypatch.setattr(dist, name, lambda found=found: found)
    monkeypatch.setattr(dist, "all_reduce", exchange)
    return local_only()


@pytest.mark.parametrize("over_ranks", [sum_over_ranks, add_over_ranks, largest_over_ranks])
def test_one_process_has_its_own_values(alone: nullcontext[None], over_ranks: object) -> None:
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    with alone:
        found: Tensor = over_ranks(values)  # type: ignore[operator]
        assert torch.equal(found, values)
        if over_ranks is largest_over_ranks:
            assert not found.requires_grad
            return
        (found * torch.tensor([3.0, 5.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [3.0, 5.0]


def test_gathered_rows_get_their_own_gradient_only(alone: nullcontext[None]) -> None:
    first = 2 if dist.is_initialized() else 0
    with alone:
        context = type("Context", (), {"counts": [2, 3] if first else [5]})()
        gradient, _ = _GatherRows.backward(context, torch.arange(5.0))
    assert gradient.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0][first:]
