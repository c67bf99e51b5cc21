"""``mpma.memory_attention`` as an op of torch: the public function, the choice of a backend, gradients, fake tensors, FLOPs."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal, NoReturn, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from medvlp_core.kernels import Backend, Call, Kernel, requested_backend
from medvlp_mpma.kernels import calls
from medvlp_mpma.kernels.dropout import draw_seed
from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.memory_attention import composite, launch, reference, tuning

NAME = "mpma.memory_attention"


@overload
def memory_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    *,
    key_lens: Tensor | None = None,
    key_is_valid: Tensor | None = None,
    query_lens: Tensor | None = None,
    mem_bias: Tensor | None = None,
    gate: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_lse: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def memory_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    *,
    key_lens: Tensor | None = None,
    key_is_valid: Tensor | None = None,
    query_lens: Tensor | None = None,
    mem_bias: Tensor | None = None,
    gate: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_lse: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def memory_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    *,
    key_lens: Tensor | None = None,
    key_is_valid: Tensor | None = None,
    query_lens: Tensor | None = None,
    mem_bias: Tensor | None = None,
    gate: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attend from each query to the keys of its sample and to memory slots that all samples share.

    One softmax: ``s = [scale q k^T ; scale q mem_k^T + mem_bias]``, ``out = softmax(s) [v ; mem_v]``. With ``gate`` two softmaxes:
    ``out = (1 - gate) Attn(q, k, v) + gate Attn(q, mem_k, mem_v)``.

    Neither the memory nor the scores are held once per sample, in no backend but ``reference``. A key counts if it is below the
    sample's length and valid; others may hold anything and get zero gradients. A query beyond ``query_lens``, or one that reaches
    nothing, gives 0 (lse -inf). Dropout acts on the weights; its mask comes from torch's generator. Under autocast the inputs are
    cast to the context's dtype; scores and sums are float32 at least. On a CPU, and on the backend
    ``triton``, gradients repeat bit by bit.

    Shape:
        q (B, L, H, D), k and v (B, S, H, D), mem_k and mem_v (M, H, D), S and M may be 0; key_lens and query_lens (B,) integers,
        key_is_valid (B, S) bool, mem_bias (H,), a log-gate on the memory's mass (-inf closes it), gate (H,) or (B, L, H) in 0..1;
        result (B, L, H, D), with ``return_lse`` also the log of the sum of exponentials (B, L, H), which has a gradient, too.
        ``scale`` > 0 defaults to 1 / sqrt(D).

    Raises:
        KernelError: shapes, dtypes or devices disagree (MV402); the backend that is asked for cannot serve (MV401).

    Example:
        >>> import torch
        >>> q, keys, slots = torch.randn(2, 3, 4, 16), torch.randn(2, 5, 4, 16), torch.randn(7, 4, 16)
        >>> memory_attention(q, keys, keys, slots, slots, key_lens=torch.tensor([5, 2])).shape
        torch.Size([2, 3, 4, 16])

    Reference:
        Cornia et al., Meshed-Memory Transformer for Image Captioning, CVPR 2020 (slots beside keys). Deviations: bias, gate.
    """
    q, k, v, mem_k, mem_v = calls.in_autocast_dtype(q, k, v, mem_k, mem_v)
    scale = calls.default_scale(q) if scale is None else scale
    small = {"key_lens": key_lens, "key_is_valid": key_is_valid, "query_lens": query_lens, "mem_bias": mem_bias, "gate": gate}
    _check(q, k, v, mem_k, mem_v, small, scale, dropout_p, return_lse)
    if gate is not None:  # two calls, each with its own normaliser: a kernel of its own would save no large tensor
        no_keys, no_slots = k[:, :0], mem_k[:0]
        common: dict[str, Any] = {"query_lens": query_lens, "scale": scale, "dropout_p": dropout_p, "backend": backend}
        of_keys = memory_attention(q, k, v, no_slots, no_slots, key_lens=key_lens, key_is_valid=key_is_valid, **common)
        of_slots = memory_attention(q, no_keys, no_keys, mem_k, mem_v, **common)
        return torch.lerp(of_keys, of_slots, gate[..., None].to(q.dtype))
    requested = requested_backend(backend)
    if requested != "reference":
        calls.refuse_forward_mode(NAME, q, k, v, mem_k, mem_v)
    seed = draw_seed(q.device) if dropout_p > 0.0 else None
    inputs = AttentionInputs(q, k, v, mem_k, mem_v, key_lens, key_is_valid, query_lens, mem_bias, None, seed, scale, dropout_p)
    out, lse = reference.memory_attention(inputs) if requested == "reference" else forward_op(*inputs, requested)
    return (out, lse) if return_lse else out


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    small: dict[str, Tensor | None],
    scale: float,
    dropout_p: float,
    return_lse: bool,
) -> None:
    """Refuse a call that does not fit together, with all faults at once."""
    if q.dim() != 4 or k.dim() != 4 or mem_k.dim() != 3:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, mem_k {tuple(mem_k.shape)}"
        calls.refuse(NAME, [f"expected q (B, L, H, D), k (B, S, H, D) and mem_k (M, H, D), found {shapes}"])
    batch, queries, heads, width = q.shape
    keys, slots = k.shape[1], mem_k.shape[0]
    gate, mem_bias = small["gate"], small["mem_bias"]
    faults = calls.shape_faults(
        k=(k, (batch, keys, heads, width)),
        v=(v, (batch, keys, heads, width)),
        mem_k=(mem_k, (slots, heads, width)),
        mem_v=(mem_v, (slots, heads, width)),
        key_lens=(small["key_lens"], (batch,)),
        query_lens=(small["query_lens"], (batch,)),
        key_is_valid=(small["key_is_valid"], (batch, keys)),
        mem_bias=(mem_bias, (heads,)),
    )
    if gate is not None and tuple(gate.shape) not in ((heads,), (batch, queries, heads)):
        faults.append(f"gate has the shape {tuple(gate.shape)}, expected {(heads,)} or {(batch, queries, heads)}")
    faults += calls.place_faults(q, [("k", k), ("v", v), ("mem_k", mem_k), ("mem_v", mem_v)], small.items())
    for name in ("mem_bias", "gate"):
        tensor = small[name]
        if tensor is not None and not tensor.dtype.is_floating_point:
            faults.append(f"{name} is {tensor.dtype}, expected floating-point numbers")
    faults += calls.number_faults(scale, dropout_p)
    mask = small["key_is_valid"]
    if mask is not None and mask.dtype != torch.bool:
        faults.append(f"key_is_valid is {mask.dtype}, expected torch.bool")
    for name in ("key_lens", "query_lens"):
        tensor = small[name]
        if tensor is not None and (tensor.dtype.is_floating_point or tensor.dtype == torch.bool):
            faults.append(f"{name} is {tensor.dtype}, expected whole numbers")
    if gate is not None and (mem_bias is not None or return_lse):
        faults.append("gate has two softmaxes, so that mem_bias changes nothing and there is no common lse")
    calls.refuse(NAME, faults)


