"""Top-k memory attention: every path against the float64 definition, the selection with ties and at the borders included."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_calls import Case, answer, cases, errors, too_large
from medvlp_mpma.kernels.memory_attention.op import memory_attention
from medvlp_mpma.kernels.memory_topk.op import memory_topk
from torch import Tensor

BACKENDS = ("composite", "triton")
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
TOPK = st.sampled_from([1, 2, 7, 32, 34, 35, 99])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def check(case: Case, topk: int, backend: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    wanted = answer(inputs, topk, "reference", torch.float64)
    found = answer(inputs, topk, backend, dtype)
    assert too_large(errors(found, wanted), dtype, case.spread) == {}


@settings(deadline=None, max_examples=150)
@given(case=cases(keys=0, slots=35, has_query_lens=False), topk=TOPK)
def test_composite(case: Case, topk: int) -> None:
    check(case, topk, "composite", torch.float32)


@settings(deadline=None, max_examples=6, phases=NO_SHRINKING)
@given(case=cases(batch=2, keys=0, slots=35, has_query_lens=False), topk=TOPK)
def test_triton_float32(case: Case, topk: int) -> None:
    check(case, topk, "triton", torch.float32)


@settings(deadline=None, max_examples=4, phases=NO_SHRINKING)
@given(case=cases(batch=2, keys=0, slots=35, spread=1.0, has_query_lens=False), topk=TOPK)
def test_triton_float16(case: Case, topk: int) -> None:
    check(case, topk, "triton", torch.float16)


@pytest.mark.long
@settings(deadline=None, max_examples=150, phases=NO_SHRINKING)
@given(
    case=cases(batch=2, keys=0, slots=35, has_query_lens=False),
    topk=TOPK,
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_triton_on_many_cases(case: Case, topk: int, dtype: torch.dtype) -> None:
    check(attrs.evolve(case, spread=1.0) if dtype == torch.float16 else case, topk, "triton", dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slots", [1, 2])
def test_smallest_memories(backend: str, slots: int) -> None:
    check(Case(keys=0, slots=slots), 1, backend, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_reads_uninitialised_memory(backend: str) -> None:
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        check(Case(batch=3, queries=17, keys=0, slots=35, width=24), 5, backend, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_slots_that_tie_with_the_last_winner_all_win(backend: str) -> None:
    q, scores = torch.ones(1, 1, 1, 1), torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0])
    values = torch.tensor([1.0, 10.0, 100.0, 1000.0, 1e4]).reshape(5, 1, 1).requires_grad_()
    out = memory_topk(q, scores.reshape(5, 1, 1), values, 2, backend=backend)
    weights = scores[:3].softmax(dim=0)
    torch.testing.assert_close(out.flatten(), (weights @ values.flatten()[:3]).reshape(1))
    out.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad.flatten(), torch.cat([weights, torch.zeros(2)]))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_memory_of_equal_slots_answers_with_all(backend: str) -> None:
    # Eighths: their products are exact. NumPy's BLAS, which the interpreter uses, adds up equal rows in different orders.
    q, key = ((8 * random(*shape)).round().float() / 8 for shape in ((1, 4, 2, 8), (1, 2, 8)))
    key = key.expand(9, 2, 8)
    values = random(9, 2, 8, seed=1).float()
    torch.testing.assert_close(memory_topk(q, key, values, 3, backend=backend), values.mean(dim=0).expand(1, 4, 2, 8))


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_only_winners_get_a_gradient(backend: str) -> None:
    q, k, v = (x.float().requires_grad_() for x in (random(1, 1, 1, 4), random(20, 1, 4), random(20, 1, 4, seed=1)))
    memory_topk(q, k, v, 3, backend=backend).sum().backward()
    assert k.grad is not None
    assert v.grad is not None
    assert (k.grad.flatten(1).abs().sum(dim=1) > 0).sum() == 3
    assert (v.grad.flatten(1).abs().sum(dim=1) > 0).sum() == 3


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_all_slots_are_plain_softmax_attention(backend: str) -> None:
    q, k, v = random(2, 3, 2, 4).float(), random(5, 2, 4).float(), random(5, 2, 4, seed=1).float()
    wanted = memory_attention(q, q[:, :0], q[:, :0], k, v, backend="reference")
    for topk in (5, 6, 1000):
        torch.testing.assert_close(memory_topk(q, k, v, topk, backend=backend), wanted)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_nan_is_not_lost(backend: str) -> None:
    q, slots = random(1, 3, 1, 4).float(), random(9, 1, 4).float()
    q[0, 1] = math.nan
    out = memory_topk(q, slots, slots, 2, backend=backend)
    assert out[0, 1].isnan().all()
    assert out[0, [0, 2]].isfinite().all()


# --------------------------------------------------------------------------------------------------------------------- the rest


def gather_topk(q: Tensor, mem_k: Tensor, mem_v: Tensor, topk: int) -> Tensor:
    """R2GenCMN's own form: pick the K best slots, then softmax over them."""
    out = torch.empty_like(q)
    for b, position, head in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        scores = mem_k[:, head] @ q[b, position, head] / math.sqrt(q.shape[-1])
        best, index = scores.topk(topk)
        out[b, position, head] = best.softmax(dim=0) @ mem_v[index, head]
    return out


@settings(deadline=None, max_examples=15)
@given(slots=st.integers(1, 9), topk=st.integers(1, 9), heads=st.integers(1, 3), seed=st.integers(0, 99))
def test_the_definition_equals_gathering(slots: int, topk: int, heads: int, seed: int) -> None:
    q, k, v = random(2, 3, heads, 4, seed=seed), random(slots, heads, 4, seed=seed), random(slots, heads, 4, seed=seed + 1)
    found = memory_topk(q, k, v, topk, backend="reference")
    torch.testing.assert_close(found, gather_topk(q, k, v, min(topk, slots)), rtol=1e-12, atol=1e-12)


def test_gradients_of_the_definition() -> None:
    leaves = [x.requires_grad_() for x in (random(1, 2, 2, 3), random(5, 2, 3), random(5, 2, 3, seed=1))]
    assert torch.autograd.gradcheck(lambda *x: memory_topk(*x, 2, backend="reference"), leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tensor_with_a_number_for_each_query_and_slot_is_saved(backend: str) -> None:
    q, k, v = (x.float().requires_grad_() for x in (random(3, 17, 2, 8), random(35, 2, 8), random(35, 2, 8)))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        memory_topk(q, k, v, 4, backend=backend)
    assert sum(sizes) == 2 * q.numel() + 2 * k.numel() + 2 * 3 * 17 * 2, "q, out, both memories, lse and threshold"


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_change_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from medvlp_mpma.kernels import chunked

    inputs = Case(batch=5, queries=3, keys=0, slots=35, dropout_p=0.3).inputs(torch.float32)
    whole = answer(inputs, 4, backend, torch.float32)
    monkeypatch.setattr(chunked, "SCORES_AT_A_TIME", {"cpu": 1, "cuda": 1})
    parts = answer(inputs, 4, backend, torch.float32)
    assert too_large(errors(parts, whole), torch.float32) == {}
