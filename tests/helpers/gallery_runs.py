"""Recipes of the gallery, built in float64, with a batch of made-up records and all ports of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medvlp_core import build, plan
from medvlp_core.model.build import BuiltRun
from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn import Batch

Ports = dict[str, Tensor]


def run_of(name: str, *changes: str) -> BuiltRun:
    """The run of a recipe of the gallery, in float64 and in training mode, without gradients."""
    run = build(plan(f"gallery:{name}", list(changes)), seed=0)
    run.model.double().train().requires_grad_(False)
    return run


def batch_of(run: BuiltRun, rows: Sequence[int] = range(6), *, progress: float = 0.5, split: str = "train") -> Batch:
    """Some records of a split as a batch, cut as in evaluation."""
    dataset = run.pipeline.dataset(split, is_training=False)
    batch = run.pipeline.collate()([dataset[row] for row in rows])
    batch["progress"] = torch.tensor(progress)
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def step(model: ComposedModel, batch: Batch, *, seed: int = 0) -> tuple[dict[str, Tensor], Ports]:
    """The losses of a step and every port that a call of it gave, detached."""
    found: Ports = {}
    run = model.run

    def record(call, arguments):  # type: ignore[no-untyped-def]
        output = run(call, arguments)
        found.update({str(key): output.ports[key.name].detach() for key in call.gives})
        return output

    model.run = record  # type: ignore[method-assign]
    try:
        torch.manual_seed(seed)
        losses = model(batch).losses
    finally:
        del model.run
    return {name: value.detach() for name, value in losses.items()}, found


def loss(model: ComposedModel, batch: Batch, name: str) -> float:
    """One loss of a step, always with the same draws."""
    return float(step(model, batch)[0][name])


def changed(batch: Batch, **ports: Tensor) -> Batch:
    """A batch with other tensors in some places."""
    assert set(ports) <= set(batch), set(ports) - set(batch)
    return {**batch, **ports}


def turned(batch: Batch, *names: str) -> Batch:
    """A batch in which some tensors are those of the next row."""
    return changed(batch, **{name: batch[name].roll(1, dims=0) for name in names})


def perturb(module: torch.nn.Module, *, seed: int = 0) -> None:
    """Add noise to every weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


# ------------------------------------------------------------------------------------------------------------ plain formulas


def unit(x: Tensor) -> Tensor:
    """``x / |x|`` of one vector."""
    return x / math.sqrt(float((x * x).sum()))


def log_softmax(scores: Sequence[float]) -> list[float]:
    """``s_j - log sum_k e^{s_k}``."""
    highest = max(scores)
    total = math.log(sum(math.exp(one - highest) for one in scores)) + highest
    return [one - total for one in scores]


def softmax(scores: Sequence[float]) -> list[float]:
    """``e^{s_j} / sum_k e^{s_k}``."""
    return [math.exp(one) for one in log_softmax(scores)]


def mean(values: Sequence[float]) -> float:
    """The mean, 0 of nothing."""
    return sum(values) / max(1, len(values))


def info_nce(scores: Sequence[Sequence[float]]) -> float:
    """``1/2 mean_i [CE(s_i., i) + CE(s_.i, i)]``."""
    count = len(scores)
    rows = [-log_softmax(scores[i])[i] for i in range(count)]
    columns = [-log_softmax([scores[j][i] for j in range(count)])[i] for i in range(count)]
    return 0.5 * (mean(rows) + mean(columns))


def dots(left: Sequence[Tensor], right: Sequence[Tensor], factor: float = 1.0) -> list[list[float]]:
    """``factor * a_i . b_j``."""
    return [[factor * float(a @ b) for b in right] for a in left]
