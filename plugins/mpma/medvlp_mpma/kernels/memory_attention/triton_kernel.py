"""Triton kernels of memory attention: one forward, three backward. Bare device code; ``launch.py`` calls it.

Letters: B samples, L queries, S keys, M slots, H heads, D width of a head (WIDTH, padded to BLOCK_D). A column is a key or a slot.
Scores are ``log2(e) scale (q . k)``, so that exp2 serves. The loops over keys stop at the sample's last key. ``threshold`` (top-k)
leaves out slots whose raw product ``q . k`` lies below it. Dropout recomputes its mask from a hash, as ``dropout.py`` defines it.

Strides are in elements; the innermost one is 1 everywhere. ``out``, its gradient, ``lse``, ``delta``, ``threshold`` and all results
are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def mix(word: tl.tensor) -> tl.tensor:
    """Scramble 32-bit words: ``dropout.mix``."""
    word = word ^ (word >> 16)
    word = word * 0x21F0AAAD
    word = word ^ (word >> 15)
    word = word * 0x735A2D97
    return word ^ (word >> 15)


@triton.jit
def row_words(seed: tl.tensor, rows: tl.tensor) -> tl.tensor:
    """The words that dropout starts a row with; ``rows`` counts (sample, head, query)."""
    value = tl.load(seed)
    low, high = (value & 0xFFFFFFFF).to(tl.uint32), (value >> 32).to(tl.uint32)
    return mix(rows.to(tl.uint32) + low) ^ high


@triton.jit
def drop(weights: tl.tensor, words: tl.tensor, columns: tl.tensor, level: tl.tensor, keep_factor: tl.tensor) -> tl.tensor:
    """Dropout of weights, or of their gradients; ``words`` and ``columns`` broadcast to their shape."""
    kept = mix(words ^ (columns.to(tl.uint32) * 0x9E3779B1)).to(tl.int32, bitcast=True) >= level
    return tl.where(kept, weights * keep_factor, 0.0)


@triton.jit
def load_rows(
    base: tl.tensor, offsets: tl.tensor, d: tl.tensor, is_used: tl.tensor, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Rows at ``base + offsets``, (n, BLOCK_D); rows that are not used, and what pads D, are 0."""
    pointers = base + offsets[:, None] + d[None, :]
    if WIDTH == BLOCK_D:
        return tl.load(pointers, mask=is_used[:, None], other=0.0)
    return tl.load(pointers, mask=is_used[:, None] & (d < WIDTH)[None, :], other=0.0)


