"""Memory attention: every path against the float64 definition, in output and all gradients."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_calls import Case, attend, cases, errors, too_large, upstream
from medvlp_mpma.kernels.memory_attention.op import memory_attention
from torch import Tensor

BACKENDS = ("composite", "triton")

#: The interpreter takes a quarter of a second a call: looking for a smaller failing example would take minutes.
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)

#: Everything on at once, with sizes that no tile divides.
RAGGED = Case(
    batch=3,
    queries=37,
    keys=33,
    slots=35,
    heads=2,
    width=24,
    has_key_lens=True,
    has_key_mask=True,
    has_query_lens=True,
    has_bias=True,
)


def check(case: Case, backend: str, dtype: torch.dtype, *, with_lse: bool = False) -> None:
    inputs = case.inputs(dtype)
    wanted = attend(inputs, "reference", torch.float64, with_lse=with_lse)
    found = attend(inputs, backend, dtype, with_lse=with_lse)
    assert too_large(errors(found, wanted), dtype, case.spread) == {}


@settings(deadline=None, max_examples=200)
@given(case=cases())
def test_composite(case: Case) -> None:
    check(case, "composite", torch.float32)


@settings(deadline=None, max_examples=12, phases=NO_SHRINKING)
@given(case=cases(batch=2))
def test_triton_float32(case: Case) -> None:
    check(case, "triton", torch.float32)


@settings(deadline=None, max_examples=8, phases=NO_SHRINKING)
@given(case=cases(batch=2, spread=1.0))
def test_triton_float16(case: Case) -> None:
    check(case, "triton", torch.float16)


@pytest.mark.long
@settings(deadline=None, max_examples=300, phases=NO_SHRINKING)
@given(case=cases(batch=2), dtype=st.sampled_from([torch.float32, torch.float16]))
def test_triton_on_many_cases(case: Case, dtype: torch.dtype) -> None:
    check(attrs.evolve(case, spread=1.0) if dtype == torch.float16 else case, "triton", dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_composite_in_other_dtypes(dtype: torch.dtype) -> None:
    check(RAGGED, "composite", dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_lse_has_a_gradient(backend: str, dropout_p: float) -> None:
    check(Case(has_key_lens=True, has_bias=True, dropout_p=dropout_p), backend, torch.float32, with_lse=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_reads_uninitialised_memory(backend: str) -> None:
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        check(RAGGED, backend, torch.float32)
        check(Case(keys=0), backend, torch.float32)
        check(Case(slots=0), backend, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------------------------- as exact as plain code


def plain_code(q: Tensor, k: Tensor, v: Tensor, mem_k: Tensor, mem_v: Tensor, scale: float, *, is_library: bool) -> Tensor:
    """What one would write: repeat the memory, concatenate, softmax or the library's attention; in the dtype of the inputs."""
    keys, values = (torch.cat([x, slot.expand(len(q), *slot.shape)], dim=1) for x, slot in ((k, mem_k), (v, mem_v)))
    if is_library:
        q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))
        return torch.nn.functional.scaled_dot_product_attention(q, keys, values, scale=scale).transpose(1, 2)
    return torch.einsum("bhls,bshd->blhd", (scale * torch.einsum("blhd,bshd->bhls", q, keys)).softmax(dim=-1), values)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0])  # like flash attention, float32 loses more once scores pass about 50
def test_error_is_at_most_twice_that_of_plain_code(backend: str, dtype: torch.dtype, spread: float) -> None:
    inputs = Case(batch=2, queries=37, keys=33, slots=35, width=24, spread=spread).inputs(dtype)
    wanted = attend(inputs, "reference", torch.float64)
    found = attend(inputs, backend, dtype)
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("q", "k", "v", "mem_k", "mem_v")}
    # The composite is made of the library's calls, whose exponentials on a CPU are less exact than those of softmax.
    out = plain_code(**leaves, scale=inputs["scale"], is_library=backend == "composite")
    plain = {"out": out.detach()}
    grads = torch.autograd.grad((out * upstream(out)).sum(), list(leaves.values()))
    plain |= {f"grad {name}": grad for name, grad in zip(leaves, grads, strict=True)}

    def rms(x: dict[str, Tensor], name: str) -> float:
        return (x[name].double() - wanted[name]).square().mean().sqrt().item()

    one_rounding = torch.finfo(dtype).eps
    for name in plain:
        allowed = (2.0 if name == "out" else 3.0) * rms(plain, name) + 0.25 * one_rounding * wanted[name].abs().max().item()
        assert rms(found, name) <= allowed, name


