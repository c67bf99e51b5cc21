"""How our Triton kernels are compiled, at a launch and in the compile gate alike."""

from __future__ import annotations


def launch_options(warps: int, stages: int) -> dict[str, int | bool]:
    """Triton's options of a launch. Products and sums may be fused: Triton 3.9 warns that this will no longer be its default."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
