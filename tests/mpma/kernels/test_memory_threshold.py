"""The threshold kernel in Triton's interpreter: its separator splits winners from losers as a sort in float64 does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_mpma.kernels import calls as calls_of_kernels
from medvlp_mpma.kernels.memory_topk import tuning
from medvlp_mpma.kernels.memory_topk.launch import memory_threshold
from medvlp_mpma.kernels.memory_topk.tuning import Tiles
from torch import Tensor

#: The interpreter computes with NumPy, which warns of infinities.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN, so that a number that is not written shows."""
    empty = torch.empty

    def new(*args: object, **options: object) -> Tensor:
        return empty(*args, **options).fill_(float("nan"))  # type: ignore[call-overload]

    with mock.patch("torch.empty", new):
        yield


def threshold_of(q: Tensor, mem_k: Tensor, topk: int, tiles: Tiles | None = None) -> Tensor:
    """The kernel's result, checked for its form."""
    with poisoned():
        found = memory_threshold(q, mem_k, topk, tiles)
    assert found.shape == q.shape[:-1]
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    return found.double()


def scores_of(q: Tensor, mem_k: Tensor) -> Tensor:
    """Raw scores (B, L, H, M) in float64."""
    return torch.einsum("blhd,mhd->blhm", q.double(), mem_k.double())


def kth(scores: Tensor, topk: int) -> Tensor:
    """The K-th largest score, (B, L, H, 1)."""
    return scores.topk(topk, dim=-1).values[..., -1:]


def check_exact(q: Tensor, mem_k: Tensor, topk: int, tiles: Tiles | None = None) -> None:
    """For inputs whose scores float32 holds without rounding: the separator lies above every loser and not above any winner."""
    scores = scores_of(q, mem_k)
    assert torch.equal(scores.float().double(), scores)
    least = kth(scores, topk)
    found = threshold_of(q, mem_k, topk, tiles)[..., None]
    assert torch.equal(scores >= found, scores >= least)
    assert (found <= least).all()
    losers = scores.masked_fill(scores >= least, float("-inf")).amax(dim=-1, keepdim=True)
    middle = ((losers + least) / 2).float()
    between = torch.where(middle > losers, middle, least.float())
    assert torch.equal(found.float(), torch.where(losers > float("-inf"), between, losers.float())), "-inf where nobody loses"


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "heads first": lambda x: x.transpose(-2, -3).contiguous().transpose(-2, -3),
    "wider rows": lambda x: torch.cat([x, torch.full_like(x, torch.nan)], dim=-1)[..., : x.shape[-1]],
    "every other": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], dim=-1).flatten(-2)[..., ::2],
    "one row for all": lambda x: x[:1].expand(x.shape),
}


