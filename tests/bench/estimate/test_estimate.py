"""What `medvlp estimate` says, against hand computations and against steps that really run."""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any

import attrs
import pytest
import torch
from medvlp_bench.estimate import cards
from medvlp_bench.estimate.cards import CARDS, GIB, Card
from medvlp_bench.estimate.compare import measure
from medvlp_bench.estimate.cost import count_steps, memory_of, pairs_of_a_micro_batch, seconds_of, seconds_of_op
from medvlp_bench.estimate.estimate import Estimate, count_pairs, estimate
from medvlp_bench.estimate.fake import GpuFunctions, fake_model
from medvlp_bench.estimate.report import component_lines, lines, time_lines
from medvlp_bench.estimate.step import Group, Parts, Weights, build_for_estimate, count_parts, follow
from medvlp_bench.estimate.trace import Op, StepTrace
from torch import Tensor, nn

import medvlp_core
from medvlp_core.cli import main
from medvlp_core.errors import DataError, Diagnostics, MedvlpError
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.recipe.load import parse_override
from medvlp_core.spec.blocks import TrainSpec


def plan_of(recipe: str, *settings: str) -> ModelPlan:
    diagnostics = Diagnostics()
    overrides = [parse_override("set", one, diagnostics) for one in settings]
    assert not diagnostics.errors
    return medvlp_core.plan(recipe, [one for one in overrides if one is not None])


@pytest.fixture(scope="module")
def small() -> ModelPlan:
    return plan_of("mpma:small", "train.batch_size=4")


