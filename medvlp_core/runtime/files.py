"""Files that are there as a whole or not at all, also if the process is killed or the machine dies while they are written."""

from __future__ import annotations

import os
from pathlib import Path


def write_at_once(path: Path, text: str) -> None:
    """Write a text file: whoever reads it finds the old one or the new one, never half.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
