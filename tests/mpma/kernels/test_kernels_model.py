"""MA-CMF on its kernels: the same outputs, gradients and training on every path."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import attrs
import pytest
import torch
from medvlp_mpma.fusion import MemoryFusion
from medvlp_mpma.specs import MemoryFusionSpec
from torch import Tensor

from medvlp_core.errors import KernelError
from medvlp_core.model.build import build_model
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.training.describe_run import kernels_in_use

BACKENDS = ("reference", "composite", "triton")
SMALL = MemoryFusionSpec(slots=10, topk=3, heads=2, layers=1, ffn_ratio=2.0, dropout=0.2)


def outputs_and_gradients(spec: MemoryFusionSpec) -> dict[str, Tensor]:
    torch.manual_seed(0)
    module = MemoryFusion(spec, {"Dt": 16, "Di": 12})
    text, image = torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, 7, 12, requires_grad=True)
    is_valid = torch.arange(5) < torch.tensor([[5], [2]])
    name = "text_tokens" if spec.position == "late" else "text_embeddings"
    fused = module(text_is_valid=is_valid, image_tokens=image, **{name: text})
    out = fused.fused_text_tokens if spec.position == "late" else fused.fused_text_embeddings
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    found = {"out": out.detach(), "text": text.grad, "image": image.grad}
    return found | {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("memory", ["cmn_topk", "cmn_softmax", "kv_slots"])
@pytest.mark.parametrize("fuse", ["cross_attention", "pooled_and_cross", "pooled_add"])
@pytest.mark.parametrize("position", ["late", "early"])
def test_all_paths_agree_in_output_and_gradients(memory: str, fuse: str, position: str) -> None:
    spec = attrs.evolve(SMALL, memory=memory, fuse=fuse, position=position)
    if list(spec.problems()):
        pytest.skip("slots need an attention to stand in")
    wanted = outputs_and_gradients(attrs.evolve(spec, kernel="reference"))
    for backend in BACKENDS[1:]:
        for name, value in outputs_and_gradients(attrs.evolve(spec, kernel=backend)).items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}")


def losses(plan: ModelPlan, batch: Batch, steps: int) -> list[float]:
    """The loss of a few steps on one batch, with dropout and new masks in each step."""
    model = build_model(plan, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    found = []
    for _ in range(steps):
        loss = model(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("memory", ["cmn_topk", "cmn_softmax", "kv_slots"])
def test_training_gives_the_same_losses_on_every_path(plan_of: Callable[[str], ModelPlan], batch: Batch, memory: str) -> None:
    batch = batch | {name: batch[name].float() for name in ("image", "image_target")}
    changes = {backend: f"model: {{fusion: {{memory: {memory}, kernel: {backend}}}}}" for backend in BACKENDS}
    wanted = losses(plan_of(changes["reference"]), batch, steps=40)
    assert sum(wanted[-10:]) < sum(wanted[:10]) - 5.0, "it learns"
    for backend in BACKENDS[1:]:
        found = losses(plan_of(changes[backend]), batch, steps=8)
        torch.testing.assert_close(found[:4], wanted[:4], rtol=1e-4, atol=0)
        # From there roundings grow: a slot that wins by the last digit on one path loses on another, and Adam walks on.
        torch.testing.assert_close(found, wanted[:8], rtol=1e-2, atol=0)


def test_a_run_names_its_kernels(plan_of: Callable[[str], ModelPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    def used(changes: str) -> str:
        return kernels_in_use(build_model(plan_of(changes), seed=0), torch.device("cpu"), "fp32")

    assert used("") == "mpma.memory_topk composite"
    assert used("model: {fusion: {memory: cmn_softmax}}") == "mpma.memory_attention composite"
    assert used("model: {fusion: {memory: kv_slots, kernel: triton}}") == "mpma.memory_attention triton"
    assert used("model: {fusion: {memory: none}}") == ""
    monkeypatch.setenv("MEDVLP_KERNELS", "reference")
    assert used("") == "mpma.memory_topk reference"
    assert used("model: {fusion: {kernel: composite}}") == "mpma.memory_topk composite", "the recipe counts more"


def test_a_request_for_a_memory_that_there_is_not_is_a_problem() -> None:
    [(field, text, _)] = attrs.evolve(SMALL, memory="none", kernel="triton").problems()
    assert field == "kernel"
    assert "memory=none has none" in text
    assert not list(attrs.evolve(SMALL, memory="none").problems())


def test_the_fusion_can_be_copied_and_pickled() -> None:
    module = MemoryFusion(attrs.evolve(SMALL, memory="kv_slots"), {"Dt": 16, "Di": 12, "S": 7})
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert all(torch.equal(one, other) for one, other in zip(module.parameters(), again.parameters(), strict=True))


def test_a_path_that_cannot_serve_stops_a_run_before_it_starts(
    plan_of: Callable[[str], ModelPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    model = build_model(plan_of("model: {fusion: {kernel: triton}}"), seed=0)
    with pytest.raises(KernelError, match=r"(?s)MV401.*mpma.memory_topk.*needs a GPU"):
        kernels_in_use(model, torch.device("cpu"), "fp32")