def test_a_real_step_agrees_with_its_estimate(small: ModelPlan) -> None:
    spec = small.train
    model = build_for_estimate(small)
    parts = count_parts(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured = measure(model, spec)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    trace = follow(fake_model(model), spec, 4, is_gpu=False)
    memory = memory_of(parts, trace, spec, 1, CARDS["h100"])
    assert trace.flops(is_backward=False) == measured.forward_flops
    assert trace.flops(is_backward=True) == measured.backward_flops
    assert memory.optimizer == measured.optimizer
    assert memory.gradients == measured.gradients
    assert memory.kept == pytest.approx(measured.kept, rel=0.01)
    assert memory.peak == pytest.approx(measured.peak, rel=0.05)


def test_what_the_settings_of_training_change(small: ModelPlan) -> None:
    model = fake_model(build_for_estimate(small))
    settings: list[dict[str, Any]] = [{"activation_checkpointing": True}, {"precision": "bf16"}, {}]
    again, half, plain = (follow(model, attrs.evolve(small.train, **one), 4, is_gpu=True) for one in settings)
    assert sum(again.kept.values()) < 0.7 * sum(plain.kept.values())
    assert again.flops(is_backward=False) == plain.flops(is_backward=False)
    more = again.flops("model.text_encoder", is_backward=True) - plain.flops("model.text_encoder", is_backward=True)
    assert 0 < more <= plain.flops("model.text_encoder", is_backward=False)

    assert sum(half.kept.values()) < 0.8 * sum(plain.kept.values())
    assert half.flops() == plain.flops()
    assert not any(op.is_half for op in plain.ops)
    assert sum(op.flops for op in half.ops if op.is_half) > 0.9 * half.flops()


def test_backward_passes_are_outside_autocast(small: ModelPlan) -> None:
    model = fake_model(build_for_estimate(small))
    spec, seen = attrs.evolve(small.train, precision="bf16", activation_checkpointing=True), []
    weight = next(model.parameters())
    weight.register_hook(lambda gradient: seen.append(torch.is_autocast_enabled("cpu")))
    trace = follow(model, spec, 4, is_gpu=True)
    assert seen == [False]
    # layers that are computed again are so in half precision, with the attention of a GPU
    assert sum(op.flops for op in trace.ops if op.is_half) > 0.9 * trace.flops()
    attention = [op for op in trace.ops if op.component == "model.text_encoder" and "dot_product" in op.name]
    assert {op.is_backward for op in attention} == {False, True}
    assert not any("for_cpu" in op.name for op in attention)


def test_vit_b16_has_its_known_operations() -> None:
    plan = plan_of(
        "mpma:base",
        "model.masking.image_ratio=0.0",
        "tokenizer.vocab_size=100",
        "model.text_encoder.layers=1",
        "model.fusion.slots=40",
        "model.decoders=null",
        "evaluators=null",
    )
    model = build_for_estimate(plan)
    parts = count_parts(model)
    trace = follow(fake_model(model), plan.train, 3, is_gpu=True)
    tokens, width = 197, 768
    layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width  # query, key, value, output and two of four times the width
    hand = 12 * layer + 2 * 196 * (16 * 16 * 3) * width
    assert trace.flops("model.image_encoder", is_backward=False) == 3 * hand
    assert hand == pytest.approx(35.1e9, rel=0.002)  # 17.6 GMAC
    encoder = parts.weights["model.image_encoder"]
    assert encoder.trained + encoder.frozen == 85_798_656  # timm: without the classifier; the positions are fixed here


def test_autocast_and_attention_are_those_of_a_gpu() -> None:
    x = torch.randn(2, 2, 4, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.functional.layer_norm(x, (8,)).dtype == torch.bfloat16
        with GpuFunctions(torch.bfloat16):
            assert nn.functional.layer_norm(x, (8,)).dtype == torch.float32
            assert x.softmax(-1).dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------- memory and time

CARD = Card(
    name="toy", about="a toy", half=100.0, full=10.0, memory=1e4, bandwidth=10.0, link=5.0, source="none",
    matmul_share=0.5, memory_share=1.0, link_share=1.0, host=0.0, reserved=100.0,
)  # fmt: skip
PARTS = Parts(  # 10 of the frozen bytes are buffers
    weights={"model.a": Weights(trained=100, frozen=10, trained_tensors=3, trained_bytes=400, frozen_bytes=40)},
    layers=(Group(parameters=20, trained=10), Group(parameters=30, trained=30), *8 * (Group(parameters=25, trained=25),)),
    rest=Group(parameters=180, trained=160),
)
TRACE = StepTrace(
    pairs=2,
    batch_bytes=8,
    ops=[
        Op("mm", "model.a", False, 1000, 10, True, False),
        Op("mm", "model.a", True, 2000, 10, False, False),
        Op("add", "model.a", False, 0, 50, True, True),
    ],
    kept={"model.a": 1000},
    peak=1500,
    peak_without_gradients=1300,
    peak_without_layers=1350,
    gathered=700,
)


def spec_with(**settings: object) -> TrainSpec:
    return TrainSpec(steps=1, batch_size=16, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "gpus", "total"),
    [
        ({}, 1, 440 + 812 + 8 + 1500 + 100),  # gradients come as memory is freed
        (
            {"gradient_accumulation_steps": 2},
            1,
            440 + 812 + 8 + 1300 + 400 + 100,
        ),  # those of the first micro-batch are there in the second
        ({}, 4, 440 + 812 + 8 + 1300 + 400 + 100),
        ({"ema_decay": 0.9}, 1, 440 + 812 + 400 + 8 + 1500 + 100),
        # 430 bytes of parameters are divided; whole are 180 and two layers, of whose gradients the trace has those in no layer
        ({"parallel": "fsdp"}, 4, 107.5 + 10 + 180 + 55 + 212 + 8 + 1350 + 100 + 55 + 100),
        ({"parallel": "fsdp"}, 1, 440 + 812 + 8 + 1500 + 100),
    ],
)
def test_memory_of_a_gpu(settings: dict[str, object], gpus: int, total: float) -> None:
    assert memory_of(PARTS, TRACE, spec_with(**settings), gpus, CARD).total == total


def test_gradients_are_whole_until_fsdp_has_scattered_them() -> None:
    assert memory_of(PARTS, TRACE, spec_with(parallel="fsdp"), 4, CARD).gradients == 100 + 160 + 55


def test_an_operation_takes_what_is_slower() -> None:
    product, _, added = TRACE.ops
    assert [seconds_of_op(op, CARD, spec_with()) for op in TRACE.ops] == [20.0, 400.0, 5.0]
    assert seconds_of_op(added, CARD, spec_with(compile=True)) == 0.0
    assert seconds_of_op(attrs.evolve(product, moved=1000), CARD, spec_with()) == 100.0


def test_gradients_are_exchanged_beside_the_backward_pass() -> None:
    seconds = seconds_of(PARTS, TRACE, spec_with(max_grad_norm=None), 4, CARD)
    assert seconds.exchanged_bytes == 2 * 3 / 4 * 400
    assert (seconds.forward, seconds.backward, seconds.exchange, seconds.optimizer) == (25.0, 400.0, 120.0, 320.0)
    assert seconds.step == 25.0 + 400.0 + 320.0
    assert attrs.evolve(seconds, exchange=500.0).step == 25.0 + 500.0 + 320.0
    assert attrs.evolve(seconds, host=1000.0).step == 1000.0
    assert attrs.evolve(seconds, host=1000.0, waits_for_host=True).step == 1745.0
    sharded = seconds_of(PARTS, TRACE, spec_with(parallel="fsdp", gradient_accumulation_steps=2), 4, CARD)
    assert sharded.exchanged_bytes == 2 * 3 / 4 * (700 + 180 + 400)
    assert sharded.is_sharded


def test_steps_of_a_run() -> None:
    assert pairs_of_a_micro_batch(spec_with(gradient_accumulation_steps=2), gpus=3) == 3
    assert count_steps(TrainSpec(epochs=2, batch_size=10), None) is None
    assert count_steps(TrainSpec(epochs=2, batch_size=10, drop_last=False), 35) == 8
    assert count_steps(TrainSpec(steps=7), None) == 7
    # as the loop counts: 3 pairs are left in an epoch, fewer than 8 processes
    assert count_steps(TrainSpec(epochs=10, batch_size=64, drop_last=False), 643, gpus=8) == 100
    with pytest.raises(DataError, match="fewer pairs than one batch"):
        count_steps(TrainSpec(epochs=1, batch_size=64), 10)


# -------------------------------------------------------------------------------------------------------------- what users see


def test_a_run_that_does_not_fit_says_what_would(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cards.CARDS, "l40s", attrs.evolve(CARDS["l40s"], memory=0.2 * GIB, reserved=0.0))
    assert main(["estimate", "mpma:small", "--gpu", "l40s", "--gpus", "2", "--set", "train.batch_size=64"]) == 1
    told = capsys.readouterr()
    assert "a step of 64 pairs is computed 32 pairs at a time" in told.out
    lines = told.err.splitlines()
    assert lines[0].startswith("[MV604] a step needs 0.3 GiB on each GPU, 0.1 GiB more than l40s has")
    settings = [line.split(":")[0].strip() for line in lines[1:-1]]
    assert settings[:2] == ["train.activation_checkpointing=true", "train.parallel=fsdp"]
    assert all(line.endswith("fits") for line in lines[3:5])
    assert lines[-1].startswith("    hint: --set train.")


def test_micro_batches_without_a_pair_are_no_advice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["estimate", "mpma:small", "--gpu", "l40s", "--gpus", "2", "--set", "train.batch_size=3"]
    monkeypatch.setitem(cards.CARDS, "l40s", attrs.evolve(CARDS["l40s"], memory=45e6, reserved=0.0))
    assert main(options) == 1
    told = capsys.readouterr().err
    assert "train.batch_size=2: 0.0 GiB, fits" in told  # one pair on each GPU
    assert "gradient_accumulation_steps" not in told  # it would need 2 micro-batches on each: 4 pairs


def test_operations_are_those_of_the_pairs_of_a_step(small: ModelPlan) -> None:
    found = estimate(attrs.evolve(small, train=attrs.evolve(small.train, batch_size=40)), CARDS["h100"], 8)
    assert "a step of 40 pairs is computed 5 pairs at a time" in list(lines(found))
    fewer = attrs.evolve(found, plan=attrs.evolve(small, train=attrs.evolve(small.train, batch_size=33)))
    assert "a step of 33 pairs is computed at most 5 pairs at a time" in list(lines(fewer))
    forward, other = (_operations_in_all(one) for one in (found, fewer))
    assert other == pytest.approx(33 / 40 * forward, abs=0.01)
    assert forward == pytest.approx(8 * found.trace.flops(is_backward=False) / 1e9, abs=0.01)
    slow = attrs.evolve(found.seconds, host=0.001)
    shares = [_share_of_the_data_sheet(attrs.evolve(one, seconds=slow)) for one in (found, fewer)]
    assert shares[0] == pytest.approx(found.trace.flops() / 0.001 / CARDS["h100"].full * 100, abs=0.5)
    assert shares[1] == pytest.approx(33 / 40 * shares[0], abs=1.0)


def test_the_measured_cpu_has_no_data_sheet(small: ModelPlan) -> None:
    told = {name: list(lines(estimate(small, attrs.evolve(CARDS["h100"], name=name), 1))) for name in ("h100", "cpu")}
    assert any(line.endswith("% of the data sheet's FLOP/s") for line in told["h100"])
    assert any(line.endswith("% of the measured FLOP/s") for line in told["cpu"])


def _operations_in_all(found: Estimate) -> float:
    """Of the forward pass, as the report has them."""
    return float(next(line for line in component_lines(found) if "total" in line).split()[3])


def _share_of_the_data_sheet(found: Estimate) -> float:
    told = next(line for line in time_lines(found) if "data sheet's" in line)
    return float(told.split("; ")[1].partition("%")[0])


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 with Max-Q Design", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("", None),
    ],
)
def test_only_the_boards_of_the_table_have_a_card(name: str, card: str | None) -> None:
    assert cards.card_of(name) is (CARDS[card] if card else None)