# ----------------------------------------------------------------------------------------------------------- choice of the backend


def _unsupported_by_triton(call: Call) -> tuple[str, ...]:
    return (*calls.unsupported_by_triton(call), *(too_wide(call) if call.dtype in calls.DTYPES else ()))


def too_wide(call: Call) -> tuple[str, ...]:
    """Why the heads of a call do not fit into the kernels' tiles; empty if they do."""
    widest = tuning.widest_head(call.dtype)
    return (f"heads are {call['D']} wide, at most {widest} fit in {call.dtype}",) if call["D"] > widest else ()


def _order(call: Call) -> tuple[str, ...]:
    """What ``auto`` may take. Float32 has no tensor cores in our kernels, and long keys are what library kernels are best at."""
    if call.device != "cuda" or call.dtype not in ("float16", "bfloat16"):
        return ("composite",)
    is_ours = call["S"] <= tuning.TRITON_UP_TO_KEYS or bool(call.features)
    return ("triton", "composite") if is_ours else ("composite",)


KERNEL = Kernel(
    name=NAME,
    backends=(
        Backend(name="triton", unsupported_reasons=_unsupported_by_triton),
        Backend(name="composite", unsupported_reasons=lambda call: ()),
        Backend(name="reference", unsupported_reasons=lambda call: ()),
    ),
    order=_order,
    example=Call("cpu", "float32", (("B", 256), ("L", 128), ("S", 50), ("M", 512), ("H", 12), ("D", 64))),
)


