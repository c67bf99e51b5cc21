"""Which attention weights dropout keeps: a function of a seed and of the weight's place, the same in every backend of the ops.

A random number generator would give each backend, tile size and device another mask. A hash of (seed, sample, head, query, column)
can be computed again in the backward pass, so that no mask is stored, and the paths can be compared number by number.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: An odd number near 2**32 / golden ratio, as a signed word: neighbouring columns get words that differ in many bits.
COLUMN_FACTOR = 0x9E3779B1 - 2**32


def draw_seed(device: torch.device) -> Tensor:
    """A seed from torch's generator of ``device``, an int64 scalar: torch.manual_seed repeats it, checkpointing draws it again."""
    return torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=device)


def mix(words: Tensor) -> Tensor:
    """Scramble 32-bit words (int32, changed in place): a bijection whose output bits depend on all input bits.

    Reference:
        C. Wellons, hash prospector (public domain), two-round xorshift-multiply with constants found by TheIronBorn.
    """
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        words ^= (words >> shift) & (2 ** (32 - shift) - 1)  # a shift that does not draw the sign in
        words *= factor
    words ^= (words >> 15) & (2**17 - 1)
    return words


def keep_level(dropout_p: float) -> int:
    """Words from here on, as signed numbers, mean "keep": ``dropout_p`` as a share of all 32-bit words."""
    return min(int(dropout_p * 2**32), 2**32 - 1) - 2**31


def keep_mask(seed: Tensor, samples: range, heads: int, queries: int, columns: range, dropout_p: float) -> Tensor:
    """Which weights stay: ``mix(mix(row + seed_low) ^ seed_high ^ column * factor) >= dropout_p * 2**32 - 2**31``, signed.

    ``row`` counts (sample, head, query) in that order over the whole batch, ``column`` counts a sample's keys and then the slots.

    Shape:
        seed () int64, result (heads, len(samples), queries, len(columns)) bool.

    Example:
        >>> import torch
        >>> kept = keep_mask(torch.tensor(3), range(4), 2, 50, range(100), dropout_p=0.25)
        >>> kept.shape, round(kept.double().mean().item(), 1)
        (torch.Size([2, 4, 50, 100]), 0.8)
    """

    def count(numbers: range) -> Tensor:
        return torch.arange(numbers.start, numbers.stop, device=seed.device)

    sample_and_head = count(samples) * heads + count(range(heads))[:, None]
    rows = sample_and_head[..., None] * queries + count(range(queries))
    row_words = mix((rows + seed).int()) ^ (seed >> 32).int()  # conversion to int32 keeps the low 32 bits
    column_words = count(columns).int() * COLUMN_FACTOR
    return mix(row_words[..., None] ^ column_words) >= keep_level(dropout_p)