@attrs.frozen(kw_only=True)
class Call:
    """Sizes, memory layouts and tiles of a call."""

    batch: int
    queries: int
    heads: int
    width: int
    slots: int
    topk: int
    layout_q: str
    layout_k: str
    tiles: Tiles
    seed: int

    def tensors(self, new: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """q and mem_k, filled by ``new``; every third slot is a copy of another one in half of the calls."""
        torch.manual_seed(self.seed)
        q = new(self.batch, self.queries, self.heads, self.width)
        mem_k = new(self.slots, self.heads, self.width)
        if self.seed % 2:
            mem_k[::3] = mem_k[torch.randint(0, self.slots, mem_k[::3].shape[:1])]
        return LAYOUTS[self.layout_q](q), LAYOUTS[self.layout_k](mem_k)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Calls with few rows, up to 70 slots, and tiles that rarely divide them."""
    slots = draw(st.integers(2, 70))
    width = draw(st.sampled_from([8, 16, 24, 64]))
    piece, chunk = draw(st.sampled_from([16, 32])), draw(st.sampled_from([16, 32]))
    counts = {"pieces": -(-slots // piece), "chunks": -(-width // chunk), "warps": 1, "stages": 1}
    tiles = Tiles(queries=draw(st.sampled_from([4, 16])), piece=piece, chunk=chunk, **counts)
    return Call(
        batch=draw(st.integers(1, 3)),
        queries=draw(st.integers(1, 4)),
        heads=draw(st.integers(1, 2)),
        width=width,
        slots=slots,
        topk=draw(st.integers(1, slots - 1) | st.just(slots - 1)),
        layout_q=draw(st.sampled_from(sorted(LAYOUTS))),
        layout_k=draw(st.sampled_from(sorted(set(LAYOUTS) - {"one row for all"}))),
        tiles=tiles,
        seed=draw(st.integers(0, 9999)),
    )


@settings(deadline=None, max_examples=25)
@given(call=calls(), largest=st.sampled_from([0, 1, 4]), exponents=st.tuples(st.integers(-74, 55), st.integers(-74, 55)))
def test_integers_times_powers_of_two(call: Call, largest: int, exponents: tuple[int, int]) -> None:
    """Many ties, zeros, and scores from the smallest float32 numbers to 1e36."""
    scales = iter(exponents)
    tensors = call.tensors(lambda *shape: torch.randint(-largest, largest + 1, shape) * 2.0 ** next(scales))
    check_exact(*tensors, call.topk, call.tiles)


@settings(deadline=None, max_examples=10)
@given(call=calls(), is_negative=st.booleans())
def test_float16(call: Call, is_negative: bool) -> None:
    signs = iter([1.0, -1.0 if is_negative else 1.0])
    low = 1 if is_negative else -4
    tensors = call.tensors(lambda *shape: (torch.randint(low, 5, shape) * next(signs) / 8).half())
    check_exact(*tensors, call.topk, call.tiles)


@settings(deadline=None, max_examples=20)
@given(call=calls(), exponents=st.tuples(st.integers(-20, 20), st.integers(-20, 20)), shift=st.sampled_from([0.0, 3.0, -3.0]))
def test_any_numbers(call: Call, exponents: tuple[int, int], shift: float) -> None:
    """Scores that float32 rounds: only those as near to the K-th as rounding errors may change sides. Some calls overflow."""
    scales = iter(exponents)
    q, mem_k = call.tensors(lambda *shape: (torch.randn(shape) + shift) * 10.0 ** next(scales))
    scores = scores_of(q, mem_k)
    found = threshold_of(q, mem_k, call.topk, call.tiles)[..., None]
    if scores.abs().amax() > 1e37:
        return  # sums of infinities of both signs: that it ends is all we ask
    least = kth(scores, call.topk)
    rounding = 1e-5 * torch.einsum("blhd,mhd->blhm", q.double().abs(), mem_k.double().abs()) + 1e-43
    is_clear = (scores - least).abs() > 2 * rounding
    assert torch.equal((scores >= found) & is_clear, (scores >= least) & is_clear)


def test_all_scores_equal() -> None:
    """Everything ties with the K-th: all slots win, and the separator is one that no rounding gets below."""
    q, mem_k = torch.ones(1, 3, 1, 16), torch.ones(20, 1, 16)
    assert (threshold_of(q, mem_k, 5) == float("-inf")).all()
    assert (threshold_of(0 * q, mem_k, 5) == float("-inf")).all()


def test_zeros_of_both_signs_tie() -> None:
    mem_k = torch.tensor([1.0, -0.0, 0.0, -0.0, -1.0])[:, None, None].expand(5, 1, 8)
    found = threshold_of(torch.eye(8)[:1].view(1, 1, 1, 8), mem_k, 2)
    assert found.item() == -0.5


def test_neighbouring_numbers_are_separated() -> None:
    """Where no number lies between the smallest winner and the largest loser, the winner is the separator."""
    for number in (1.0, -1.0, 1e-45, 3e38, -3e38, 1e-38):
        pair = torch.tensor([number, number]).double().float()
        pair[1] = torch.nextafter(pair[0], torch.tensor(float("-inf")))
        mem_k = torch.cat([pair, torch.tensor([float("-inf")])])[torch.tensor([2, 1, 0])]
        q = torch.ones(1, 1, 1, 1)
        found = threshold_of(q, mem_k.view(3, 1, 1), 1)
        assert found.item() == pair[0].double().item(), number


def test_infinite_scores() -> None:
    infinity = float("inf")
    mem_k = torch.tensor([infinity, 2.0, -infinity, infinity, 1.0, -infinity]).view(6, 1, 1)
    expected = {1: infinity, 2: infinity, 3: 1.5, 4: -infinity, 5: -infinity}
    assert {topk: threshold_of(torch.ones(1, 1, 1, 1), mem_k, topk).item() for topk in expected} == expected


@pytest.mark.parametrize("topk", [1, 7, 39])
def test_a_row_with_nan_ends_and_spoils_no_other(topk: int) -> None:
    torch.manual_seed(0)
    q, mem_k = torch.randint(-3, 4, (1, 9, 2, 8)).float(), torch.randint(-3, 4, (40, 2, 8)).float()
    clean = threshold_of(q, mem_k, topk)
    q[0, 4] = torch.nan
    q[0, 5, 0, 0] = float("inf")
    found = threshold_of(q, mem_k, topk)
    others = [0, 1, 2, 3, 6, 7, 8]
    assert torch.equal(found[:, others], clean[:, others])
    mem_k[3, 1] = torch.nan
    assert torch.equal(threshold_of(q, mem_k, topk)[:, others, 0], clean[:, others, 0])


@pytest.mark.parametrize(("batch", "queries", "heads"), [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_do(batch: int, queries: int, heads: int) -> None:
    assert threshold_of(torch.ones(batch, queries, heads, 8), torch.ones(4, heads, 8), 1).numel() == 0


@pytest.mark.parametrize("table", ["sm_80", "sm_90"])
@pytest.mark.parametrize("slots", [200, 2048, 3000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tiles_of_the_gpus(table: str, slots: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    tiles = tuning.tiles_for(table, slots, 24, torch.finfo(dtype).bits)
    assert tiles is not None
    rows = tiles.queries // 2 + 1  # two tiles, one of which holds queries of both samples
    q, mem_k = (torch.randint(-3, 4, shape).to(dtype) for shape in ((2, rows, 1, 24), (slots, 1, 24)))
    check_exact(q, mem_k, 32, tiles)


def test_bfloat16_is_not_interpreted() -> None:
    with pytest.raises(AssertionError, match="garbage"):
        memory_threshold(torch.ones(1, 1, 1, 8).bfloat16(), torch.ones(4, 1, 8).bfloat16(), 1)


@pytest.mark.parametrize("is_interpreted", [True, False])
def test_unsupported_reasons(is_interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "is_interpreted", lambda: is_interpreted)
    for dtype in ("float32", "float16", "bfloat16"):
        assert tuning.unsupported_reasons(2048, 64, dtype) == ()
        assert tuning.unsupported_reasons(4096, 256, dtype) == ()
        assert "4097 slots are too many, at most 4096 fit" in tuning.unsupported_reasons(4097, 64, dtype)[0]
        assert "heads are 257 wide, at most 256 fit" in tuning.unsupported_reasons(4097, 257, dtype)[0]


@pytest.mark.parametrize(("version", "is_new_enough"), [("3.4.0", False), ("3.5.0", True), ("3.10.1", True), ("4.0.0+git12", True)])
def test_an_old_triton_is_refused(version: str, is_new_enough: bool) -> None:
    with mock.patch("importlib.import_module", return_value=SimpleNamespace(__version__=version)):
        problem = calls_of_kernels.import_problem.__wrapped__()
    assert problem == (None if is_new_enough else f"the package triton is {version}, it needs 3.5 or newer")


def test_tables_of_other_architectures() -> None:
    """A GPU without a table takes that of the nearest older one that its shared memory suffices for."""
    with mock.patch.dict("os.environ", TRITON_INTERPRET="0"):
        for capability, kib, expected in (
            ((8, 0), 163, "sm_80"),
            ((8, 9), 99, "sm_80"),
            ((9, 0), 227, "sm_90"),
            ((10, 0), 227, "sm_90"),
            ((12, 0), 99, "sm_80"),
        ):
            device = torch.device("cuda", 10 * capability[0] + capability[1])
            properties = SimpleNamespace(shared_memory_per_block_optin=1024 * kib)
            with (
                mock.patch("torch.cuda.get_device_capability", return_value=capability),
                mock.patch("torch.cuda.get_device_properties", return_value=properties),
            ):
                assert tuning.table_name(tuning.TABLES, device) == expected
