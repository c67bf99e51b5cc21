"""A search over tile sizes: candidates, the time of a single kernel of a call, and new tables. Imports Triton when it runs.

The first run (``first_run``) is its only user so far. A launch is recorded with its arguments and then repeated, so that one
kernel of a pass is timed without the others.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import attrs
import torch
from torch import Tensor

from medvlp_core.kernels.benchmark import Contender, Inputs, Shape, relative_error
from medvlp_core.kernels.machine import Clock
from medvlp_mpma.kernels import calls
from medvlp_mpma.kernels.inputs import AttentionInputs, Gradients
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_attention import launch as attention_launch
from medvlp_mpma.kernels.memory_attention import tuning as attention_tuning
from medvlp_mpma.kernels.memory_topk import launch as topk_launch
from medvlp_mpma.kernels.memory_topk import tuning as topk_tuning

ATTENTION = "memory_attention"
TOPK = "memory_topk"

#: The kernels of the tables, as they are named there.
KERNELS = ("forward", "grad_query", "grad_query_with_keys", "grad_key", "grad_slot", "threshold")

#: What the sweep changes: rules for heads of this width.
HEAD_WIDTH = 64

Rule = dict[str, int]
Table = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------------ candidates


def candidates(kernel: str, current: Rule, *, is_rehearsal: bool = False) -> list[Rule]:
    """Rules to try, the current one first. A kernel that does the keys, too, keeps its rows of queries: they decide who it serves.

    Example:
        >>> now = {"bits": 16, "head_width": 64, "block_l": 128, "block_n": 64, "warps": 8, "stages": 2}
        >>> len(candidates("forward", now)), len(candidates("grad_query_with_keys", now))
        (36, 18)
    """
    tried: list[Rule]
    if kernel == "threshold":
        sizes = ((8, 128, 8), (8, 256, 8), (16, 128, 16), (16, 256, 16), (8, 256, 16))
        tried = [{"queries": queries, "piece": piece, "warps": warps} for queries, piece, warps in sizes]
    else:
        names = ("block_l", "block_n", "warps", "stages")
        tried = [dict(zip(names, one, strict=True)) for one in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))]
    if is_rehearsal:
        tried = [{"queries": 8, "piece": 16}] if kernel == "threshold" else [{"block_n": 16}]
    rules = [current, *({**current, **one} for one in tried)]
    if kernel == "grad_query_with_keys":
        rules = [rule for rule in rules if rule["block_l"] == current["block_l"]]
    return [rule for index, rule in enumerate(rules) if rule not in rules[:index]]


def text_of(rule: Rule) -> str:
    """A rule's sizes in a few characters, for tables of results."""
    first, second = ("queries", "piece") if "queries" in rule else ("block_l", "block_n")
    return f"{rule[first]}x{rule[second]}, {rule['warps']} warps, {rule['stages']} stages"


# ---------------------------------------------------------------------------------------------------------------------- tables


def current_rule(table: Table, kernel: str, served: Sequence[AttentionInputs]) -> Rule:
    """The rule that a table gives a kernel, the same one for all these calls."""
    bits, width = 8 * served[0].q.element_size(), served[0].q.shape[-1]
    queries, slots = max(one.q.shape[1] for one in served), max(one.mem_k.shape[0] for one in served)
    for rule in table[kernel]:
        is_enough = rule.get("slots", slots) >= slots and (kernel != "grad_query_with_keys" or rule["block_l"] >= queries)
        if rule["bits"] == bits and rule["head_width"] >= width and is_enough:
            return rule
    raise ValueError(f"no rule of {kernel} serves the calls")


def replaced(table: Table, kernel: str, old: Rule, new: Rule) -> Table:
    """A table with a rule changed. One that serves wider heads, too, stays, and the new one for heads of 64 goes in front of it."""
    rules = []
    for rule in table[kernel]:
        if rule == old:
            rules.append({**new, "head_width": HEAD_WIDTH})
        if rule != old or rule["head_width"] > HEAD_WIDTH:
            rules.append(rule)
    return {**table, kernel: rules}