# -------------------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_padding_never_gets_through(backend: str) -> None:
    inputs = RAGGED.inputs(torch.float32)
    found = attend(inputs, backend, torch.float32)
    assert all(x.isfinite().all() for x in found.values())
    masked = (torch.arange(RAGGED.keys) >= inputs["key_lens"][:, None]) | ~inputs["key_is_valid"]
    lost = torch.arange(RAGGED.queries) >= inputs["query_lens"][:, None]
    assert masked.any()
    assert lost.any()
    assert (found["grad k"][masked] == 0).all()
    assert (found["grad v"][masked] == 0).all()
    assert (found["out"][lost] == 0).all()
    assert (found["grad q"][lost] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_gradient_at_padded_queries_does_not_get_through(backend: str) -> None:
    inputs = RAGGED.inputs(torch.float32)
    leaves = {name: inputs[name].requires_grad_() for name in ("q", "k", "v", "mem_k", "mem_v", "mem_bias")}
    out = memory_attention(**(inputs | leaves), backend=backend)
    lost = torch.arange(RAGGED.queries) >= inputs["query_lens"][:, None]
    grads = torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out).masked_fill(lost[..., None, None], math.nan))
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_query_that_reaches_nothing_gives_zero(backend: str) -> None:
    inputs = Case(keys=4, slots=0).inputs(torch.float32) | {"key_lens": torch.tensor([0, 3])}
    found = attend(inputs, backend, torch.float32)
    assert (found["out"][0] == 0).all()
    assert (found["lse"][0] == -1e4).all()
    assert (found["grad q"][0] == 0).all()
    assert found["out"][1].abs().sum() > 0
    empty = attend(Case(keys=0, slots=0).inputs(torch.float32), backend, torch.float32)
    assert (empty["out"] == 0).all()


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_closed_memory_is_plain_attention(backend: str) -> None:
    inputs = Case(has_bias=True).inputs(torch.float32)
    closed = memory_attention(**(inputs | {"mem_bias": torch.full((2,), -math.inf)}), backend=backend)
    q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=inputs["scale"])
    torch.testing.assert_close(closed, plain.transpose(1, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("per_query", [False, True])
def test_gate_mixes_two_attentions(backend: str, per_query: bool) -> None:
    inputs = Case(has_key_lens=True, has_query_lens=True).inputs(torch.float32)
    gate = torch.rand((2, 5, 2) if per_query else (2,), requires_grad=True)
    out = memory_attention(**inputs, gate=gate, backend=backend)
    nothing = inputs | {"key_lens": None, "k": inputs["k"][:, :0], "v": inputs["v"][:, :0]}
    of_keys = memory_attention(**(inputs | {"mem_k": inputs["mem_k"][:0], "mem_v": inputs["mem_v"][:0]}), backend="reference")
    of_slots = memory_attention(**nothing, backend="reference")
    torch.testing.assert_close(out, (1 - gate)[..., None] * of_keys + gate[..., None] * of_slots)
    (found,) = torch.autograd.grad(out.sum(), gate)
    change = (of_slots - of_keys).sum(-1)
    torch.testing.assert_close(found, change if per_query else change.sum((0, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend: str) -> None:
    torch.manual_seed(0)
    inputs = Case(batch=2, queries=4, keys=4, slots=4, heads=2, width=8).inputs(torch.float32)
    packed = torch.randn(2, 4, 3, 2, 8)
    inputs |= {"q": packed[:, :, 0], "k": packed[:, :, 1], "v": packed[:, :, 2]}  # as a joint projection leaves them
    inputs |= {"mem_k": torch.randn(8, 2, 4).permute(2, 1, 0), "mem_v": torch.randn(1, 2, 8).expand(4, 2, 8)}
    assert not any(inputs[name].is_contiguous() for name in ("q", "k", "v", "mem_k", "mem_v"))
    in_rows = {name: x.contiguous() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    found, of_rows = (attend(one, backend, torch.float32) for one in (inputs, in_rows))
    wanted = attend(inputs, "reference", torch.float64)
    assert too_large(errors(found, wanted), torch.float32) == {}
    assert too_large(errors(of_rows, wanted), torch.float32) == {}
    if backend == "triton":  # ours: the same bits; the library's kernels may add in another order
        assert [name for name in found if not torch.equal(found[name], of_rows[name])] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_of_small_tensors_do_not_matter(backend: str) -> None:
    inputs = Case(batch=4, queries=5, keys=4, slots=6).inputs(torch.float32)
    small = {
        "key_lens": torch.tensor([3, 9, 2, 9, 0, 9, 4, 9])[::2],
        "query_lens": torch.tensor([4]).expand(4),
        "key_is_valid": (torch.rand(4, 4) > 0.4).T,
        "mem_bias": torch.tensor([1.5]).expand(2),
    }
    packed = {name: x.contiguous() for name, x in small.items()}
    found, wanted = (memory_attention(**(inputs | some), backend=one) for some, one in ((small, backend), (packed, "reference")))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_repeat_bit_by_bit(backend: str) -> None:
    inputs = Case(batch=3, queries=37, keys=33, slots=35, has_bias=True, dropout_p=0.3).inputs(torch.float32)
    first, second = (attend(inputs, backend, torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tensor_with_a_number_for_each_query_and_column_is_saved(backend: str) -> None:
    inputs = Case(batch=3, queries=17, keys=33, slots=35, has_bias=True).inputs(torch.float32)
    sizes = []
    leaves = {name: inputs[name].requires_grad_() for name in ("q", "k", "v", "mem_k", "mem_v", "mem_bias")}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        memory_attention(**(inputs | leaves), backend=backend)
    assert max(sizes) == inputs["k"].numel()
    assert sum(sizes) <= sum(x.numel() for x in leaves.values()) + inputs["q"].numel() + 3 * 17 * 2


def test_dropout_drops_the_same_weights_in_every_path() -> None:
    inputs = Case(batch=2, queries=17, keys=5, slots=20, width=25).inputs(torch.float32)
    inputs |= {
        "v": torch.eye(25)[:5].expand(2, 2, 5, 25).transpose(1, 2),
        "mem_v": torch.eye(25)[5:].expand(2, 20, 25).transpose(0, 1),
    }
    weights = {}
    for backend in ("reference", *BACKENDS):
        torch.manual_seed(3)
        weights[backend] = memory_attention(**(inputs | {"dropout_p": 0.25}), backend=backend)
    kept = memory_attention(**inputs, backend="reference")
    for backend in BACKENDS:
        assert torch.equal(weights[backend] == 0, weights["reference"] == 0)
    is_kept = weights["reference"] != 0
    torch.testing.assert_close(weights["reference"][is_kept], kept[is_kept] / 0.75)
    assert abs(is_kept.double().mean().item() - 0.75) < 0.03
