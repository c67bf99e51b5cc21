"""The machine: its device, the other processes, files that are written whole."""

from __future__ import annotations

from medvlp_core.runtime.device import AUTOCAST_DTYPES, autocast, choose_device, to_device, usable_devices
from medvlp_core.runtime.distributed import (
    add_over_ranks,
    all_gather_object,
    broadcast_object,
    first_row,
    gather_rows,
    is_main,
    largest_over_ranks,
    launched_processes,
    local_batch_sizes,
    local_only,
    process_group,
    rank,
    sum_over_ranks,
    sync_errors,
    world_size,
)
from medvlp_core.runtime.files import write_at_once

__all__ = [
    "AUTOCAST_DTYPES",
    "add_over_ranks",
    "all_gather_object",
    "autocast",
    "broadcast_object",
    "choose_device",
    "first_row",
    "gather_rows",
    "is_main",
    "largest_over_ranks",
    "launched_processes",
    "local_batch_sizes",
    "local_only",
    "process_group",
    "rank",
    "sum_over_ranks",
    "sync_errors",
    "to_device",
    "usable_devices",
    "world_size",
    "write_at_once",
]
