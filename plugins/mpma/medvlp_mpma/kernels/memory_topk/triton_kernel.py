"""Triton kernel that finds, for each query and head, a score that separates its K best memory slots from the rest.

Bare device code; ``launch.py`` calls it. Letters: B samples, L queries, M slots, H heads, D width of a head.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: So many steps bisect on numbers before the others bisect on keys.
NUMBER_STEPS = tl.constexpr(8)


@triton.jit
def flipped(bits: tl.tensor) -> tl.tensor:
    """Turn the bits of float32 numbers into int32 keys in the same order, or such keys into bits: it undoes itself."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_of(number: tl.tensor) -> tl.tensor:
    """The int32 key of a float32 number."""
    return flipped(number.to(tl.int32, bitcast=True))


@triton.jit
def number_of(key: tl.tensor) -> tl.tensor:
    """The float32 number of an int32 key; a key next to those of the infinities may give NaN."""
    return flipped(key).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["topk"])
def threshold_kernel(
    q: tl.tensor, mem_k: tl.tensor, threshold: tl.tensor,
    q_b: tl.tensor, q_l: tl.tensor, q_h: tl.tensor, mk_m: tl.tensor, mk_h: tl.tensor,
    rows: tl.tensor, L: tl.tensor, M: tl.tensor, topk: tl.tensor,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    QUERIES: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
) -> None:  # fmt: skip
    """``threshold`` (B, L, H) for a tile of the B L rows of one head; grid (tiles of B L, H).

    A program holds all M scores of its rows in registers and bisects on keys until, in each row, exactly K scores are at or above
    the middle, or until the bracket is closed, which means that scores tie with the K-th. Comparisons with NaN are false, so a row
    with NaN ends like any other. Slots that pad the last piece score -inf and never change what is at or above a number.

    Slots come in pieces and the width of a head in chunks, so that a load is small. The tables ask for several chunks of float32
    numbers even of a narrow head: a loop that runs once is unfolded, and the compiler then starts all loads at once, and spills.
    """
    head = tl.program_id(1)
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    q_rows = q + head * q_h + (row // L).to(tl.int64) * q_b + (row % L).to(tl.int64) * q_l

    # Slots are the rows of the product, since tensor cores want many rows and take few columns. The pieces stay a tuple, and are
    # combined number by number before each reduction, because a reduction crosses lanes and warps.
    scores = ()
    lowest = tl.full((PIECE, QUERIES), float("inf"), tl.float32)
    highest = tl.full((PIECE, QUERIES), float("-inf"), tl.float32)
    for i in tl.static_range(PIECES):
        slot = i * PIECE + tl.arange(0, PIECE)
        is_slot = (slot < M)[:, None]
        k_rows = mem_k + head * mk_h + slot.to(tl.int64) * mk_m
        score = tl.zeros((PIECE, QUERIES), tl.float32)
        for chunk in tl.range(CHUNKS):
            dim = chunk * CHUNK + tl.arange(0, CHUNK)
            in_width = dim < WIDTH
            q_tile = tl.load(q_rows[None, :] + dim[:, None], mask=(row < rows)[None, :] & in_width[:, None], other=0.0)
            k_tile = tl.load(k_rows[:, None] + dim[None, :], mask=is_slot & in_width[None, :], other=0.0)
            score = tl.dot(k_tile, q_tile, score, input_precision="ieee")
        lowest = tl.minimum(lowest, score)  # a padding slot scores 0 here, which can only lower it
        score = tl.where(is_slot, score, float("-inf"))
        highest = tl.maximum(highest, score)
        scores += (score,)  # type: ignore[assignment]

    # At least K scores are >= number_of(low), fewer than K are >= number_of(high).
    low = key_of(tl.min(lowest, axis=0))
    high = key_of(tl.max(highest, axis=0)) + 1
    step = 0
    while tl.max((low + 1 < high).to(tl.int32), axis=0) > 0:
        # Keys alone would need 6 more steps on scores around 0, to come down through the exponents. The guard keeps any middle
        # (an infinite one, NaN) inside; neither form of the middle can overflow.
        of_numbers = key_of(0.5 * number_of(low) + 0.5 * number_of(high))
        of_keys = (low >> 1) + (high >> 1) + (low & high & 1)
        middle = tl.where(step < NUMBER_STEPS, tl.minimum(tl.maximum(of_numbers, low + 1), high - 1), of_keys)
        bound = number_of(middle)[None, :]
        hits = tl.zeros((PIECE, QUERIES), tl.int32)
        for i in tl.static_range(PIECES):
            hits += (scores[i] >= bound).to(tl.int32)
        count = tl.sum(hits, axis=0)
        is_open = low + 1 < high
        low = tl.where(is_open & (count >= topk), middle, low)
        high = tl.where(is_open & (count < topk), middle, high)
        high = tl.where(is_open & (count == topk), middle + 1, high)
        step += 1

    bound = number_of(low)[None, :]
    winners = tl.full((PIECE, QUERIES), float("inf"), tl.float32)
    losers = tl.full((PIECE, QUERIES), float("-inf"), tl.float32)
    for i in tl.static_range(PIECES):
        winners = tl.minimum(winners, tl.where(scores[i] >= bound, scores[i], float("inf")))
        losers = tl.maximum(losers, tl.where(scores[i] >= bound, float("-inf"), scores[i]))
    worst_winner = tl.min(winners, axis=0)
    best_loser = tl.max(losers, axis=0)
    # Rounding, and halves of the smallest numbers, may carry the middle onto the loser; infinities make it NaN.
    between = 0.5 * worst_winner + 0.5 * best_loser
    between = tl.where((between > best_loser) & (between <= worst_winner), between, worst_winner)
    between = tl.where(best_loser == float("-inf"), best_loser, between)  # nobody loses
    tl.store(threshold + row.to(tl.int64) * tl.num_programs(1) + head, between, mask=row < rows)
