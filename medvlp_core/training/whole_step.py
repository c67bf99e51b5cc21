"""A step whose contrasts see all of its pairs (``train.contrast_over: step``), with the memory of one micro-batch.

Three phases, of which each calls the model as training does, so that what wraps it for several processes takes part:

1. every micro-batch without a graph, as far as the calls that mix rows need it; buffers are put back;
2. these calls once, in every process alike, over the rows of all micro-batches and processes: losses, gradients of their
   parameters, and the gradient of each port that they take;
3. every micro-batch once more from the same seed, with a graph: the product of each port and its gradient is added to the other
   losses, and carries the gradient on.

Reference:
    Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021 (GradCache).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core.data.order import Share, seed_of
from medvlp_core.errors import Problem, SpecError
from medvlp_core.model.composed import Phase
from medvlp_core.nn.batch import Batch, StepOutput
from medvlp_core.planning.contrast import StepContrast
from medvlp_core.runtime.device import autocast, to_device
from medvlp_core.runtime.distributed import largest_over_ranks, local_only, world_size
from medvlp_core.spec.blocks import TrainSpec
from medvlp_core.training.local_step import LocalStep, with_progress
from medvlp_core.training.parallel import broadcast_buffers, buffers_kept, sync_gradients
from medvlp_core.training.rows import rows_of_step
from medvlp_core.training.state import TrainState


def contrast_over_step(state: TrainState, spec: TrainSpec) -> StepContrast | None:
    """How the calls of a step are divided; None where a micro-batch is the whole step, or contrasts are to see no more."""
    if spec.contrast_over != "step" or world_size() * spec.gradient_accumulation_steps == 1:
        return None
    return state.model.contrast


def forward_backward_over_step(
    state: TrainState,
    forward: nn.Module,
    batches: Iterator[Batch],
    spec: TrainSpec,
    *,
    contrast: StepContrast,
    share: Share,
    pairs: int,
    progress: float,
    device: torch.device,
    forget_statistics: Callable[[], object],
) -> LocalStep:
    """Forward and backward passes of one step; leaves the summed gradients in the parameters.

    ``pairs``: image-text pairs of the step, over all processes and micro-batches. ``progress``: share of the steps that are done.
    ``forget_statistics`` lets modules forget what they counted in phase 1.
    """
    state.optimizer.zero_grad(set_to_none=True)
    state.save_buffers()
    before = time.perf_counter()
    micro_batches = [next(batches) for _ in range(share.micro_batches)]
    data_seconds = time.perf_counter() - before
    step = _WholeStep(state, forward, spec, contrast, share, share.sizes(pairs), progress, device, micro_batches)
    rows, shapes = step.ports()
    forget_statistics()
    output, gradients = step.contrast_rows(rows)
    del rows
    # Every process has the same losses; over the processes they are added up.
    terms = {"": output.loss.detach().float() / world_size()}
    terms |= {name: value.detach().float() / world_size() for name, value in output.losses.items()}
    after_all, after = output.rows, []
    del output
    for number, shape in enumerate(shapes):
        weight = step.sizes[share.rank][number] / pairs
        output = step.micro_batch(number, own_rows(gradients, shape, step.sizes, share.rank, number), weight)
        for name, value in {"": output.loss, **output.losses}.items():
            terms[name] = terms.get(name, 0.0) + value.detach().float() * weight
        after.append({name: one for name, one in output.rows.items() if name not in after_all})
        del output  # its predictions would stay in memory during the next micro-batch
    names = tuple(name for name in state.model.plan.losses if name in terms)
    return LocalStep(
        losses=torch.stack([terms[name] for name in ("", *names)]),
        names=names,
        rows=tuple(row for batch in micro_batches for row in batch["record_index"].tolist()),
        after=tuple(after),
        after_all=after_all,
        pairs=pairs,
        data_seconds=data_seconds,
    )


@attrs.frozen
class _WholeStep:
    """One step and its three phases. ``sizes`` are the rows of each process and micro-batch."""

    state: TrainState
    forward: nn.Module
    spec: TrainSpec
    contrast: StepContrast
    share: Share
    sizes: list[list[int]]
    progress: float
    device: torch.device
    micro_batches: list[Batch]

    def ports(self) -> tuple[dict[str, Tensor], list[dict[str, torch.Size]]]:
        """Phase 1: what the calls that mix rows take, of the whole step; and its shapes in each micro-batch of this process.

        Compiled layers are compiled for passes with a graph: the same code in both passes draws the same numbers.
        """
        model = self.state.model
        broadcast_buffers(model)
        with buffers_kept(model), torch.set_grad_enabled(self.spec.compile), sync_gradients(self.forward, is_last=False):
            found = [
                {name: one.detach() for name, one in self._run(number, Phase.PORTS).ports.items()}
                for number in range(self.share.micro_batches)
            ]
        index = [{"record_index": batch["record_index"].to(self.device)} for batch in self.micro_batches]
        rows = {**put_together(found, self.contrast, self.sizes), **rows_of_step(index, self.sizes)}
        return rows, [{name: one.shape for name, one in ports.items()} for ports in found]

    def contrast_rows(self, rows: dict[str, Tensor]) -> tuple[StepOutput, dict[str, Tensor]]:
        """Phase 2: the output of the calls that mix rows, and the gradients of what they take (times the loss scale).

        All processes do the same, so that the mean over them changes no gradient of a parameter.
        """
        taken = {str(key): rows[str(key)].requires_grad_() for key in self.contrast.trained}
        torch.manual_seed(seed_of("contrast", self.spec.seed, self.state.step))
        with local_only(), sync_gradients(self.forward, is_last=False):
            with autocast(self.device, self.spec.precision):
                output: StepOutput = self.forward(with_progress(rows, self.progress, self.device), Phase.CONTRAST)
            if output.loss.requires_grad:
                self.state.scaler.scale(output.loss).backward()
        return output, {name: one.grad for name, one in taken.items() if one.grad is not None}

    def micro_batch(self, number: int, gradients: Mapping[str, Tensor], weight: float) -> StepOutput:
        """Phase 3: the other losses of a micro-batch, of which ``weight`` is the share of the step, and the gradients of its ports.

        Processes are averaged, micro-batches are summed: so every pair counts the same, however unequal these are.
        """
        with sync_gradients(self.forward, is_last=number + 1 == self.share.micro_batches):
            output = self._run(number, Phase.ROWS, gradients)
            assert output.pull is not None
            loss = self.state.scaler.scale(output.loss * (weight * world_size())) + output.pull * world_size()
            if loss.requires_grad:
                loss.backward()
        return output

    def _run(self, number: int, phase: Phase, gradients: Mapping[str, Tensor] | None = None) -> StepOutput:
        torch.manual_seed(seed_of("masks", self.spec.seed, self.state.step, self.share.rank, number))  # and dropout
        batch = with_progress(to_device(self.micro_batches[number], self.device), self.progress, self.device)
        is_last = phase is Phase.ROWS and number + 1 == self.share.micro_batches
        with autocast(self.device, self.spec.precision):
            output: StepOutput = self.forward(batch, phase, gradients, is_last=is_last)
        return output


@torch.no_grad()
def put_together(
    parts: Sequence[Mapping[str, Tensor]], contrast: StepContrast, sizes: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """The ports of a whole step, in the order of its records, in every process. Every process must ask.

    Axes that are padded are as long as the longest of all micro-batches.

    Shape:
        parts (B, ...), result (T, ...), T the records of the step; ports without rows as they are.

    Raises:
        SpecError: another axis has another length in some micro-batches (MV206).
    """
    keys = {str(key): key for key in contrast.ports if key not in contrast.common}
    places = [(name, place) for name in keys for place in range(1, parts[0][name].ndim)]
    if not places:
        longest, shortest = {}, {}
    else:
        lengths = torch.tensor([[part[name].shape[place] for name, place in places] for part in parts])
        device = parts[0][places[0][0]].device
        both = largest_over_ranks(torch.cat([lengths.amax(dim=0), -lengths.amin(dim=0)]).to(device)).tolist()
        longest = dict(zip(places, both[: len(places)], strict=True))
        shortest = {at: -length for at, length in zip(places, both[len(places) :], strict=True)}
    for (name, place), most in longest.items():
        if most != shortest[name, place] and place not in contrast.padded[keys[name]]:
            text = (
                f"{name} has {shortest[name, place]} entries along axis {place} in one micro-batch and {most} in another one, "
                "and with contrast_over: step their rows are put together"
            )
            raise SpecError(Problem(code="MV206", text=text, hint="take `contrast_over: step` out of train"))
    padded = []
    for part in parts:
        ports = {}
        for name in keys:
            missing = [longest[name, place] - part[name].shape[place] for place in range(1, part[name].ndim)]
            sides = [side for count in reversed(missing) for side in (0, count)]
            ports[name] = F.pad(part[name], sides, value=_filling(name)) if any(sides) else part[name]
        padded.append(ports)
    common = {str(key): parts[0][str(key)] for key in contrast.common}
    return {**rows_of_step(padded, sizes), **common}


def _filling(name: str) -> int:
    """What stands at padding, as in a batch: -1 for the words and the characters of tokens, else 0 and False."""
    return -1 if name.partition("@")[0].endswith(("word_ids", "token_spans")) else 0


def own_rows(
    gradients: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], sizes: Sequence[Sequence[int]], rank: int, number: int
) -> dict[str, Tensor]:
    """Of gradients of a whole step those of a micro-batch, in the shapes that its ports have."""
    first = sum(one[earlier] for one in sizes for earlier in range(number)) + sum(one[number] for one in sizes[:rank])
    found = {}
    for name, gradient in gradients.items():
        count, *others = shapes[name]
        place = (slice(first, first + count), *map(slice, others))
        found[name] = gradient[place]
    return found
