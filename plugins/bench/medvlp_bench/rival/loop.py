"""The rival of the loop: what somebody would write by hand for one recipe, over the very same modules. For ``medvlp bench train``.

The forward pass is written out as Python text, straight down, one call a line; the benchmark keeps it as ``rival.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medvlp_core import Role
from medvlp_core.data import Collate, DataOrder, InputPipeline, Share, seed_of
from medvlp_core.nn import ImageTextBatch
from medvlp_core.planning import ModelPlan, PortKey, Step, TrainSpec
from medvlp_core.runtime import autocast, to_device
from medvlp_core.training import learning_rate_at, parameter_groups

Forward = Callable[[ImageTextBatch], tuple[Tensor, list[Tensor]]]


def forward_source(plan: ModelPlan) -> str:
    """The training pass of a plan as a function ``make(model)``, whose result maps a batch to the loss and its terms."""
    parts: dict[str, str] = {}
    lines: list[str] = []
    names: dict[Step, str] = {}

    def call(path: str, takes: Sequence[tuple[str, PortKey]], method: str = "") -> str:
        arguments = ", ".join(f"{argument}={value(key)}" for argument, key in takes)
        return f"{parts.setdefault(path, f'part_{len(parts)}')}{method}({arguments})"

    def value(key: PortKey) -> str:
        step = plan.wiring.step_for(key)
        if step is None:
            return f"batch.{key[0]}"
        return names[step] if "text" in step.stage or step.stage == "encode_fused" else f"{names[step]}.{key[0]}"

    for step in plan.steps:
        method = {"embed_text": ".embed", "encode_text": ".encode", "encode_fused": ".encode"}.get(step.stage, "")
        line = call(step.path, step.takes, method)
        names[step] = f"{step.stage}_{step.view}" if step.view else step.stage
        lines.append(f"{names[step]} = {line}")
    terms: dict[str, str] = {}
    for role, field in ((Role.ALIGNMENT, ""), (Role.DECODER, ".losses")):
        for slot, one in plan.of_role(role).items():
            output = f"output_{len(lines)}"
            lines.append(f"{output} = {call(one.path, plan.takes(one.path))}{field}")
            terms |= {f"{slot}.{term}": f"{output}[{term!r}]" for term in one.contract.losses}
    lines.append(f"terms = [{', '.join(terms.values())}]")
    weighted = (f"{plan.losses[name]!r} * terms[{number}]" for number, name in enumerate(terms))
    lines.append(f"return {' + '.join(weighted)}, terms")
    head = [f"{name} = model.get_submodule({path.removeprefix('model.')!r})" for path, name in parts.items()]
    body = ["def make(model):", *(f"    {line}" for line in head), "", "    def forward(batch):"]
    return "\n".join([*body, *(f"        {line}" for line in lines), "", "    return forward", ""])


def plain_forward(plan: ModelPlan, model: nn.Module) -> Forward:
    """:func:`forward_source` as a function. The text comes from a checked plan: calls of its own parts, nothing of the recipe."""
    space: dict[str, Any] = {}
    exec(compile(forward_source(plan), "rival.py", "exec"), space)
    return space["make"](model)


@attrs.define(kw_only=True)
class PlainLoop:
    """A loop over a DataLoader: fused AdamW with the groups of the framework, its schedule, clipping, a loss now and then."""

    model: nn.Module
    forward: Forward
    pipeline: InputPipeline
    spec: TrainSpec
    order: DataOrder
    device: torch.device
    optimizer: torch.optim.AdamW = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        groups = parameter_groups(self.model, self.spec.weight_decay, self.spec.layer_decay)
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.spec.learning_rate, betas=(self.spec.betas[0], self.spec.betas[1]), fused=fused
        )

    def run(self, steps: int, *, is_seeded: bool, on_step: Callable[[float], None]) -> list[list[float]]:
        """Train some steps from step 0 of the order. ``on_step`` gets the seconds for which a step waited for data.

        With ``is_seeded`` crops and masks are those of the framework, step by step, and all losses are given back; else both are
        drawn from torch's global state, as somebody would do who does not care to repeat a step.
        """
        self.model.train()
        spec, optimizer = self.spec, self.optimizer
        scaler = torch.amp.GradScaler(self.device.type, enabled=spec.precision == "fp16")
        batches = iter(self.loader(steps, is_seeded=is_seeded))
        sums: Tensor | None = None
        found: list[list[float]] = []
        for step in range(steps):
            if is_seeded:
                torch.manual_seed(seed_of("masks", spec.seed, step, 0))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, steps, spec) * group["lr_scale"]
            optimizer.zero_grad(set_to_none=True)
            data_seconds, numbers = 0.0, torch.zeros(len(found[0]) if found else 1, device=self.device)
            for _ in range(spec.gradient_accumulation_steps):
                before = time.perf_counter()
                batch = next(batches)
                data_seconds += time.perf_counter() - before
                with autocast(self.device, spec.precision):
                    loss, terms = self.forward(to_device(batch, self.device))
                part = len(batch.image) / spec.batch_size
                scaler.scale(loss * part).backward()
                numbers = numbers + torch.stack([loss, *terms] if is_seeded else [loss]).detach().float() * part
            scaler.unscale_(optimizer)
            if spec.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), spec.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            sums = numbers if sums is None else sums + numbers
            if is_seeded or (step + 1) % spec.log_every_steps == 0:
                found.append(sums.tolist())
                sums = None
            on_step(data_seconds)
        return found

    def loader(self, steps: int, *, is_seeded: bool) -> DataLoader[Any]:
        """The batches of some steps, in the order of the framework."""
        draws = [
            part
            for step in range(steps)
            for part in Share(micro_batches=self.spec.gradient_accumulation_steps).of(self.order.pairs(step))
        ]
        return DataLoader(
            self.pipeline.dataset("train", is_training=True),
            batch_sampler=[[draw if is_seeded else draw.row for draw in part] for part in draws],
            collate_fn=Collate(self.pipeline.tokenizer),
            num_workers=self.spec.num_workers,
            pin_memory=self.device.type == "cuda",
        )
