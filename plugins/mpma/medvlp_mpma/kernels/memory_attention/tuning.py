"""Which tile sizes the kernels of memory attention use: read from a table per GPU architecture in the folder ``tuning``.

A table lists, per kernel, rules in order; the first that fits decides. A rule serves numbers of ``bits`` bits, heads up to
``head_width`` (padded to a power of two) and, for ``grad_query_with_keys``, as many queries as ``block_l``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from medvlp_mpma.kernels.inputs import AttentionInputs
from medvlp_mpma.kernels.options import launch_options
from medvlp_mpma.kernels.tables import gpu_tables, read_table, table_name

#: Up to so many keys a sample ``auto`` takes our kernels on a GPU: for more, library kernels are expected to be faster (a model,
#: not yet a measurement).
TRITON_UP_TO_KEYS = 256
TABLES = Path(__file__).parent / "tables"


@attrs.frozen(kw_only=True)
class Tiles:
    """Tile sizes (rows of queries, columns of keys or slots, padded head width), warps and pipeline stages of a kernel."""

    block_l: int
    block_n: int
    block_d: int
    warps: int
    stages: int

    def blocks(self) -> dict[str, int]:
        """The kernels' compile-time sizes."""
        return {"BLOCK_L": self.block_l, "BLOCK_N": self.block_n, "BLOCK_D": self.block_d}

    def launch(self) -> dict[str, int | bool]:
        """Triton's launch options."""
        return launch_options(self.warps, self.stages)


def choose(kernel: str, inputs: AttentionInputs) -> Tiles:
    """The tiles of a kernel for these inputs."""
    tiles = _first_fit(kernel, inputs)
    assert tiles is not None, f"the widths that {kernel} serves are checked before"
    return tiles


def holds_all_queries(inputs: AttentionInputs) -> bool:
    """Whether a tile takes all queries of a sample, so that one kernel computes the gradients of queries and keys."""
    return _first_fit("grad_query_with_keys", inputs) is not None


def widest_head(dtype: str) -> int:
    """The widest head that the tables of all GPUs serve in a dtype."""
    bits = 32 if dtype == "float32" else 16
    tables = (read_table(TABLES, name) for name in gpu_tables(TABLES))
    return min(max(rule["head_width"] for rule in table["grad_slot"] if rule["bits"] == bits) for table in tables)


def count_splits(inputs: AttentionInputs, programs_per_split: int) -> int:
    """In how many parts the queries are split for the memory's gradients: enough programs to fill the GPU."""
    return max(1, _table(inputs)["programs"] // programs_per_split)


def _first_fit(kernel: str, inputs: AttentionInputs) -> Tiles | None:
    bits, queries, width = 8 * inputs.q.element_size(), *inputs.q.shape[1::2]
    for rule in _table(inputs)[kernel]:
        is_tall_enough = kernel != "grad_query_with_keys" or rule["block_l"] >= queries
        if rule["bits"] == bits and rule["head_width"] >= width and is_tall_enough:
            return tiles_of(rule, width)
    return None


def rules(table: str) -> dict[str, list[dict[str, int]]]:
    """The rules of a table by kernel."""
    return {kernel: found for kernel, found in read_table(TABLES, table).items() if isinstance(found, list)}


def tiles_of(rule: dict[str, int], width: int) -> Tiles:
    """A rule's tiles for heads of ``width``."""
    sizes = {name: rule[name] for name in ("block_l", "block_n", "warps", "stages")}
    return Tiles(block_d=padded_width(width), **sizes)


def _table(inputs: AttentionInputs) -> dict[str, Any]:
    return read_table(TABLES, table_name(TABLES, inputs.q.device))


def padded_width(width: int) -> int:
    """The next power of two from 16 on: what a tile's inner side must be."""
    return max(16, 1 << (width - 1).bit_length())
