"""Top-k memory attention in plain PyTorch: masked-dense, in chunks of samples, with the memory projected once.

Scores of a chunk exist once and are not saved: ``out``, ``lse`` and the threshold between winners and losers are, (B, L, H) each.
"""

from __future__ import annotations

from torch import Tensor

from medvlp_mpma.kernels import chunked
from medvlp_mpma.kernels.inputs import AttentionInputs


def forward(inputs: AttentionInputs, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """``out`` (B, L, H, D), ``lse`` and threshold (B, L, H), for ``topk`` < M."""
    return chunked.forward(inputs, topk)
