"""Tables of tile sizes, one file per GPU architecture and one for Triton's interpreter, in a folder beside the kernel."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch


@functools.cache
def read_table(folder: Path, name: str) -> dict[str, Any]:
    """The table ``name`` (``sm_90``, ``interpreter``) of a folder."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def gpu_tables(folder: Path) -> tuple[str, ...]:
    """The names of a folder's tables for GPUs, oldest architecture first."""
    return tuple(f"sm_{number}" for number in sorted(int(path.stem.removeprefix("sm_")) for path in folder.glob("sm_*.json")))


@functools.cache
def table_name(folder: Path, device: torch.device) -> str:
    """The table for a device: its architecture's, else that of the nearest older one that its shared memory is large enough for.

    GPUs for desktops (8.6, 8.9, 12.0) have less than half of the shared memory of those for servers.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    properties: Any = torch.cuda.get_device_properties(device)  # its stub lacks the next line's field
    shared = properties.shared_memory_per_block_optin
    older = [name for name in gpu_tables(folder) if int(name.removeprefix("sm_")) <= 10 * major + minor]
    return [name for name in older if 1024 * read_table(folder, name)["shared_kib"] <= shared][-1]
