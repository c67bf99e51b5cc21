"""One command at a time works in a run folder."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvlp_core.errors import DataError, Problem

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process; the operating system lets go of it when the process ends, however it does.

    Where the file system knows no locks, or on Windows, nothing is kept.

    Raises:
        DataError: another process works in it (MV508).
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    # Of POSIX's kind: loader processes do not inherit it. It would end if this process opened and closed the file once more.
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _in_use(folder, file.name) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _in_use(folder: Path, name: str) -> DataError:
    who = Path(name).read_text(encoding="utf-8").strip() or "another process"
    hint = "wait for it or end it; processes of a launcher that was killed may run on for a while"
    return DataError(Problem(code="MV508", text=f"{folder}: {who} works in this run folder", hint=hint))
