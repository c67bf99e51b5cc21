"""The benchmark of ``mpma.memory_topk``: shape G, the ways to write it in PyTorch, and our paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medvlp_core.kernels.benchmark import CheckCase, Contender, Inputs, KernelBenchmark, Shape, Work
from medvlp_core.kernels.machine import free_bytes
from medvlp_mpma.kernels import calls
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_attention import launch as attention_launch
from medvlp_mpma.kernels.memory_attention.tuning import Tiles as AttentionTiles
from medvlp_mpma.kernels.memory_topk.launch import memory_threshold
from medvlp_mpma.kernels.memory_topk.op import KERNEL, NAME, memory_topk
from medvlp_mpma.kernels.memory_topk.tuning import Tiles

SHAPES = (
    Shape(
        letter="G",
        about="R2GenCMN's memory: 100 text and 49 visual queries a sample, 32 of 2048 slots",
        sizes={"B": 256, "H": 12, "L": 149, "M": 2048, "D": 64, "K": 32},
    ),
)

#: In a check no loser may be so close to a winner that rounding could swap them, relative to the largest score.
SMALLEST_GAP = 1e-5


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
    """Normal numbers."""
    drawn = attention.make_inputs(shape, device, dtype, seed)
    tensors = {name: drawn[name] for name in ("q", "mem_k", "mem_v")}
    return Inputs(tensors=tensors, grad=drawn.grad, options={"topk": shape["K"]})


def check_cases(shape: Shape, device: torch.device, dtype: torch.dtype) -> Iterator[CheckCase]:
    """Three samples and two heads with sizes that no tile divides, and winners that are clear."""
    small = shape.resized(B=3, H=2, L=max(1, shape["L"] // 4), M=max(2, shape["M"] - 5), K=max(1, min(shape["K"], shape["M"] // 2)))
    seed = 1
    while _smallest_gap(inputs := make_inputs(small, device, dtype, seed)) < SMALLEST_GAP:
        seed += 1
    yield CheckCase(name="odd sizes", inputs=inputs)


def _smallest_gap(inputs: Inputs) -> float:
    """Between the worst winner and the best loser of any query, relative to the largest score."""
    q, mem_k = (inputs[name].detach().double() for name in ("q", "mem_k"))
    scores = torch.einsum("blhd,mhd->bhlm", q, mem_k)
    best = scores.topk(inputs.options["topk"] + 1, dim=-1).values
    return ((best[..., -2] - best[..., -1]).min() / scores.abs().max()).item()


def work(shape: Shape, direction: str, number_bytes: int) -> Work:
    """Forward all scores and the sum over winners; backward five products over winners alone.

    Reading the winners' rows is not counted: they can stay on the chip, for a tile at least. So the backward floor is low.
    """
    batch, heads, queries, slots, width, chosen = (shape[letter] for letter in "BHLMDK")
    rows = batch * heads * queries
    q, memory = rows * width, heads * slots * width
    if direction == "forward":
        flops = 2.0 * rows * width * (slots + chosen)
        return Work(flops=flops, bytes=number_bytes * 2.0 * (q + memory) + 4.0 * rows, exps=rows * chosen)
    moved = number_bytes * (4.0 * q + 2.0 * memory) + 4.0 * (2.0 * memory + rows)
    return Work(flops=10.0 * rows * width * chosen, bytes=moved, exps=rows * chosen)


def by_backend(backend: str) -> Callable[[Inputs], Callable[[], Tensor]]:
    """The op by a backend."""

    def make(inputs: Inputs) -> Callable[[], Tensor]:
        return lambda: memory_topk(inputs["q"], inputs["mem_k"], inputs["mem_v"], inputs.options["topk"], backend=backend)

    return make


# ---------------------------------------------------------------------------------------------------------------------- rivals


def gathered(inputs: Inputs) -> Callable[[], Tensor]:
    """Rows of the winners gathered out of a memory that is expanded to every query; scores in float32, as everywhere here.

    Reference:
        Chen et al., Cross-modal Memory Networks for Radiology Report Generation, ACL 2021, written from the formula.
    """
    q, mem_k, mem_v, topk = inputs["q"], inputs["mem_k"], inputs["mem_v"], inputs.options["topk"]
    batch, queries, _, width = q.shape

    def call() -> Tensor:
        keys, values = (x.transpose(0, 1).expand(batch, -1, -1, -1) for x in (mem_k, mem_v))
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = calls.default_scale(q) * (q.transpose(1, 2).to(wide) @ keys.to(wide).mT)
        best, chosen = scores.topk(topk, dim=-1)
        rows = values[:, :, None].expand(-1, -1, queries, -1, -1).gather(3, chosen[..., None].expand(-1, -1, -1, -1, width))
        out = best.softmax(dim=-1).to(q.dtype)[..., None, :] @ rows
        return out.squeeze(-2).transpose(1, 2)

    return call


def _unsupported_by_gather(device: torch.device, dtype: torch.dtype, shape: Shape) -> tuple[str, ...]:
    needed = dtype.itemsize * shape["B"] * shape["H"] * shape["L"] * shape["M"] * shape["D"]
    free = free_bytes(device)
    # Beside the gradient of the expanded memory there are scores and rows.
    if 1.2 * needed > free:
        return (f"its backward pass makes a tensor of {needed / 1e9:,.0f} GB, and {free / 1e9:,.0f} GB are free",)
    return ()


def all_slots(inputs: Inputs) -> Callable[[], Tensor]:
    """Softmax over all slots by torch's attention, with the batch folded into the queries."""
    q, mem_k, mem_v = inputs["q"], inputs["mem_k"], inputs["mem_v"]

    def call() -> Tensor:
        query, key, value = (x.transpose(0, 1)[None] for x in (q.flatten(0, 1), mem_k, mem_v))
        out = scaled_dot_product_attention(query, key, value)
        return out[0].transpose(0, 1).unflatten(0, q.shape[:2])

    return call