def test_a_torch_without_the_parts_that_are_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "medvlp_bench.estimate.inside_torch")
    monkeypatch.delattr(torch._C, "_current_autograd_node")
    with pytest.raises(MedvlpError, match=r"\[MV603\] torch .* lacks something .*: cannot import name '_current_autograd_node'"):
        importlib.import_module("medvlp_bench.estimate.inside_torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "h10"], "there is no GPU 'h10' in the table\n    hint: did you mean 'h100'?"),
        (["--gpus", "0"], "--gpus 0: expected 1 or more"),
        (["--pairs", "-3"], "--pairs -3: expected 1 or more"),
        (["--gpu", "cpu", "--gpus", "2"], "--gpu cpu is this machine, of which there is one: leave --gpus away"),
        (
            ["--check", "--gpus", "8"],
            "--check runs a step on this machine's CPU, whatever the GPUs and the data: leave --gpus away",
        ),
        (
            ["--check", "--gpu", "h100", "--pairs", "9"],
            "--check runs a step on this machine's CPU, whatever the GPUs and the data: leave --gpu and --pairs away",
        ),
    ],
)
def test_impossible_options_are_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "mpma:small", *options]) == 2
    assert capsys.readouterr().err.startswith(f"medvlp estimate: {message}")


def test_fewer_pairs_than_gpus_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "mpma:small", "--gpus", "64"]) == 1
    assert capsys.readouterr().err == (
        "[MV104] train.batch_size=32 pairs cannot be shared by 64 GPUs with 1 micro-batch each\n"
        "    hint: batch_size counts the pairs of all GPUs: 64 or more\n"
    )


