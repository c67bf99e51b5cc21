"""Where the first run computes, and at which sizes: on the GPU, or rehearsed at toy size in Triton's interpreter."""

from __future__ import annotations

import os

import torch

from medvlp_core.kernels.benchmark import Shape
from medvlp_mpma.kernels import calls
from medvlp_mpma.kernels.memory_attention import benchmark as attention
from medvlp_mpma.kernels.memory_attention.op import KERNEL as ATTENTION_KERNEL
from medvlp_mpma.kernels.memory_topk import benchmark as topk
from medvlp_mpma.kernels.memory_topk.op import KERNEL as TOPK_KERNEL

REHEARSE = calls.is_interpreted()
DEVICE = torch.device("cpu") if REHEARSE else torch.device("cuda", 0)
TIMED = torch.float32 if REHEARSE else torch.bfloat16
CHECKED = (torch.float32, torch.float16) if REHEARSE else (torch.bfloat16, torch.float16, torch.float32)
COMPILE_PROCESSES = 2 if REHEARSE else max(2, min(12, (os.cpu_count() or 4) - 4))
ROUNDS = 1 if REHEARSE else None

#: Seconds that each step leaves for those behind it.
LEAVES = {"device": 0, "correctness": 300, "timings": 170, "sweep": 100, "crossover": 70, "model": 15}
BENCHMARKS = (attention.BENCHMARK, topk.BENCHMARK)
KERNELS = {one.name: one for one in (ATTENTION_KERNEL, TOPK_KERNEL)}
KEYS = (16, 50, 128, 197, 256, 512, 1025)
BATCHES = (256, 128, 64)
TOY = {"B": 1, "H": 1, "L": 9, "S": 7, "M": 21, "D": 16, "K": 5}


def name_of(dtype: torch.dtype) -> str:
    """``bfloat16`` of ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def in_rehearsal(shape: Shape) -> Shape:
    """A shape at toy size in a rehearsal; D and G keep too many queries for the kernel that does the keys, too."""
    if not REHEARSE:
        return shape
    small = {letter: TOY[letter] for letter in shape.sizes}
    return shape.resized(**small | ({"L": 20} if shape.letter in "DG" else {}))