def _serving(inputs: AttentionInputs, requested: str) -> ModuleType:
    """The module whose ``forward`` and ``backward`` serve a call."""
    given = {"key_lens": inputs.key_lens, "key_is_valid": inputs.key_is_valid}
    features = [name for name, x in given.items() if x is not None]
    if inputs.dropout_p > 0.0:
        features.append("dropout")
    backend = KERNEL.select(requested, calls.describe(inputs.q, inputs.k.shape[1], inputs.mem_k.shape[0], *features))
    return launch if backend == "triton" else composite


# ----------------------------------------------------------------------------------------------------------------- torch's side


@torch.library.custom_op("medvlp_mpma::memory_attention", mutates_args=())
def forward_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    key_lens: Tensor | None,
    key_is_valid: Tensor | None,
    query_lens: Tensor | None,
    mem_bias: Tensor | None,
    threshold: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
    requested: str,
) -> tuple[Tensor, Tensor]:
    """``out`` and ``lse`` of :class:`AttentionInputs`, by the backend that ``requested`` leads to."""
    inputs = AttentionInputs(q, k, v, mem_k, mem_v, key_lens, key_is_valid, query_lens, mem_bias, threshold, seed, scale, dropout_p)
    with calls.running_on(q):
        out, lse = _serving(inputs, requested).forward(inputs)
    return out.contiguous(), lse.contiguous()


@torch.library.custom_op("medvlp_mpma::memory_attention_backward", mutates_args=())
def backward_op(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mem_k: Tensor,
    mem_v: Tensor,
    key_lens: Tensor | None,
    key_is_valid: Tensor | None,
    query_lens: Tensor | None,
    mem_bias: Tensor | None,
    threshold: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
    requested: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, mem_k, mem_v and mem_bias, by the backend that served the call."""
    inputs = AttentionInputs(q, k, v, mem_k, mem_v, key_lens, key_is_valid, query_lens, mem_bias, threshold, seed, scale, dropout_p)
    with calls.running_on(q):
        found = _serving(inputs, requested).backward(inputs, out, lse, grad_out, grad_lse)
    like = (q, k, v, mem_k, mem_v, lse if mem_bias is None else mem_bias)
    d_q, d_k, d_v, d_mem_k, d_mem_v, d_bias = (x.to(one.dtype).contiguous() for x, one in zip(found, like, strict=True))
    return d_q, d_k, d_v, d_mem_k, d_mem_v, d_bias


@forward_op.register_fake
def _forward_fake(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))


@backward_op.register_fake
def _backward_fake(grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *call: Any) -> tuple[Tensor, ...]:
    inputs = AttentionInputs(*call[:-1])
    of_bias = lse if inputs.mem_bias is None else inputs.mem_bias
    return *(x.new_empty(x.shape) for x in inputs[:5]), of_bias.new_empty(lse.shape[-1:])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[:-3])
    ctx.numbers = inputs[-3:]


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    out, lse, *tensors = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    *large, d_bias = backward_op(grad_out, grad_lse, out, lse, *tensors, *ctx.numbers)
    has_bias = AttentionInputs(*tensors).mem_bias is not None
    return *large, None, None, None, d_bias if has_bias else None, *(None,) * 5


def _refuse_again(*_: Any) -> NoReturn:
    calls.refuse_derivative(NAME, "its gradient cannot be differentiated again")


forward_op.register_autograd(_backward, setup_context=_save)
backward_op.register_autograd(_refuse_again)


def _products(q: Any, k: Any, mem_k: Any) -> int:
    """Multiply-adds of one matrix product between all queries and all columns, times two: 2 B L H (S + M) D."""
    batch, queries, heads, width = q
    return 2 * batch * queries * heads * (k[1] + mem_k[0]) * width


@register_flop_formula(torch.ops.medvlp_mpma.memory_attention)
def _forward_flops(q: Any, k: Any, v: Any, mem_k: Any, *others: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * _products(q, k, mem_k)


@register_flop_formula(torch.ops.medvlp_mpma.memory_attention_backward)
def _backward_flops(
    grad_out: Any, grad_lse: Any, out: Any, lse: Any, q: Any, k: Any, v: Any, mem_k: Any, *others: Any, **options: Any
) -> int:
    return 5 * _products(q, k, mem_k)
