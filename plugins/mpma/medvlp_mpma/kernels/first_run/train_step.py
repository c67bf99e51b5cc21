"""A training step of ``mpma:base`` with each backend of the memory."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.pool import Pool
from typing import Any
from unittest import mock

import torch

from medvlp_core import MedvlpError, Role
from medvlp_core import plan as plan_recipe
from medvlp_core.model import ComposedModel, build_model, build_tokenizer, image_geometry
from medvlp_core.nn import Batch
from medvlp_mpma.kernels.first_run.run import Run, Skipped
from medvlp_mpma.kernels.first_run.setting import BATCHES, DEVICE, REHEARSE
from medvlp_mpma.kernels.memory_topk import benchmark as topk


def step_model(run: Run, pool: Pool) -> None:
    """Images a second of a training step of ``mpma:base`` on made-up batches, with each backend of the memory."""
    run.need_time("model", "building it")
    try:
        model, make_batch = build()
    except (ImportError, MedvlpError) as error:
        raise Skipped(f"the model cannot be built here: {' '.join(str(error).split())[:300]}") from error
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=DEVICE.type == "cuda")
    found: list[dict[str, Any]] = []
    for batch_size in (2,) if REHEARSE else BATCHES:
        batch = make_batch(batch_size)
        for backend in ("triton", "composite", "reference"):
            run.need_time("model", f"batch {batch_size} with {backend}")
            row: dict[str, Any] = {"batch": batch_size, "kernel": backend}
            if run.red(topk.NAME, backend):
                row["reason"] = "red in correctness.csv"
            else:
                try:
                    row |= train_steps(model, optimizer, batch, backend)
                except Exception as error:  # out of memory, most likely
                    row["reason"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
                optimizer.zero_grad(set_to_none=True)
                if DEVICE.type == "cuda":
                    torch.cuda.empty_cache()
            found.append(row)
            run.note("model", found)
            run.say(json.dumps(row))


def build() -> tuple[ComposedModel, Callable[[int], Batch]]:
    """The model of ``mpma:base`` (a rehearsal: a tiny one), and a function that makes batches."""
    changes = [f"{block}.{setting}" for block, text in TINY_MODEL.items() for setting in text.split() if REHEARSE]
    plan = plan_recipe("mpma:base", changes)
    build_tokenizer(plan)  # for its sizes: nothing is tokenised here
    model = build_model(plan, seed=0).to(DEVICE).train()
    image, tokenizer = image_geometry(plan), plan.one(Role.TOKENIZER)
    assert tokenizer is not None
    assert image.target_height is not None
    assert image.target_width is not None
    target = (image.channels, image.target_height, image.target_width)
    length, vocabulary = tokenizer.spec.max_length, tokenizer.spec.vocab_size  # type: ignore[attr-defined]

    def make_batch(size: int) -> Batch:
        token_ids = torch.randint(5, vocabulary, (size, length), device=DEVICE)
        word_ids = (torch.arange(length, device=DEVICE) - 1).expand(size, -1).contiguous()
        return Batch(
            image=torch.randn(size, image.channels, image.height, image.width, device=DEVICE),
            image_target=torch.randn(size, *target, device=DEVICE),
            token_ids=token_ids,
            text_is_valid=torch.ones_like(token_ids, dtype=torch.bool),
            word_ids=word_ids,
            record_index=torch.arange(size, device=DEVICE),
        )

    return model, make_batch


#: What makes the model of a rehearsal tiny.
TINY_MODEL = {
    "tokenizer": "vocab_size=40 max_length=9",
    "model.image_encoder": "image_size=32 patch_size=8 width=16 depth=1 heads=2",
    "model.text_encoder": "width=12 layers=1 heads=2 ffn_width=24",
    "model.fusion": "slots=10 topk=3 heads=2 layers=1",
    "model.decoders.image": "target_size=64 width=16 depth=1 heads=2",
}


def train_steps(model: ComposedModel, optimizer: torch.optim.Optimizer, batch: Batch, backend: str) -> dict[str, float]:
    """Time training steps with a backend for every op."""
    before, steps = (1, 1) if REHEARSE else (3, 10)
    times = []
    with mock.patch.dict(os.environ, {"MEDVLP_KERNELS": backend}):
        for step in range(before + steps):
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
                if step == before:
                    torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=not REHEARSE):
                loss = model(batch).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            is_finite = math.isfinite(loss.item())
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            if not is_finite:
                raise ValueError("the loss is not finite")
    seconds = statistics.median(times[before:])
    peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
    return {"step_ms": round(1e3 * seconds, 2), "images_per_s": round(len(batch["image"]) / seconds, 1), "peak_bytes": peak}
