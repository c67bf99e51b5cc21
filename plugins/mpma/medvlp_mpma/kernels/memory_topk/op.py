"""``mpma.memory_topk`` as an op of torch: the public function, the choice of a backend, gradients, fake tensors, FLOPs."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from medvlp_core.kernels import Backend, Call, Kernel, requested_backend
from medvlp_mpma.kernels import calls, chunked
from medvlp_mpma.kernels.dropout import draw_seed
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention import launch as attention_launch
from medvlp_mpma.kernels.memory_attention.op import memory_attention, too_wide
from medvlp_mpma.kernels.memory_topk import launch, reference, tuning

NAME = "mpma.memory_topk"


def memory_topk(
    q: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    topk: int,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attend from each query to its K best memory slots, chosen per head.

    ``s = scale q mem_k^T``; ``S = {j : s_j >= the K-th largest s}``; ``out = sum_{j in S} softmax_S(s)_j mem_v_j``.

    Slots that tie with the K-th are all winners; only winners get a gradient; ``topk >= M`` is attention over all slots
    (``mpma.memory_attention``). Scores are compared in float32 at least. No tensor with a number per query and slot is saved, in no
    backend but ``reference``. Dropout acts on the weights after the selection. Under autocast the inputs are cast to its dtype.

    Shape:
        q (B, L, H, D), mem_k and mem_v (M, H, D) with M >= 1, result (B, L, H, D); ``scale`` > 0 defaults to 1 / sqrt(D).

    Raises:
        KernelError: shapes, dtypes or devices disagree (MV402); the backend that is asked for cannot serve (MV401).

    Example:
        >>> import torch
        >>> q, slots = torch.randn(2, 3, 4, 16), torch.randn(100, 4, 16)
        >>> memory_topk(q, slots, slots, topk=8).shape
        torch.Size([2, 3, 4, 16])

    Reference:
        Chen et al., Cross-modal Memory Networks for Radiology Report Generation, ACL 2021. Deviation: ties are all kept.
    """
    q, mem_k, mem_v = calls.in_autocast_dtype(q, mem_k, mem_v)
    scale = calls.default_scale(q) if scale is None else scale
    _check(q, mem_k, mem_v, topk, scale, dropout_p)
    no_keys = q[:, :0]
    if topk >= mem_k.shape[0]:
        return memory_attention(q, no_keys, no_keys, mem_k, mem_v, scale=scale, dropout_p=dropout_p, backend=backend)
    requested = requested_backend(backend)
    seed = draw_seed(q.device) if dropout_p > 0.0 else None
    if requested == "reference":
        inputs = AttentionInputs(q, no_keys, no_keys, mem_k, mem_v, seed=seed, scale=scale, dropout_p=dropout_p)
        return reference.memory_topk(inputs, topk)[0]
    calls.refuse_forward_mode(NAME, q, mem_k, mem_v)
    return forward_op(q, mem_k, mem_v, seed, topk, scale, dropout_p, requested)[0]


def _check(q: Tensor, mem_k: Tensor, mem_v: Tensor, topk: int, scale: float, dropout_p: float) -> None:
    if q.dim() != 4 or mem_k.dim() != 3:
        shapes = f"q {tuple(q.shape)}, mem_k {tuple(mem_k.shape)}"
        calls.refuse(NAME, [f"expected q (B, L, H, D) and mem_k (M, H, D), found {shapes}"])
    slots, (_, _, heads, width) = mem_k.shape[0], q.shape
    faults = calls.shape_faults(mem_k=(mem_k, (slots, heads, width)), mem_v=(mem_v, (slots, heads, width)))
    faults += calls.place_faults(q, [("mem_k", mem_k), ("mem_v", mem_v)], [])
    faults += calls.number_faults(scale, dropout_p)
    faults += (
        [] if isinstance(topk, (int, torch.SymInt)) and topk >= 1 else [f"topk is {topk!r}, expected a whole number from 1 on"]
    )
    faults += ["the memory has no slots"] if slots == 0 else []
    calls.refuse(NAME, faults)


# ----------------------------------------------------------------------------------------------------------- choice of the backend


def _unsupported_by_triton(call: Call) -> tuple[str, ...]:
    reasons = calls.unsupported_by_triton(call)
    if call.dtype in calls.DTYPES:
        reasons += tuning.unsupported_reasons(call["M"], call["D"], call.dtype) or too_wide(call)
    return tuple(reasons)