def selection(inputs: Inputs) -> Callable[[], Tensor]:
    """``torch.topk`` on scores that are there."""
    with torch.no_grad():
        scores = torch.einsum("blhd,mhd->bhlm", inputs["q"].float(), inputs["mem_k"].float())
    return lambda: scores.topk(inputs.options["topk"], dim=-1).values


# ------------------------------------------------------------------------------------------------------------------------ ours


def triton_with(name: str, *, threshold: Tiles | None = None, tiles: Mapping[str, AttentionTiles] | None = None) -> Contender:
    """Our Triton kernels with tiles of choice: of the threshold kernel, and by name of the kernels of memory attention.

    Example:
        >>> triton_with("triton, as it is").is_ours
        True
    """

    def make(inputs: Inputs) -> Callable[[], Tensor]:
        topk = inputs.options["topk"]

        def forward(call: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
            found = memory_threshold(call.q, call.mem_k, topk, threshold)
            return *attention_launch.forward(call._replace(threshold=found)), found

        bare = Inputs(tensors=inputs.tensors, grad=inputs.grad)
        return attention.direct(forward, attention_launch.backward, lambda: attention.with_tiles(tiles or {}))(bare)

    about = "our Triton kernels with other tiles"
    return Contender(
        name=name, about=about, make=make, unsupported_reasons=attention.unsupported_by(KERNEL, "triton"), is_ours=True
    )


CONTENDERS = (
    Contender(
        name="masked-dense",
        about="all scores, those of losers masked, gradients by autograd; memory projected once: backend `reference`",
        make=by_backend("reference"),
    ),
    Contender(
        name="gather",
        about="rows of the winners gathered out of an expanded memory, the published way",
        make=gathered,
        unsupported_reasons=_unsupported_by_gather,
    ),
    Contender(
        name="all slots",
        about="softmax over all slots by torch's attention, the batch folded: other mathematics",
        make=all_slots,
        is_same_op=False,
    ),
    Contender(name="torch.topk", about="only the selection, scores given", make=selection, is_same_op=False, has_backward=False),
    Contender(
        name="composite",
        about="backend `composite`: masked-dense in chunks, nothing large kept",
        make=by_backend("composite"),
        is_ours=True,
    ),
    Contender(
        name="triton",
        about="backend `triton`",
        make=by_backend("triton"),
        unsupported_reasons=attention.unsupported_by(KERNEL, "triton"),
        is_ours=True,
    ),
)

BENCHMARK = KernelBenchmark(
    op=NAME,
    shapes=SHAPES,
    contenders=CONTENDERS,
    baseline="masked-dense",
    make_inputs=make_inputs,
    check_cases=check_cases,
    reference=lambda inputs: by_backend("reference")(inputs)(),
    work=work,
)
