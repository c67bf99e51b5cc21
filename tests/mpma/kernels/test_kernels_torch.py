"""The ops as citizens of torch: opcheck, compile, export, checkpointing, autocast, FLOPs, DDP, errors, import without Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import in_two_processes
from medvlp_mpma.kernels.memory_attention import op as attention
from medvlp_mpma.kernels.memory_attention.op import memory_attention
from medvlp_mpma.kernels.memory_topk import op as topk
from medvlp_mpma.kernels.memory_topk.op import memory_topk
from medvlp_mpma.memory import SharedMemory, SlotCrossAttention
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from medvlp_core.errors import KernelError

B, L, S, M, H, D = 2, 3, 4, 9, 2, 8
LENS, QUERY_LENS = torch.tensor([4, 2]), torch.tensor([3, 2])


def tensors(batch: int = B, queries: int = L, slots: int = M, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """q, k, v, mem_k and mem_v that want gradients."""
    torch.manual_seed(batch + queries + slots)
    shapes = ((batch, queries, H, D), (batch, S, H, D), (batch, S, H, D), (slots, H, D), (slots, H, D))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def attend(*x: Tensor, backend: str = "composite", dropout_p: float = 0.0) -> Tensor:
    """Both ops in one function."""
    q, k, v, mem_k, mem_v = x
    bias = torch.tensor([0.5, -1.0])
    mixed = memory_attention(q, k, v, mem_k, mem_v, key_lens=LENS, mem_bias=bias, dropout_p=dropout_p, backend=backend)
    return mixed + memory_topk(q, mem_k, mem_v, 3, dropout_p=dropout_p, backend=backend)


def gradients(out: Tensor, x: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum(), x))


@pytest.mark.parametrize("path", ["composite", "triton"])
@pytest.mark.parametrize("is_full", [False, True])
def test_opcheck(path: str, is_full: bool) -> None:
    x = tensors()
    bias, mask, seed = torch.randn(H, requires_grad=True), torch.rand(B, S) > 0.3, torch.tensor(5)
    optional = (LENS, mask, QUERY_LENS, bias, None, seed) if is_full else (None,) * 6
    numbers = (0.3, 0.2 if is_full else 0.0, path)
    torch.library.opcheck(attention.forward_op, (*x, *optional, *numbers))
    out, lse = attention.forward_op(*x, *optional, *numbers)
    grads = (torch.randn_like(out), torch.randn_like(lse) if is_full else None)
    detached, optional = (
        [one.detach() for one in (out, lse, *x)],
        (*optional[:3], *(x.detach() if x is not None else None for x in optional[3:])),
    )
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(attention.backward_op, (*grads, *detached, *optional, *numbers), test_utils=checks)
    call = (x[0], x[3], x[4], seed if is_full else None)
    torch.library.opcheck(topk.forward_op, (*call, 3, *numbers))
    of_topk = [one.detach() for one in topk.forward_op(*call, 3, *numbers)]
    detached = [one.detach() if one is not None else None for one in call]
    torch.library.opcheck(topk.backward_op, (grads[0], None, *of_topk, *detached, *numbers), test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_a_break(dynamic: bool) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend=counter)
    graphs = []
    for sizes in ({}, {"queries": 7, "slots": 12}, {"queries": 5, "slots": 11}):
        x = tensors(**sizes)
        plain, fast = attend(*x), compiled(*x)
        torch.testing.assert_close(fast, plain)
        torch.testing.assert_close(gradients(fast, x), gradients(plain, x))
        graphs.append(counter.frame_count)
    assert len(set(graphs)) == (1 if dynamic else 3), "a graph with free sizes serves them all"


def test_compile_with_inductor() -> None:
    x = tensors()
    torch.testing.assert_close(torch.compile(attend, fullgraph=True)(*x), attend(*x))


def test_compile_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tensors()
    graphs: list[str] = []

    def look(graph: Any, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    def run() -> None:
        torch.compile(lambda *x: attend(*x, backend="auto"), fullgraph=True, backend=look)(*x)

    run()
    monkeypatch.setenv("MEDVLP_KERNELS", "reference")
    torch._dynamo.reset()
    run()
    assert ["medvlp_mpma.memory_topk" in graph for graph in graphs] == [True, False]


class Attend(nn.Module):
    """The function as a module with dropout."""

    def forward(self, *x: Tensor) -> Tensor:
        return attend(*x, dropout_p=0.2)


def test_export() -> None:
    x = tensors()
    exported = torch.export.export(Attend(), tuple(x))
    called = {node.target for node in exported.graph.nodes if node.op == "call_function"}
    assert {torch.ops.medvlp_mpma.memory_attention.default, torch.ops.medvlp_mpma.memory_topk.default} <= called
    torch.manual_seed(3)
    wanted = Attend()(*x)
    torch.manual_seed(3)
    torch.testing.assert_close(exported.module()(*x), wanted)


@pytest.mark.parametrize("path", ["reference", "composite", "triton"])
def test_checkpointing_draws_the_same_dropout_again(path: str) -> None:
    x = tensors()

    def run(function: Any) -> list[Tensor]:
        torch.manual_seed(0)
        out = function(*x)
        return [out, *gradients(out, x)]

    def dropping(*x: Tensor) -> Tensor:
        return attend(*x, backend=path, dropout_p=0.4)

    plain, again = run(dropping), run(lambda *x: checkpoint(dropping, *x, use_reentrant=False))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize("path", ["reference", "composite"])
def test_autocast_decides_the_dtype(path: str) -> None:
    x = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*x, backend=path)
        below = [one.bfloat16() for one in x]
    assert out.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert memory_topk(x[0], x[3], x[4], 3, backend=path).dtype == torch.float16
    torch.testing.assert_close(out, attend(*below, backend=path))
    assert {grad.dtype for grad in gradients(out.float(), x)} == {torch.float32}
    doubles = tensors(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(*doubles, backend=path).dtype == torch.float64


def test_scores_inside_autocast_are_float32() -> None:
    q, k, v = (x.detach().bfloat16() for x in (torch.randn(1, 40, H, 16), torch.randn(300, H, 16), torch.randn(300, H, 16)))
    exact = memory_topk(q.float(), k.float(), v.float(), 3, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        found = memory_topk(q, k, v, 3, backend="composite")
    torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-2)  # other slots would be wrong by ones


def test_flops_are_counted() -> None:
    x = tensors()
    with FlopCounterMode(display=False) as counter:
        memory_attention(*x, backend="composite").sum().backward()
    assert counter.get_total_flops() == 14 * B * L * H * (S + M) * D
    with FlopCounterMode(display=False) as counter:
        memory_topk(x[0], x[3], x[4], 3, backend="composite").sum().backward()
    assert counter.get_total_flops() == 14 * B * L * H * M * D


# --------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("path", ["composite", "triton"])
def test_a_second_derivative_is_refused(path: str) -> None:
    x = tensors()
    for out in (memory_attention(*x, backend=path), memory_topk(x[0], x[3], x[4], 3, backend=path)):
        (first,) = torch.autograd.grad(out.square().sum(), x[0], create_graph=True)
        with pytest.raises(KernelError, match=r"MV403.*cannot be differentiated again"):
            torch.autograd.grad(first.sum(), x[0])


@pytest.mark.parametrize("path", ["composite", "triton"])
def test_forward_mode_is_refused_instead_of_giving_zero(path: str) -> None:
    x = [one.detach() for one in tensors()]
    calls = (lambda q: memory_attention(q, *x[1:], backend=path), lambda q: memory_topk(q, x[3], x[4], 3, backend=path))
    for call in calls:
        with pytest.raises(KernelError, match=r"MV403.*no forward-mode derivative"):
            torch.func.jvp(call, (x[0],), (torch.ones_like(x[0]),))
    _, tangent = torch.func.jvp(lambda q: memory_topk(q, x[3], x[4], 3, backend="reference"), (x[0],), (torch.ones_like(x[0]),))
    assert tangent.any()


def test_forward_and_backward_go_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, str]] = []
    select = type(topk.KERNEL).select

    def watch(kernel: Any, requested: str, call: Any) -> str:
        taken.append((kernel.name, select(kernel, requested, call)))
        return taken[-1][1]

    monkeypatch.setattr(type(topk.KERNEL), "select", watch)
    x = tensors()
    memory_topk(x[0], x[3], x[4], 3).sum().backward()
    memory_attention(*x, key_lens=LENS, dropout_p=0.1).sum().backward()
    assert taken == [("mpma.memory_topk", "composite")] * 2 + [("mpma.memory_attention", "composite")] * 2


def test_the_reference_has_a_second_derivative() -> None:
    x = [one.requires_grad_() for one in tensors(dtype=torch.float64)]
    assert torch.autograd.gradgradcheck(lambda *x: memory_attention(*x, backend="reference"), x)


def test_all_faults_of_a_call_at_once() -> None:
    q, k, v, mem_k, mem_v = tensors()
    with pytest.raises(KernelError) as caught:
        memory_attention(
            q, k, v[:, :2], mem_k.double(), mem_v, key_lens=LENS.float(), mem_bias=torch.zeros(3), scale=-1.0, dropout_p=1.0
        )
    text = str(caught.value)
    for part in ("[MV402]", "v has the shape (2, 2, 2, 8), expected (2, 4, 2, 8)", "mem_bias has", "mem_k is torch.float64"):
        assert part in text
    for part in ("scale is -1.0", "dropout_p is 1.0", "key_lens is torch.float32"):
        assert part in text
    with pytest.raises(KernelError, match=r"expected q \(B, L, H, D\)"):
        memory_attention(q[0], k, v, mem_k, mem_v)
    with pytest.raises(KernelError, match="gate has two softmaxes"):
        memory_attention(q, k, v, mem_k, mem_v, gate=torch.zeros(H), mem_bias=torch.zeros(H))
    for wrong in (0, 2.0, None):
        with pytest.raises(KernelError, match=r"MV402.*topk is "):
            memory_topk(q, mem_k, mem_v, wrong)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=r"(?s)MV402.*q is torch.int64, expected floating"):
        memory_attention(q.long(), k, v, mem_k, mem_v, backend="reference")
    with pytest.raises(KernelError, match=r"MV402.*gate has the shape \(2, 3\), expected \(2,\) or \(2, 3, 2\)"):
        memory_attention(q, k, v, mem_k, mem_v, gate=torch.zeros(2, 3))
    with pytest.raises(KernelError, match=r"MV402.*no slots"):
        memory_topk(q, mem_k[:0], mem_v[:0], 1)


def test_bfloat16_is_refused_in_the_interpreter() -> None:
    x = tensors(dtype=torch.bfloat16)
    for call in (lambda: memory_attention(*x, backend="triton"), lambda: memory_topk(x[0], x[3], x[4], 3, backend="triton")):
        with pytest.raises(KernelError, match=r"(?s)MV401.*interpreter gives wrong numbers in bfloat16"):
            call()


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    x = tensors(batch=1, queries=11)
    with pytest.raises(KernelError, match=r"(?s)MV401.*needs a GPU.*backends that can: composite, reference"):
        memory_attention(*x, backend="triton")
    with pytest.raises(KernelError, match=r"(?s)MV401.*computes in float32, float16, bfloat16, not in float64"):
        memory_attention(*tensors(dtype=torch.float64), backend="triton")
    assert memory_attention(*x, backend="auto").shape == x[0].shape


# ------------------------------------------------------------------------------------------------------------- other processes


def run(code: str, **environment: str) -> str:
    """Run a program in a fresh interpreter without Triton's interpreter; what it prints."""
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "MEDVLP_KERNELS")}
    done = subprocess.run([sys.executable, code], capture_output=True, text=True, env=env | environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # an import fails, as where there is no such package
import torch
from medvlp_core.plugins.host import load_plugins
assert not load_plugins().broken
from medvlp_core.errors import KernelError
from medvlp_mpma.fusion import MemoryFusion
from medvlp_mpma.kernels.memory_attention.op import KERNEL, memory_attention
from medvlp_mpma.kernels.memory_topk.op import memory_topk
x, slots = torch.randn(2, 3, 2, 8, requires_grad=True), torch.randn(9, 2, 8)
(memory_topk(x, slots, slots, 2) + memory_attention(x, x, x, slots, slots)).sum().backward()
print(tuple(x.grad.shape), "triton is not installed" in str(KERNEL.reasons(KERNEL.example)))
try:
    memory_topk(x, slots, slots, 2, backend="triton")
except KernelError as error:
    print(error)
"""


def test_the_bundle_works_without_triton(tmp_path: Path) -> None:
    program = tmp_path / "without_triton.py"
    program.write_text(WITHOUT_TRITON)
    printed = run(str(program))
    assert printed.startswith("(2, 3, 2, 8) ")
    assert "the package triton is not installed" in printed
    assert "backends that can: composite, reference" in printed


class Both(nn.Module):
    """Both ways to look at slots, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.slots = SharedMemory(16, 20, 2, 3, 0.0), SlotCrossAttention(16, 5, 2, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.slots(x + self.memory(x), x).square().sum(dim=(1, 2)).mean()


def compare_gradients(rank: int, folder: Path) -> None:
    """What each of two processes does."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    whole, x = Both().double(), torch.randn(4, 6, 16, dtype=torch.float64)
    model = DistributedDataParallel(Both().double())
    model.module.load_state_dict(whole.state_dict())
    model(x[2 * rank :][:2]).backward()
    whole(x).backward()
    for (name, one), other in zip(whole.named_parameters(), model.module.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    (folder / f"same.{rank}").touch()
    dist.destroy_process_group()


def test_two_ddp_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    in_two_processes(compare_gradients, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"same.0", "same.1"}