def _order(call: Call) -> tuple[str, ...]:
    """What ``auto`` may take. Float32 has no tensor cores in our kernels."""
    is_for_triton = call.device == "cuda" and call.dtype in ("float16", "bfloat16")
    return ("triton", "composite") if is_for_triton else ("composite",)


KERNEL = Kernel(
    name=NAME,
    backends=(
        Backend(name="triton", unsupported_reasons=_unsupported_by_triton),
        Backend(name="composite", unsupported_reasons=lambda call: ()),
        Backend(name="reference", unsupported_reasons=lambda call: ()),
    ),
    order=_order,
    example=Call("cpu", "float32", (("B", 256), ("L", 149), ("S", 0), ("M", 2048), ("H", 12), ("D", 64))),
)


def _backend(requested: str, q: Tensor, mem_k: Tensor) -> str:
    """The backend of a call; forward and backward ask the same, and so go the same way."""
    return KERNEL.select(requested, calls.describe(q, 0, mem_k.shape[0]))


# ----------------------------------------------------------------------------------------------------------------- torch's side


@torch.library.custom_op("medvlp_mpma::memory_topk", mutates_args=())
def forward_op(
    q: Tensor, mem_k: Tensor, mem_v: Tensor, seed: Tensor | None, topk: int, scale: float, dropout_p: float, requested: str
) -> tuple[Tensor, Tensor, Tensor]:
    """``out`` (B, L, H, D), ``lse`` and the threshold of winners in units of ``q mem_k^T`` (B, L, H), for ``topk`` < M."""
    no_keys = q[:, :0]
    inputs = AttentionInputs(q, no_keys, no_keys, mem_k, mem_v, seed=seed, scale=scale, dropout_p=dropout_p)
    with calls.running_on(q):
        return (launch if _backend(requested, q, mem_k) == "triton" else chunked).forward(inputs, topk)


@forward_op.register_fake
def _forward_fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=dtype), q.new_empty(q.shape[:-1], dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, mem_k, mem_v, seed, _, *ctx.numbers = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*output, q, mem_k, mem_v, seed)


@torch.library.custom_op("medvlp_mpma::memory_topk_backward", mutates_args=())
def backward_op(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    threshold: Tensor,
    q: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
    requested: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, mem_k and mem_v: those of memory attention under the threshold, by the backend that served the call."""
    no_keys = q[:, :0]
    inputs = AttentionInputs(q, no_keys, no_keys, mem_k, mem_v, threshold=threshold, seed=seed, scale=scale, dropout_p=dropout_p)
    with calls.running_on(q):
        serving = attention_launch if _backend(requested, q, mem_k) == "triton" else chunked
        found = serving.backward(inputs, out, lse, grad_out, grad_lse)
    return found.q.contiguous(), found.mem_k.to(mem_k.dtype).contiguous(), found.mem_v.to(mem_v.dtype).contiguous()


@backward_op.register_fake
def _backward_fake(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, threshold: Tensor, q: Tensor, mem_k: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), mem_k.new_empty(mem_k.shape), mem_k.new_empty(mem_k.shape)


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    out, lse, threshold, q, mem_k, mem_v, seed = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grads = backward_op(grad_out, grad_lse, out, lse, threshold, q, mem_k, mem_v, seed, *ctx.numbers)
    return *grads, *(None,) * 5


def _refuse_again(*_: Any) -> NoReturn:
    calls.refuse_derivative(NAME, "its gradient cannot be differentiated again")


forward_op.register_autograd(_backward, setup_context=_save)
backward_op.register_autograd(_refuse_again)


def _product(q: Any, mem_k: Any) -> int:
    """The operations of one product between all queries and all slots; comparisons are not counted."""
    batch, queries, heads, width = q
    return 2 * batch * queries * heads * mem_k[0] * width


@register_flop_formula(torch.ops.medvlp_mpma.memory_topk)
def _forward_flops(q: Any, mem_k: Any, *others: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * _product(q, mem_k)


@register_flop_formula(torch.ops.medvlp_mpma.memory_topk_backward)
def _backward_flops(
    grad_out: Any, grad_lse: Any, out: Any, lse: Any, threshold: Any, q: Any, mem_k: Any, *others: Any, **options: Any
) -> int:
    return 5 * _product(q, mem_k)
