"""Which tile sizes the threshold kernel uses: read from a table per GPU architecture in the folder ``tuning``.

A table lists rules in order; the first that fits decides. A rule serves numbers of ``bits`` bits, heads up to ``head_width`` and
memories up to ``slots``. Larger tiles of queries read the memory less often; what bounds them is that all scores of a tile stay in
registers, and that two programs should share a multiprocessor.
"""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import torch

from medvlp_mpma.kernels.calls import is_interpreted
from medvlp_mpma.kernels.options import launch_options
from medvlp_mpma.kernels.tables import gpu_tables, read_table, table_name

TABLES = Path(__file__).parent / "tables"


@attrs.frozen(kw_only=True)
class Tiles:
    """Queries of a tile, slots of a piece and number of pieces, width of a chunk and number of chunks, warps, pipeline stages."""

    queries: int
    piece: int
    pieces: int
    chunk: int
    chunks: int
    warps: int
    stages: int

    def blocks(self) -> dict[str, int]:
        """The kernel's compile-time sizes."""
        names = {"QUERIES": self.queries, "PIECE": self.piece, "PIECES": self.pieces}
        return {**names, "CHUNK": self.chunk, "CHUNKS": self.chunks}

    def launch(self) -> dict[str, int | bool]:
        """Triton's launch options."""
        return launch_options(self.warps, self.stages)


def choose(slots: int, head_width: int, bits: int, device: torch.device) -> Tiles:
    """The tiles for a memory of ``slots`` slots and heads of ``head_width`` numbers of ``bits`` bits."""
    tiles = tiles_for(table_name(TABLES, device), slots, head_width, bits)
    assert tiles is not None, "unsupported_reasons is asked before"
    return tiles


def tiles_for(table: str, slots: int, head_width: int, bits: int) -> Tiles | None:
    """The tiles that a table gives, or None if it serves no such memory."""
    for rule in rules(table):
        if rule["bits"] == bits and rule["head_width"] >= head_width and rule["slots"] >= slots:
            chunk = min(rule["chunk"], max(16, 1 << (head_width - 1).bit_length()))
            return Tiles(
                queries=rule["queries"],
                piece=rule["piece"],
                pieces=math.ceil(slots / rule["piece"]),
                chunk=chunk,
                chunks=max(rule["least_chunks"], math.ceil(head_width / chunk)),
                warps=rule["warps"],
                stages=rule["stages"],
            )
    return None


def rules(table: str) -> list[dict[str, int]]:
    """The rules of a table."""
    return read_table(TABLES, table)["threshold"]


def unsupported_reasons(slots: int, head_width: int, dtype: str) -> tuple[str, ...]:
    """Why the kernel cannot serve on every GPU that has a table (in the interpreter: there); empty if it can.

    Example:
        >>> unsupported_reasons(5000, 64, "bfloat16")
        ('all scores of a query stay in registers: 5000 slots are too many, at most 4096 fit in bfloat16',)
    """
    bits = 32 if dtype == "float32" else 16
    tables = ("interpreter",) if is_interpreted() else gpu_tables(TABLES)
    fitting = [[rule for rule in rules(table) if rule["bits"] == bits and rule["head_width"] >= head_width] for table in tables]
    if not all(fitting):
        widest = min(max(rule["head_width"] for rule in rules(table) if rule["bits"] == bits) for table in tables)
        return (f"heads are {head_width} wide, at most {widest} fit in {dtype}",)
    most = min(max(rule["slots"] for rule in found) for found in fitting)
    if slots > most:
        return (f"all scores of a query stay in registers: {slots} slots are too many, at most {most} fit in {dtype}",)
    return ()
