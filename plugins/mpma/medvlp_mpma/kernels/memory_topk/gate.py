"""Every configuration of the tables as a case for the compile gate."""

from __future__ import annotations

from collections.abc import Iterator

from medvlp_mpma.kernels.compile_gate import Case
from medvlp_mpma.kernels.memory_topk import tuning

KERNEL = "medvlp_mpma.kernels.memory_topk.triton_kernel:threshold_kernel"


def threshold_case(slots: int, width: int, kind: str, arch: int) -> Case:
    """The threshold kernel as it is launched for contiguous tensors."""
    tiles = tuning.tiles_for(f"sm_{arch}", slots, width, 32 if kind == "fp32" else 16)
    assert tiles is not None
    numbers = ("q_b", "q_l", "q_h", "mk_m", "mk_h", "rows", "L", "M", "topk")
    return Case(
        kernel=KERNEL,
        signature={"q": f"*{kind}", "mem_k": f"*{kind}", "threshold": "*fp32", **dict.fromkeys(numbers, "i32")},
        constants={"WIDTH": width, **tiles.blocks()},
        warps=tiles.warps,
        stages=tiles.stages,
        arch=arch,
        divisible=("q_b", "q_l", "q_h", "mk_m", "mk_h", "M"),
    )


def cases(arch: int) -> Iterator[Case]:
    """Each rule at its largest memory: usual heads, and heads whose chunks make another program of it."""
    for rule in tuning.rules(f"sm_{arch}"):
        kind, other_width = ("fp32", 16) if rule["bits"] == 32 else ("bf16", 128)
        yield threshold_case(rule["slots"], 64, kind, arch)
        yield threshold_case(rule["slots"], other_width, kind, arch)
    yield threshold_case(2048, 64, "fp16", arch)
    yield threshold_case(2048, 16, "bf16", arch)
    yield threshold_case(2048, 256, "bf16", arch)
    yield threshold_case(1500, 96, "bf16", arch)