@triton.jit
def store_rows(
    base: tl.tensor, offsets: tl.tensor, d: tl.tensor, is_used: tl.tensor, values: tl.tensor, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """The counterpart of :func:`load_rows`."""
    tl.store(base + offsets[:, None] + d[None, :], values.to(base.dtype.element_ty), mask=is_used[:, None] & (d < WIDTH)[None, :])


@triton.jit
def usable_keys(
    key_is_valid: tl.tensor, sample: tl.tensor, columns: tl.tensor, key_limit: tl.tensor, S: tl.tensor,
    HAS_KEY_MASK: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Which of these columns are keys that count."""
    is_key = columns < key_limit
    if HAS_KEY_MASK:
        is_key = is_key & (tl.load(key_is_valid + sample * S + columns, mask=is_key, other=0) != 0)
    return is_key


@triton.jit
def limit(lens: tl.tensor, sample: tl.tensor, size: tl.tensor, HAS_LENS: tl.constexpr) -> tl.tensor:
    """How many of ``size`` entries this sample has."""
    if HAS_LENS:
        return tl.minimum(tl.load(lens + sample).to(tl.int32), size)
    return size


@triton.jit
def place_of(tiles: tl.tensor, H: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Tile, sample and head of this program. The grid has one axis, since the others of a GPU end at 65,535."""
    program = tl.program_id(0)
    return program % tiles, (program // tiles // H).to(tl.int64), program // tiles % H


@triton.jit
def softmax_step(
    scores: tl.tensor, values: tl.tensor, largest: tl.tensor, total: tl.tensor, mixed: tl.tensor, words: tl.tensor,
    columns: tl.tensor, level: tl.tensor, keep_factor: tl.tensor, HAS_DROPOUT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Take one tile of columns into the running softmax (largest score, sum of weights, weighted sum of values)."""
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    pivot = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # so that rows without any column stay free of NaN
    weights = tl.exp2(scores - pivot[:, None])
    shrink = tl.exp2(largest - pivot)
    total = total * shrink + tl.sum(weights, axis=1)
    if HAS_DROPOUT:
        weights = drop(weights, words[:, None], columns[None, :], level, keep_factor)
    mixed = tl.dot(weights.to(values.dtype), values, acc=mixed * shrink[:, None], input_precision="ieee")
    return new_largest, total, mixed


@triton.jit(do_not_specialize=("L", "S", "M", "level"))
def forward_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, mem_k: tl.tensor, mem_v: tl.tensor, out: tl.tensor, lse: tl.tensor,
    key_lens: tl.tensor, key_is_valid: tl.tensor, query_lens: tl.tensor, mem_bias: tl.tensor, threshold: tl.tensor,
    seed: tl.tensor, q_b: tl.tensor, q_l: tl.tensor, q_h: tl.tensor, k_b: tl.tensor, k_s: tl.tensor, k_h: tl.tensor,
    v_b: tl.tensor, v_s: tl.tensor, v_h: tl.tensor, mem_k_m: tl.tensor, mem_k_h: tl.tensor, mem_v_m: tl.tensor,
    mem_v_h: tl.tensor, H: tl.tensor, L: tl.tensor, S: tl.tensor, M: tl.tensor, level: tl.tensor, scale_log2: tl.tensor,
    keep_factor: tl.tensor, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_KEY_LENS: tl.constexpr, HAS_KEY_MASK: tl.constexpr, HAS_QUERY_LENS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr, HAS_DROPOUT: tl.constexpr,
) -> None:  # fmt: skip
    """``out`` (B, L, H, D) and ``lse`` (B, L, H), one tile of queries of one head; grid (tiles of L times B H)."""
    tile, sample, head = place_of(tl.cdiv(L, BLOCK_L), H)
    queries, d = tile * BLOCK_L + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    query_limit = limit(query_lens, sample, L, HAS_QUERY_LENS)
    is_query = queries < query_limit
    has_queries = tile * BLOCK_L < query_limit
    key_limit = tl.where(has_queries, limit(key_lens, sample, S, HAS_KEY_LENS), 0)
    slot_limit = tl.where(has_queries, M, 0)
    places = (sample * L + queries) * H + head

    query = load_rows(q + sample * q_b + head * q_h, queries * q_l, d, is_query, WIDTH, BLOCK_D)
    largest = tl.full([BLOCK_L], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_L], tl.float32)
    mixed = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)
    words = row_words(seed, (sample * H + head) * L + queries) if HAS_DROPOUT else queries

    for start in range(0, key_limit, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        is_key = usable_keys(key_is_valid, sample, columns, key_limit, S, HAS_KEY_MASK)
        key = load_rows(k + sample * k_b + head * k_h, columns * k_s, d, is_key, WIDTH, BLOCK_D)
        value = load_rows(v + sample * v_b + head * v_h, columns * v_s, d, is_key, WIDTH, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        largest, total, mixed = softmax_step(
            scores, value, largest, total, mixed, words, columns, level, keep_factor, HAS_DROPOUT
        )  # fmt: skip

    bias = tl.load(mem_bias + head).to(tl.float32) * LOG2E if HAS_BIAS else 0.0
    lowest = tl.load(threshold + places, mask=is_query, other=0.0) if HAS_THRESHOLD else largest
    for start in range(0, slot_limit, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        is_slot = columns < M
        key = load_rows(mem_k + head * mem_k_h, columns * mem_k_m, d, is_slot, WIDTH, BLOCK_D)
        value = load_rows(mem_v + head * mem_v_h, columns * mem_v_m, d, is_slot, WIDTH, BLOCK_D)
        raw = tl.dot(query, tl.trans(key), input_precision="ieee")
        scores = raw * scale_log2 + bias
        if HAS_THRESHOLD:  # a NaN is not below anything, and so it shows
            scores = tl.where(raw < lowest[:, None], float("-inf"), scores)
        scores = tl.where(is_slot[None, :], scores, float("-inf"))
        largest, total, mixed = softmax_step(
            scores, value, largest, total, mixed, words, S + columns, level, keep_factor, HAS_DROPOUT
        )  # fmt: skip

    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    mixed = tl.where(is_query[:, None], mixed, 0.0)
    is_reached = is_query & (total != 0.0)
    log_total = tl.where(is_reached, (largest + tl.log2(tl.where(is_reached, total, 1.0))) * LN2, float("-inf"))
    store_rows(out, places * WIDTH, d, queries < L, mixed, WIDTH)
    tl.store(lse + places, log_total, mask=queries < L)


@triton.jit
def weights_of(scores: tl.tensor, log_total: tl.tensor, is_used: tl.tensor) -> tl.tensor:
    """``exp(score - lse)``, 0 where a column is not used or a row reached nothing (lse = -inf, given as +inf)."""
    return tl.where(is_used, tl.exp2(scores - log_total), 0.0)


@triton.jit
def load_log_total(lse: tl.tensor, places: tl.tensor, is_query: tl.tensor) -> tl.tensor:
    """The log-sum-exp in base 2; +inf for rows that carry no weight, so that their weights are 0."""
    log_total = tl.load(lse + places, mask=is_query, other=float("-inf"))
    return tl.where(log_total == float("-inf"), float("inf"), log_total * LOG2E)


@triton.jit(do_not_specialize=("L", "S", "M", "level"))
def grad_query_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, mem_k: tl.tensor, mem_v: tl.tensor, out: tl.tensor, lse: tl.tensor,
    grad_out: tl.tensor, grad_lse: tl.tensor, grad_q: tl.tensor, grad_k: tl.tensor, grad_v: tl.tensor, delta: tl.tensor,
    key_lens: tl.tensor, key_is_valid: tl.tensor, query_lens: tl.tensor, mem_bias: tl.tensor, threshold: tl.tensor,
    seed: tl.tensor, q_b: tl.tensor, q_l: tl.tensor, q_h: tl.tensor, k_b: tl.tensor, k_s: tl.tensor, k_h: tl.tensor,
    v_b: tl.tensor, v_s: tl.tensor, v_h: tl.tensor, mem_k_m: tl.tensor, mem_k_h: tl.tensor, mem_v_m: tl.tensor,
    mem_v_h: tl.tensor, H: tl.tensor, L: tl.tensor, S: tl.tensor, M: tl.tensor, level: tl.tensor, scale: tl.tensor,
    keep_factor: tl.tensor, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_KEY_LENS: tl.constexpr, HAS_KEY_MASK: tl.constexpr, HAS_QUERY_LENS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr, HAS_DROPOUT: tl.constexpr, HAS_GRAD_LSE: tl.constexpr, WITH_KEYS: tl.constexpr,
) -> None:  # fmt: skip
    """``grad_q`` and ``delta`` of one tile of queries; grid (tiles of L times B H).

    WITH_KEYS: the tile holds all queries of the sample, so that the gradients of its keys are complete here: five products
    instead of the seven of two kernels.
    """
    tile, sample, head = place_of(tl.cdiv(L, BLOCK_L), H)
    queries, d = tile * BLOCK_L + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_D)
    query_limit = limit(query_lens, sample, L, HAS_QUERY_LENS)
    is_query = queries < query_limit
    has_queries = tile * BLOCK_L < query_limit
    key_limit = limit(key_lens, sample, S, HAS_KEY_LENS)
    if not WITH_KEYS:  # keys get their zeros even from a tile without queries
        key_limit = tl.where(has_queries, key_limit, 0)
    slot_limit = tl.where(has_queries, M, 0)
    places = (sample * L + queries) * H + head
    scale_log2 = scale * LOG2E

    query = load_rows(q + sample * q_b + head * q_h, queries * q_l, d, is_query, WIDTH, BLOCK_D)
    d_out = load_rows(grad_out, places * WIDTH, d, is_query, WIDTH, BLOCK_D)
    result = load_rows(out, places * WIDTH, d, is_query, WIDTH, BLOCK_D)
    row_delta = tl.sum(d_out.to(tl.float32) * result.to(tl.float32), axis=1)
    if HAS_GRAD_LSE:
        row_delta -= tl.load(grad_lse + places, mask=is_query, other=0.0)
    tl.store(delta + places, row_delta, mask=queries < L)
    log_total = load_log_total(lse, places, is_query)[:, None]
    words = row_words(seed, (sample * H + head) * L + queries) if HAS_DROPOUT else queries
    d_query = tl.zeros([BLOCK_L, BLOCK_D], tl.float32)

    for start in range(0, key_limit, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        is_key = usable_keys(key_is_valid, sample, columns, key_limit, S, HAS_KEY_MASK)
        key = load_rows(k + sample * k_b + head * k_h, columns * k_s, d, is_key, WIDTH, BLOCK_D)
        value = load_rows(v + sample * v_b + head * v_h, columns * v_s, d, is_key, WIDTH, BLOCK_D)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        weights = weights_of(scores, log_total, is_key[None, :])
        d_weights = tl.dot(d_out, tl.trans(value), input_precision="ieee")
        used = weights
        if HAS_DROPOUT:
            used = drop(weights, words[:, None], columns[None, :], level, keep_factor)
            d_weights = drop(d_weights, words[:, None], columns[None, :], level, keep_factor)
        d_scores = (weights * (d_weights - row_delta[:, None])).to(key.dtype)
        d_query = tl.dot(d_scores, key, acc=d_query, input_precision="ieee")
        if WITH_KEYS:
            d_value = tl.dot(tl.trans(used.to(d_out.dtype)), d_out, input_precision="ieee")
            d_key = tl.dot(tl.trans(d_scores), query, input_precision="ieee") * scale
            key_places = ((sample * S + columns) * H + head) * WIDTH
            store_rows(grad_v, key_places, d, columns < S, d_value, WIDTH)
            store_rows(grad_k, key_places, d, columns < S, d_key, WIDTH)

    bias = tl.load(mem_bias + head).to(tl.float32) * LOG2E if HAS_BIAS else 0.0
    lowest = tl.load(threshold + places, mask=is_query, other=0.0) if HAS_THRESHOLD else row_delta
    for start in range(0, slot_limit, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        is_slot = columns < M
        key = load_rows(mem_k + head * mem_k_h, columns * mem_k_m, d, is_slot, WIDTH, BLOCK_D)
        value = load_rows(mem_v + head * mem_v_h, columns * mem_v_m, d, is_slot, WIDTH, BLOCK_D)
        raw = tl.dot(query, tl.trans(key), input_precision="ieee")
        is_used = is_slot[None, :]
        if HAS_THRESHOLD:
            is_used = is_used & ~(raw < lowest[:, None])
        weights = weights_of(raw * scale_log2 + bias, log_total, is_used)
        d_weights = tl.dot(d_out, tl.trans(value), input_precision="ieee")
        if HAS_DROPOUT:
            d_weights = drop(d_weights, words[:, None], (S + columns)[None, :], level, keep_factor)
        d_scores = (weights * (d_weights - row_delta[:, None])).to(key.dtype)
        d_query = tl.dot(d_scores, key, acc=d_query, input_precision="ieee")

    store_rows(grad_q, places * WIDTH, d, queries < L, d_query * scale, WIDTH)


@triton.jit(do_not_specialize=("L", "S", "level"))
def grad_key_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, lse: tl.tensor, grad_out: tl.tensor, grad_k: tl.tensor, grad_v: tl.tensor,
    delta: tl.tensor, key_lens: tl.tensor, key_is_valid: tl.tensor, query_lens: tl.tensor, seed: tl.tensor, q_b: tl.tensor,
    q_l: tl.tensor, q_h: tl.tensor, k_b: tl.tensor, k_s: tl.tensor, k_h: tl.tensor, v_b: tl.tensor, v_s: tl.tensor,
    v_h: tl.tensor, H: tl.tensor, L: tl.tensor, S: tl.tensor, level: tl.tensor, scale: tl.tensor, keep_factor: tl.tensor,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, HAS_KEY_LENS: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, HAS_QUERY_LENS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
) -> None:  # fmt: skip
    """``grad_k`` and ``grad_v`` of one tile of keys; grid (tiles of S times B H). Scores are transposed: (keys, queries)."""
    tile, sample, head = place_of(tl.cdiv(S, BLOCK_N), H)
    columns, d = tile * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    key_limit = limit(key_lens, sample, S, HAS_KEY_LENS)
    query_limit = limit(query_lens, sample, L, HAS_QUERY_LENS)
    query_limit = tl.where(tile * BLOCK_N < key_limit, query_limit, 0)
    is_key = usable_keys(key_is_valid, sample, columns, key_limit, S, HAS_KEY_MASK)
    key = load_rows(k + sample * k_b + head * k_h, columns * k_s, d, is_key, WIDTH, BLOCK_D)
    value = load_rows(v + sample * v_b + head * v_h, columns * v_s, d, is_key, WIDTH, BLOCK_D)
    d_key = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    d_value = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    for start in range(0, query_limit, BLOCK_L):
        queries = start + tl.arange(0, BLOCK_L)
        is_query = queries < query_limit
        places = (sample * L + queries) * H + head
        query = load_rows(q + sample * q_b + head * q_h, queries * q_l, d, is_query, WIDTH, BLOCK_D)
        d_out = load_rows(grad_out, places * WIDTH, d, is_query, WIDTH, BLOCK_D)
        log_total = load_log_total(lse, places, is_query)
        row_delta = tl.load(delta + places, mask=is_query, other=0.0)
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * (scale * LOG2E)
        weights = weights_of(scores, log_total[None, :], is_key[:, None])
        d_weights = tl.dot(value, tl.trans(d_out), input_precision="ieee")
        used = weights
        if HAS_DROPOUT:
            words = row_words(seed, (sample * H + head) * L + queries)
            used = drop(weights, words[None, :], columns[:, None], level, keep_factor)
            d_weights = drop(d_weights, words[None, :], columns[:, None], level, keep_factor)
        d_value = tl.dot(used.to(d_out.dtype), d_out, acc=d_value, input_precision="ieee")
        d_scores = weights * (d_weights - row_delta[None, :])
        d_key = tl.dot(d_scores.to(query.dtype), query, acc=d_key, input_precision="ieee")

    key_places = ((sample * S + columns) * H + head) * WIDTH
    store_rows(grad_k, key_places, d, columns < S, d_key * scale, WIDTH)
    store_rows(grad_v, key_places, d, columns < S, d_value, WIDTH)


@triton.jit(do_not_specialize=("L", "S", "M", "rows", "rows_per_split", "level"))
def grad_slot_kernel(
    q: tl.tensor, mem_k: tl.tensor, mem_v: tl.tensor, lse: tl.tensor, grad_out: tl.tensor, delta: tl.tensor,
    partial_k: tl.tensor, partial_v: tl.tensor, partial_bias: tl.tensor, mem_bias: tl.tensor, threshold: tl.tensor,
    seed: tl.tensor, q_b: tl.tensor, q_l: tl.tensor, q_h: tl.tensor, mem_k_m: tl.tensor, mem_k_h: tl.tensor, mem_v_m: tl.tensor,
    mem_v_h: tl.tensor, H: tl.tensor, L: tl.tensor, S: tl.tensor, M: tl.tensor, rows: tl.tensor, rows_per_split: tl.tensor,
    level: tl.tensor, scale: tl.tensor, keep_factor: tl.tensor, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_THRESHOLD: tl.constexpr,
    HAS_DROPOUT: tl.constexpr,
) -> None:  # fmt: skip
    """Partial sums of the memory's gradients: (splits, M, H, D) and (splits, tiles of M, H); grid (tiles of M, H, splits).

    Samples are folded: a split walks through its share of all ``rows`` = B L queries, in a fixed order and without atomics.
    """
    head, split = tl.program_id(1), tl.program_id(2).to(tl.int64)
    columns, d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    is_slot = columns < M
    key = load_rows(mem_k + head * mem_k_h, columns * mem_k_m, d, is_slot, WIDTH, BLOCK_D)
    value = load_rows(mem_v + head * mem_v_h, columns * mem_v_m, d, is_slot, WIDTH, BLOCK_D)
    bias = tl.load(mem_bias + head).to(tl.float32) * LOG2E if HAS_BIAS else 0.0
    d_key = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    d_value = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    d_bias = 0.0

    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, rows)
    for start in range(first, last, BLOCK_L):
        row = start + tl.arange(0, BLOCK_L)
        is_row = row < last
        sample, query_index = row // L, row % L
        places = row * H + head
        log_total = load_log_total(lse, places, is_row)
        is_row = is_row & (log_total < float("inf"))  # padded queries may hold anything
        query = load_rows(q + head * q_h, sample * q_b + query_index * q_l, d, is_row, WIDTH, BLOCK_D)
        d_out = load_rows(grad_out, places * WIDTH, d, is_row, WIDTH, BLOCK_D)
        row_delta = tl.load(delta + places, mask=is_row, other=0.0)
        raw = tl.dot(key, tl.trans(query), input_precision="ieee")
        is_used = is_slot[:, None]
        if HAS_THRESHOLD:
            lowest = tl.load(threshold + places, mask=is_row, other=0.0)
            is_used = is_used & ~(raw < lowest[None, :])
        weights = weights_of(raw * (scale * LOG2E) + bias, log_total[None, :], is_used)
        d_weights = tl.dot(value, tl.trans(d_out), input_precision="ieee")
        used = weights
        if HAS_DROPOUT:
            words = row_words(seed, (sample * H + head) * L + query_index)
            used = drop(weights, words[None, :], (S + columns)[:, None], level, keep_factor)
            d_weights = drop(d_weights, words[None, :], (S + columns)[:, None], level, keep_factor)
        d_value = tl.dot(used.to(d_out.dtype), d_out, acc=d_value, input_precision="ieee")
        d_scores = weights * (d_weights - row_delta[None, :])
        if HAS_BIAS:
            d_bias += tl.sum(d_scores)
        d_key = tl.dot(d_scores.to(query.dtype), query, acc=d_key, input_precision="ieee")

    slot_places = ((split * M + columns) * H + head) * WIDTH
    store_rows(partial_k, slot_places, d, is_slot, d_key * scale, WIDTH)
    store_rows(partial_v, slot_places, d, is_slot, d_value, WIDTH)
    if HAS_BIAS:
        tl.store(partial_bias + (split * tl.num_programs(0) + tl.program_id(0)) * H + head, d_bias)
