"""Scores of all pairs of images and texts, over the port ``match_score``: what both lead to is run for every pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medvlp_core.errors import Problem, SpecError
from medvlp_core.model.running import RunsCalls, computed
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.wiring import BATCH, Call, PortKey
from medvlp_core.spec.contract import Symbol

MATCH = "match_score"
_IMAGE, _TEXT, _BOTH = 1, 2, 3


def score_pairs(model: RunsCalls, images: Batch, texts: Batch, *, head: str | None, chunk_size: int) -> Tensor:
    """See :meth:`medvlp_core.model.composed.ComposedModel.score`."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, found {chunk_size}")
    key = model.key_of(MATCH if head is None else f"{head}.{MATCH}")
    calls = model.plan.wiring.route([key])
    _check_rows(model, calls, key)
    images = {name: value for name, value in images.items() if name != "record_index"}
    texts = {name: value for name, value in texts.items() if name != "record_index"}
    sides = _sides(model, calls, images, texts)
    if sides[key] != _BOTH:
        only = {_IMAGE: "images alone", _TEXT: "texts alone", 0: "neither images nor texts"}[sides[key]]
        raise SpecError(Problem(code="MV201", text=f"{key} depends on {only}: it is no score of pairs"))
    joint = [call for call in calls if sides[call.gives[0]] == _BOTH]
    wanted = {taken for call in joint for _, taken in call.takes}
    found = {}
    for side, batch in ((_IMAGE, images), (_TEXT, texts)):
        own = [call for call in calls if sides[call.gives[0]] in (0, side)]
        found[side] = _once(model, batch, own, {one for one in wanted if sides[one] == side}, chunk_size)
    common = _common(_device(images, texts), model, calls, sides, {one for one in wanted if sides[one] == 0})
    counts = (_count(images), _count(texts))
    scores = []
    for start in range(0, counts[0] * counts[1], chunk_size):
        pair = torch.arange(start, min(start + chunk_size, counts[0] * counts[1]), device=_device(images, texts))
        ports = dict(common)
        for side, row in ((_IMAGE, pair // counts[1]), (_TEXT, pair % counts[1])):
            ports |= {one: value[row] if _has_rows(model, one) else value for one, value in found[side].items()}
        scores.append(computed(model, joint, ports)[key])
    return torch.cat(scores).reshape(counts) if scores else torch.zeros(counts)


def _check_rows(model: RunsCalls, calls: Sequence[Call], key: PortKey) -> None:
    for call in calls:
        component = model.plan.components[call.path]
        if component.calls[call.name].mixes_rows:
            text = f"{key} comes from {call}, where the result of a pair depends on the other pairs of a batch (mixes_rows)"
            hint = f"give {MATCH} in a call of its own, which does not mix rows"
            raise SpecError(Problem(code="MV201", text=text, position=component.position(), hint=hint))


def _sides(model: RunsCalls, calls: Sequence[Call], images: Batch, texts: Batch) -> dict[PortKey, int]:
    """What each port depends on: nothing of the two (0), images, texts or both."""
    if both := sorted(set(images) & set(texts)):
        text = f"{', '.join(both)} stands in both batches, so that nobody knows whether it goes with images or texts"
        raise SpecError(Problem(code="MV201", text=text))
    sides = {PortKey.parse(name): _IMAGE for name in images} | {PortKey.parse(name): _TEXT for name in texts}
    sides[PortKey("progress")] = 0
    for call in calls:
        if lacking := [str(taken) for _, taken in call.takes if taken not in sides]:
            text = f"{call} takes {', '.join(lacking)}, which neither of the batches holds"
            hint = f"they hold {', '.join((*images, *texts))}"
            raise SpecError(Problem(code="MV201", text=text, hint=hint))
        reached = 0
        for _, taken in call.takes:
            reached |= sides[taken]
        sides |= dict.fromkeys(call.gives, reached)
    return sides


def _once(model: RunsCalls, batch: Batch, calls: Sequence[Call], wanted: set[PortKey], chunk_size: int) -> dict[PortKey, Tensor]:
    """Some ports of all rows of a batch, computed for some rows at once."""
    parts: list[dict[PortKey, Tensor]] = []
    for start in range(0, _count(batch), chunk_size):
        rows = {
            name: value[start : start + chunk_size] if _has_rows(model, PortKey.parse(name)) else value
            for name, value in batch.items()
        }
        ports = computed(model, calls, model.given(rows))
        parts.append({one: ports[one] for one in wanted})
    return {
        one: torch.cat([part[one] for part in parts]) if _has_rows(model, one) else parts[0][one]
        for one in (wanted if parts else ())
    }


def _common(
    device: torch.device, model: RunsCalls, calls: Sequence[Call], sides: Mapping[PortKey, int], wanted: set[PortKey]
) -> dict[PortKey, Tensor]:
    ports = computed(
        model, [call for call in calls if sides[call.gives[0]] == 0], model.given({"progress": torch.ones((), device=device)})
    )
    return {one: ports[one] for one in wanted}


def _has_rows(model: RunsCalls, key: PortKey) -> bool:
    """Whether the first axis of a port is the batch."""
    provider = model.plan.wiring.provider(key)
    if not provider.spec.dims:
        return False
    symbol = model.plan.wiring.symbol(provider.path, provider.call, provider.view, provider.spec.dims[0])
    return isinstance(symbol, Symbol) and model.plan.wiring.table.size(symbol) == BATCH


def _count(batch: Batch) -> int:
    return max((len(value) for value in batch.values() if value.ndim), default=0)


def _device(images: Batch, texts: Batch) -> torch.device:
    return next(iter({**texts, **images}.values())).device
