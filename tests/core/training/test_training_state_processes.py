"""Followers, shared weights, rows after a step, ramps and freezes: two processes do what one does, in float64 over gloo."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from state_bundle import CPU, Images, Run
from torch.distributed.tensor import DTensor

from medvlp_core.runtime.distributed import all_gather_object, process_group
from medvlp_core.training.checkpoint import weights_of
from medvlp_core.training.events import StepSkipped
from medvlp_core.training.state import gather_to_main

#: A student with a teacher, used twice, with a queue of pooled vectors, a ramp and a timed freeze.
RECIPE = """\
medvlp: 1
model:
  image_encoder: {use: st.encoder}
  parts:
    again: {share: model.image_encoder}
    teacher: {follow: model.image_encoder, decay: 0.75}
    pool: {use: st.pool, needs: {image_tokens: again.image_tokens}}
    slow_pool: {follow: model.parts.pool, decay: 0.5, needs: {image_tokens: teacher.image_tokens}}
  alignments:
    nce: {use: st.contrast, needs: {pooled: pool.pooled}}
  decoders:
    fit: {use: st.fit}
    distil: {use: st.distil, needs: {teacher_tokens: teacher.image_tokens}}
    far: {use: st.queue, draws: true, needs: {pooled: pool.pooled, extra: slow_pool.pooled}, after: 'extra: T D'}
losses: {far: {far: {from: 0, to: 2, begin: 0.1, end: 0.8}}}
train:
  steps: 7
  batch_size: 8
  drop_last: false
  learning_rate: 0.01
  max_grad_norm: 0.1
  ema_decay: 0.9
  freeze: [decoders.distil.linear.bias]
  parameters: {image_encoder.blocks.0.*: {freeze_until: 0.4}, 'parts.*': {lr_scale: 0.5}}
"""
CASES = {
    "ddp": "",
    "ddp, 3 passes": "  gradient_accumulation_steps: 3\n",
    "fsdp, 3 passes": "  parallel: fsdp\n  gradient_accumulation_steps: 3\n",
}


def trained(more: str, bad_rows: tuple[int, ...] = ()) -> dict[str, Any]:
    """Train; what the main process has in the end."""
    run = Run.of(RECIPE + more)
    run.images.bad_rows = bad_rows
    run.train()
    assert run.state.ema is not None
    own = [one for name, one in weights_of(run.model).items() if not isinstance(one, DTensor) and name.endswith(("queue", "mean"))]
    return {
        "totals": [getattr(event, "total", None) for event in run.events],
        "skipped": [event.step for event in run.events if isinstance(event, StepSkipped)],
        "weights": gather_to_main(weights_of(run.model)),
        "optimizer": gather_to_main(run.state.optimizer_tensors()),
        "ema": gather_to_main(run.state.ema.weights),
        "handed": [rows.clone() for rows in run.model.decoders["far"].handed],  # type: ignore[union-attr]
        "is_equal_everywhere": len(set(all_gather_object(str([one.tolist() for one in own])))) == 1 and len(own) == 2,
    }


def resumed(more: str, folder: Path) -> bool:
    """Whether a run that is stopped after three steps and resumed ends with the bits of one that is not."""
    stopped = Run.of(RECIPE + more).train(stop_after=3).save(folder / "checkpoints" / "step-3")
    all_gather_object(None)  # the main process writes
    ends = [
        gather_to_main(weights_of(run.train().model)) for run in (Run.of(RECIPE + more), Run.of(RECIPE + more, resumed=stopped))
    ]
    return all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def one_of_two(rank: int, port: int, folder: Path) -> None:
    """What each of two processes does."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with process_group(CPU):
        found = {name: trained(more) for name, more in CASES.items()}
        found["bad"] = trained(CASES["ddp, 3 passes"], bad_rows=(9,))
        found["resumed"] = {name: resumed(CASES[name], folder / name[:4]) for name in ("ddp, 3 passes", "fsdp, 3 passes")}
    if rank == 0:
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What two processes found, by case."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, folder), nprocs=2)
    found: dict[str, dict[str, Any]] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    """What one process finds, in one pass."""
    return trained("")


close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_do_what_one_does(two: dict[str, dict[str, Any]], one: dict[str, Any], case: str) -> None:
    found = two[case]
    assert found["totals"] == pytest.approx(one["totals"], rel=1e-6)  # they are summed in single precision
    assert found["is_equal_everywhere"]
    close(found["weights"], one["weights"])  # of teachers too, and queues
    close(found["ema"], one["ema"])
    close(found["optimizer"], one["optimizer"])
    assert len(found["handed"]) == 7
    close(found["handed"], one["handed"])


def test_resumed_runs_end_with_the_same_bits(two: dict[str, dict[str, Any]]) -> None:
    assert two["resumed"] == {"ddp, 3 passes": True, "fsdp, 3 passes": True}


def test_a_bad_step_in_one_process_moves_nothing_in_any(two: dict[str, dict[str, Any]]) -> None:
    found, one = two["bad"], trained("", bad_rows=(9,))
    assert found["skipped"] == one["skipped"]
    assert len(found["skipped"]) >= 2, "once an epoch"
    assert len(found["handed"]) == 7 - len(found["skipped"])
    assert found["is_equal_everywhere"]
    close(found["weights"], one["weights"])
    close(found["handed"], one["handed"])


def test_one_process_with_several_passes_does_the_same(one: dict[str, Any]) -> None:
    found = trained("  gradient_accumulation_steps: 3\n")
    close(found["weights"], one["weights"])
    close(found["handed"], one["handed"])
    name = "image_encoder.blocks.0.linear.weight"
    first = Run.of(RECIPE).model.state_dict()
    assert found["optimizer"][f"{name}/step"] == 4
    assert "decoders.distil.linear.bias/step" not in found["optimizer"]
    assert torch.equal(found["weights"]["decoders.distil.linear.bias"], first["decoders.distil.linear.bias"])


def test_compiled_blocks_compute_the_same(one: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from state_bundle import Layer

    compiled: list[torch.nn.Module] = []

    def compile_block(layer: torch.nn.Module) -> None:
        compiled.append(layer)
        torch.nn.Module.compile(layer, backend="aot_eager")

    monkeypatch.setattr(Layer, "compile", compile_block)
    found = trained("  compile: true\n  activation_checkpointing: true\n")
    assert len(compiled) == 4, "of the student and of the teacher; shared ones once"
    close(found["weights"], one["weights"])


def test_images_are_bad_only_where_it_is_said() -> None:
    assert not torch.isnan(Images().batch([9])["image"]).any()
