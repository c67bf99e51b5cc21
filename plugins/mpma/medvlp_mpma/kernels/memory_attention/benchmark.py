"""The benchmark of ``mpma.memory_attention``: shapes A to F, what users and experts would write instead, and our paths.

Rivals are written for equal numbers (B, L, H, D), as a projection produces them. Lengths and masks are checked, not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from medvlp_core.kernels import Call, Kernel
from medvlp_core.kernels.benchmark import CheckCase, Contender, Inputs, KernelBenchmark, Shape, Work
from medvlp_mpma.kernels import calls
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention import composite, launch, tuning
from medvlp_mpma.kernels.memory_attention.op import KERNEL, NAME, memory_attention
from medvlp_mpma.kernels.memory_attention.tuning import Tiles

NAMES = ("q", "k", "v", "mem_k", "mem_v")

SHAPES = tuple(
    Shape(letter=letter, about=about, sizes={"B": batch, "H": heads, "L": queries, "S": keys, "M": slots, "D": 64})
    for letter, about, batch, heads, queries, keys, slots in (
        ("A", "pre-training with 75 % masked, text width 384", 256, 6, 100, 50, 256),
        ("B", "the same at text width 768", 256, 12, 128, 50, 512),
        ("C", "memory as large as R2GenCMN's", 128, 12, 128, 50, 2048),
        ("D", "nothing masked at 224 pixels, long text", 64, 12, 256, 197, 512),
        ("E", "512 pixels in patches of 16", 32, 12, 256, 1025, 256),
        ("F", "small memory", 256, 12, 128, 50, 64),
    )
)


def make_inputs(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
    """Normal numbers; keys and slots may be absent from the sizes (then there are none)."""
    generator = torch.Generator(device).manual_seed(seed)
    batch, heads, queries, width = (shape[letter] for letter in "BHLD")
    keys, slots = shape.sizes.get("S", 0), shape.sizes.get("M", 0)
    rows = {"q": (batch, queries), "k": (batch, keys), "v": (batch, keys), "mem_k": (slots,), "mem_v": (slots,)}
    drawn = {name: torch.randn(*size, heads, width, device=device, dtype=dtype, generator=generator) for name, size in rows.items()}
    grad = torch.randn(drawn["q"].shape, device=device, dtype=dtype, generator=generator)
    return Inputs(tensors={name: x.requires_grad_() for name, x in drawn.items()}, grad=grad)


def check_cases(shape: Shape, device: torch.device, dtype: torch.dtype) -> Iterator[CheckCase]:
    """Three samples and two heads with sizes that no tile divides; the second time with padding, one sample all padding."""
    near = {letter: max(1, shape[letter] - less) for letter, less in (("L", 3), ("S", 3), ("M", 5))}
    small = shape.resized(B=3, H=2, **near)
    yield CheckCase(name="odd sizes", inputs=make_inputs(small, device, dtype, 1))
    inputs = make_inputs(small, device, dtype, 2)
    inputs.options["key_lens"] = torch.tensor([small["S"] // 2, small["S"], 0], device=device)
    inputs.options["query_lens"] = torch.tensor([small["L"], small["L"] // 3, small["L"] - 1], device=device)
    yield CheckCase(name="padding", inputs=inputs, skip=[one.name for one in CONTENDERS if one.name.startswith("cat + ")])


def by_backend(backend: str) -> Callable[[Inputs], Callable[[], Tensor]]:
    """The op by a backend."""

    def make(inputs: Inputs) -> Callable[[], Tensor]:
        large = [inputs[name] for name in NAMES]
        return lambda: memory_attention(*large, **inputs.options, backend=backend)

    return make


def work(shape: Shape, direction: str, number_bytes: int) -> Work:
    """Two products forward and five backward; every input read once, every result written once (sums over the batch in float32)."""
    batch, heads, queries, keys, slots, width = (shape[letter] for letter in "BHLSMD")
    scores = batch * heads * queries * (keys + slots)
    q, k, memory, lse = (heads * n for n in (batch * queries * width, batch * keys * width, slots * width, batch * queries))
    if direction == "forward":
        return Work(flops=4.0 * scores * width, bytes=number_bytes * (2.0 * (q + k + memory)) + 4.0 * lse, exps=scores)
    moved = number_bytes * (4.0 * q + 4.0 * k + 2.0 * memory) + 4.0 * (2.0 * memory + lse)
    return Work(flops=10.0 * scores * width, bytes=moved, exps=scores)


# ---------------------------------------------------------------------------------------------------------------------- rivals


def concatenated(backend: SDPBackend | None = None) -> Callable[[Inputs], Callable[[], Tensor]]:
    """Memory repeated for every sample and put behind its keys, then torch's attention; with one of its backends, or its choice."""

    def make(inputs: Inputs) -> Callable[[], Tensor]:
        q, k, v, mem_k, mem_v = (inputs[name] for name in NAMES)

        def call() -> Tensor:
            keys, values = (torch.cat([x, slots.expand(len(x), *slots.shape)], dim=1) for x, slots in ((k, mem_k), (v, mem_v)))
            with nullcontext() if backend is None else sdpa_kernel(backend):
                out = scaled_dot_product_attention(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
            return out.transpose(1, 2)

        return call

    return make


def _unsupported_by_backend(name: str) -> Callable[[torch.device, torch.dtype, Shape], tuple[str, ...]]:
    def unsupported_reasons(device: torch.device, dtype: torch.dtype, shape: Shape) -> tuple[str, ...]:
        if device.type == "cpu" and name == "flash":
            return ("it is what the default takes on a CPU",)
        if device.type == "cpu" and name != "math":
            return ("it needs a GPU",)
        if dtype == torch.float32 and name in ("flash", "cuDNN"):
            return ("it computes in float16 and bfloat16",)
        return ()

    return unsupported_reasons


def _sdpa(name: str, backend: SDPBackend) -> Contender:
    about = f"the same with torch's {name} backend"
    return Contender(
        name=f"cat + {name}", about=about, make=concatenated(backend), unsupported_reasons=_unsupported_by_backend(name)
    )


# ------------------------------------------------------------------------------------------------------------------------ ours


def unsupported_by(kernel: Kernel, backend: str) -> Callable[[torch.device, torch.dtype, Shape], tuple[str, ...]]:
    """Why a backend of an op cannot be measured."""

    def unsupported_reasons(device: torch.device, dtype: torch.dtype, shape: Shape) -> tuple[str, ...]:
        sizes = tuple({"S": 0, **shape.sizes}.items())
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            reasons = kernel.reasons(Call(device.type, str(dtype).removeprefix("torch."), sizes))[backend]
        if not reasons and backend == "triton" and calls.is_interpreted():
            return ("the speed of Triton's interpreter says nothing",)
        return reasons

    return unsupported_reasons


class _Direct(torch.autograd.Function):
    """Calls the two functions of a backend without the op around them, each within a context: for variants that are no backend."""

    @staticmethod
    def forward(ctx: Any, forward: Any, backward: Any, around: Any, options: dict[str, Any], *large: Tensor) -> Tensor:
        q, k, v, mem_k, mem_v = large
        inputs = AttentionInputs(q, k, v, mem_k, mem_v, **options, scale=calls.default_scale(q))
        with around():
            out, lse, *threshold = forward(inputs)
        ctx.save_for_backward(out, lse, *large, *threshold)
        ctx.call = (backward, around, options, inputs.scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        out, lse, q, k, v, mem_k, mem_v, *rest = ctx.saved_tensors
        backward, around, options, scale = ctx.call
        threshold = rest[0] if rest else None
        inputs = AttentionInputs(q, k, v, mem_k, mem_v, **options, threshold=threshold, scale=scale)
        with around():
            found = backward(inputs, out, lse, grad_out, None)
        return None, None, None, None, *(x.to(one.dtype) for x, one in zip(found, (q, k, v, mem_k, mem_v), strict=False))


def direct(
    forward: Callable[..., Any], backward: Callable[..., Any], around: Callable[[], AbstractContextManager[Any]]
) -> Callable[[Inputs], Callable[[], Tensor]]:
    """``make`` of a contender that is a variant of a backend: its functions, each called within ``around()``."""

    def make(inputs: Inputs) -> Callable[[], Tensor]:
        nothing = inputs["q"][:, :0]
        large = [inputs.tensors.get(name, nothing) for name in NAMES]
        return lambda: _Direct.apply(forward, backward, around, inputs.options, *large)

    return make


def with_tiles(tiles: Mapping[str, Tiles]) -> AbstractContextManager[Any]:
    """Within this context the Triton kernels use these tiles, by kernel; those that are not named use the table.

    Naming ``grad_query_with_keys`` makes one kernel compute the gradients of queries and keys, naming ``grad_query`` two.
    """
    choose, holds_all = tuning.choose, tuning.holds_all_queries

    def chosen(kernel: str, inputs: AttentionInputs) -> Tiles:
        return tiles[kernel] if kernel in tiles else choose(kernel, inputs)

    def holds(inputs: AttentionInputs) -> bool:
        return "grad_query_with_keys" in tiles or ("grad_query" not in tiles and holds_all(inputs))

    return mock.patch.multiple(tuning, choose=chosen, holds_all_queries=holds)


def triton_with(name: str, tiles: Mapping[str, Tiles]) -> Contender:
    """Our Triton kernels with tiles of choice, for a search over tiles.

    Example:
        >>> small = Tiles(block_l=64, block_n=64, block_d=64, warps=4, stages=2)
        >>> triton_with("triton, 64 x 64", {"forward": small}).is_ours
        True
    """
    make = direct(launch.forward, launch.backward, lambda: with_tiles(tiles))
    about = f"our Triton kernels with other tiles ({', '.join(tiles)})"
    return Contender(name=name, about=about, make=make, unsupported_reasons=unsupported_by(KERNEL, "triton"), is_ours=True)


def _unsupported_by_one_fold(device: torch.device, dtype: torch.dtype, shape: Shape) -> tuple[str, ...]:
    return ("it is what the composite does on a CPU",) if device.type == "cpu" else ()


CONTENDERS = (
    Contender(name="cat + SDPA", about="memory repeated and concatenated, torch's attention as it chooses", make=concatenated()),
    _sdpa("flash", SDPBackend.FLASH_ATTENTION),
    _sdpa("cuDNN", SDPBackend.CUDNN_ATTENTION),
    _sdpa("efficient", SDPBackend.EFFICIENT_ATTENTION),
    _sdpa("math", SDPBackend.MATH),
    Contender(name="naive", about="einsum and softmax, gradients by autograd: backend `reference`", make=by_backend("reference")),
    Contender(name="composite", about="backend `composite`: two flash calls, merged", make=by_backend("composite"), is_ours=True),
    Contender(
        name="composite, one fold",
        about="the same with all samples folded into one row, instead of groups that fill a GPU",
        make=direct(composite.forward, composite.backward, lambda: mock.patch.object(composite, "PROGRAMS_WANTED", 1)),
        unsupported_reasons=_unsupported_by_one_fold,
        is_ours=True,
    ),
    Contender(
        name="triton",
        about="backend `triton`",
        make=by_backend("triton"),
        unsupported_reasons=unsupported_by(KERNEL, "triton"),
        is_ours=True,
    ),
)

BENCHMARK = KernelBenchmark(
    op=NAME,
    shapes=SHAPES,
    contenders=CONTENDERS,
    baseline="cat + SDPA",
    make_inputs=make_inputs,
    check_cases=check_cases,
    reference=lambda inputs: by_backend("reference")(inputs)(),
    work=work,
)