def table_text(table: Table) -> str:
    """A table as it is kept in a file: one rule a line."""
    parts = []
    for name, value in table.items():
        if isinstance(value, list):
            rules = ",\n".join(f"    {json.dumps(rule)}" for rule in value)
            parts.append(f"  {json.dumps(name)}: [\n{rules}\n  ]")
        else:
            parts.append(f"  {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


@contextmanager
def with_tables(tables: Mapping[str, Table]) -> Iterator[None]:
    """Within this context the kernels read these tables (``memory_attention``, ``memory_topk``) instead of the files."""
    with ExitStack() as stack:
        for name, module in ((ATTENTION, attention_tuning), (TOPK, topk_tuning)):
            if name in tables:
                stack.enter_context(mock.patch.object(module, "read_table", lambda folder, file, name=name: tables[name]))
        yield


def contender(name: str, tables: Mapping[str, Table]) -> Contender:
    """Our Triton kernels of either op with these tables; with none, as they are. Nothing of the op is around them."""

    def make(inputs: Inputs) -> Callable[[], Tensor]:
        topk = inputs.options.get("topk")
        forward = attention_launch.forward if topk is None else lambda call: topk_launch.forward(call, topk)
        bare = attrs.evolve(inputs, options={name: value for name, value in inputs.options.items() if name != "topk"})
        around = (lambda: with_tables(tables)) if tables else nullcontext
        return attention.direct(forward, attention_launch.backward, around)(bare)

    return Contender(name=name, about="our Triton kernels without the op around them", make=make, is_ours=True)


# --------------------------------------------------------------------------------------------------------------- single kernels


@attrs.frozen(kw_only=True)
class Launch:
    """A kernel that was launched: its name in the tables, a function that launches it again, and what Triton compiled."""

    kernel: str
    again: Callable[[], Any]
    compiled: Any

    @property
    def needs(self) -> dict[str, int | None]:
        """Spilled words and registers of a thread, and bytes of shared memory of a program; None if nothing was compiled."""
        shared = getattr(getattr(self.compiled, "metadata", None), "shared", None)
        return {
            "spills": getattr(self.compiled, "n_spills", None),
            "registers": getattr(self.compiled, "n_regs", None),
            "shared": shared,
        }


@attrs.define
class _Recorder:
    """Stands in for a kernel: launches it and notes how."""

    kernel: Any
    name: str
    found: list[Launch]

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **options: Any) -> Any:
            name = f"{self.name}_with_keys" if options.get("WITH_KEYS") else self.name
            compiled = self.kernel[grid](*args, **options)
            self.found.append(Launch(kernel=name, again=lambda: self.kernel[grid](*args, **options), compiled=compiled))
            return compiled

        return launch


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Notes every launch of our kernels within this context."""
    from medvlp_mpma.kernels.memory_attention import triton_kernel as of_attention
    from medvlp_mpma.kernels.memory_topk import triton_kernel as of_topk

    found: list[Launch] = []
    with ExitStack() as stack:
        for name in KERNELS:
            attribute, module = f"{name}_kernel", of_topk if name == "threshold" else of_attention
            if hasattr(module, attribute):
                recorder = _Recorder(getattr(module, attribute), name, found)
                stack.enter_context(mock.patch.object(module, attribute, recorder))
        yield found


@attrs.define(kw_only=True)
class SweepCall:
    """A call that kernels are timed in, with the results of the current tables."""

    inputs: AttentionInputs
    grad: Tensor
    topk: int | None
    out: Tensor
    lse: Tensor
    gradients: Gradients
    kernels: tuple[str, ...]

    @classmethod
    def make(cls, shape: Shape, device: torch.device, dtype: torch.dtype) -> SweepCall:
        """Inputs for a shape of either op (with ``K``: top-k), and one pass."""
        drawn = attention.make_inputs(shape, device, dtype, seed=0)
        q, k, v, mem_k, mem_v = (drawn[name].detach() for name in attention.NAMES)
        inputs = AttentionInputs(q, k, v, mem_k, mem_v, scale=calls.default_scale(q))
        topk = shape.sizes.get("K")
        with recording() as found:
            if topk is not None:
                no_keys, threshold = inputs.q[:, :0], topk_launch.memory_threshold(inputs.q, inputs.mem_k, topk)
                inputs = inputs._replace(k=no_keys, v=no_keys, threshold=threshold)
            out, lse = attention_launch.forward(inputs)
            gradients = attention_launch.backward(inputs, out, lse, drawn.grad, None)
        kernels = tuple(launch.kernel for launch in found)
        return cls(inputs=inputs, grad=drawn.grad, topk=topk, out=out, lse=lse, gradients=gradients, kernels=kernels)

    def launch(self, kernel: str, rule: Rule) -> tuple[Launch, float]:
        """Run the pass that a kernel belongs to with a rule for it; its launch, and the error against the current tables."""
        results: Sequence[Tensor]
        wanted: Sequence[Tensor | None]
        tiles = {} if kernel == "threshold" else {kernel: attention_tuning.tiles_of(rule, self.inputs.q.shape[-1])}
        with recording() as found, attention.with_tiles(tiles):
            if kernel == "threshold":
                assert self.topk is not None
                with with_tables({TOPK: {"threshold": [rule]}}):
                    results = [topk_launch.memory_threshold(self.inputs.q, self.inputs.mem_k, self.topk)]
                wanted = [self.inputs.threshold]
            elif kernel == "forward":
                results, wanted = attention_launch.forward(self.inputs), (self.out, self.lse)
            else:
                results = attention_launch.backward(self.inputs, self.out, self.lse, self.grad, None)
                wanted = self.gradients
        (launch,) = (one for one in found if one.kernel == kernel)
        errors = [relative_error(one.float(), x.float()) for one, x in zip(results, wanted, strict=True) if x is not None]
        return launch, max(errors, key=lambda error: (error != error, error))  # NaN is the largest


def time_of(launch: Launch, clock: Clock, repeats: int) -> float:
    """Seconds of a kernel, the median."""
    launch.again()
    readers = [clock.time(launch.again)[1] for _ in range(repeats)]
    clock.finish()
    return statistics.median(read() for read in readers)
