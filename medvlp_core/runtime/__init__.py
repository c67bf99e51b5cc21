"""The machine: its device, the other processes, files that are written whole."""

from __future__ import annotations

from medvlp_core.runtime.device import autocast, choose_device, to_device, usable_devices
from medvlp_core.runtime.distributed import (
    add_over_ranks,
    alone,
    first_row,
    from_all,
    from_main,
    gather_rows,
    is_main,
    largest_over_ranks,
    launched_processes,
    process_group,
    rank,
    row_counts,
    sum_over_ranks,
    together,
    world_size,
)
from medvlp_core.runtime.files import write_at_once

__all__ = [
    "add_over_ranks",
    "alone",
    "autocast",
    "choose_device",
    "first_row",
    "from_all",
    "from_main",
    "gather_rows",
    "is_main",
    "largest_over_ranks",
    "launched_processes",
    "process_group",
    "rank",
    "row_counts",
    "sum_over_ranks",
    "to_device",
    "together",
    "usable_devices",
    "world_size",
    "write_at_once",
]