def test_the_pairs_of_a_run() -> None:
    by_epochs = plan_of("mpma:small", "train.steps=null", "train.epochs=2", "train.batch_size=4")
    pairs, why_unknown = count_pairs(by_epochs)
    assert (pairs, why_unknown) == (775, None)
    assert count_steps(by_epochs.train, pairs) == 2 * (775 // 4)
    assert count_pairs(plan_of("mpma:base")) == (None, "the recipe has no data")
    moved = plan_of("mpma:base", "data={use: standard.manifest, path: /nowhere/studies.csv}")
    assert count_pairs(moved)[0] is None


def test_a_component_that_looks_at_numbers_is_named(small: ModelPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fake_model(build_for_estimate(small))
    assert model.image_encoder is not None
    usual = model.image_encoder.forward

    def looks(image: Tensor, **others: Tensor) -> object:
        return usual(image, **others) if image.mean() > 0 else usual(-image, **others)

    monkeypatch.setattr(type(model.image_encoder), "forward", lambda self, **needs: looks(**needs))
    with pytest.raises(MedvlpError, match=r"\[MV603\] model.image_encoder \(standard.timm_cnn\) cannot be followed"):
        follow(model, small.train, 4, is_gpu=True)


def test_the_document_says_what_the_lines_say(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["estimate", "mpma:small", "--gpu", "l40s"]
    assert main(options) == 0
    lines = {row[0].strip(): row[1:] for row in (re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines())}
    assert main([*options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["command"], document["recipe"], document["problems"]) == ("estimate", "mpma:small", [])
    assert document["gpu"]["count"] == 1
    assert document["steps"] == 550
    memory = document["memory_bytes"]
    assert f"{memory['weights'] / 2**30:.2f}" == lines["weights"][0]
    assert f"{memory['peak'] / 2**30:.2f}" == lines["activations and gradients, peak"][0]
    for one in document["components"]:
        assert f"{one['trained']:,}" == lines[one["path"]][0]
    assert f"{1e3 * document['seconds']['step']:.1f}" == lines["a step"][0]
    assert document["run_seconds"] == pytest.approx(550 * document["seconds"]["step"])
