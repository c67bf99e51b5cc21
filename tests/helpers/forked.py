"""Processes that need not import torch: they are forked from a helper that has imported it, and that does nothing else.

A fresh interpreter takes seconds of processor time for its imports, a fork milliseconds. The helper is Python's fork server. It is
no fork of the tests' own process, whose threads, devices and patches would come along.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["medvlp_core.training.trainer", "medvlp_standard.image_encoders", "medvlp_standard.text_encoders", "medvlp_mpma.fusion"]
)


def free_address() -> dict[str, str]:
    """Where the processes of a group meet, as torchrun tells it in the environment: a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


def in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in two processes that make one group: ``function(rank, *arguments)``."""
    torch.multiprocessing.start_processes(_ranked, (function, free_address(), arguments), nprocs=2, start_method="forkserver")


def _ranked(rank: int, function: Callable[..., None], address: dict[str, str], arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", **address)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)
    function(rank, *arguments)


class Forked:
    """``python -m MODULE WORDS`` as a process, with the methods of ``subprocess.Popen`` that the tests use.

    ``before``: called in the process before the module is.
    """

    def __init__(
        self, module: str, *words: str, environment: dict[str, str] | None = None, before: Callable[[], object] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        folder, environ = Path(self._folder.name), {**os.environ, **(environment or {})}
        self._texts = folder / "out", folder / "err"
        self._process = _CONTEXT.Process(target=_run_module, args=(module, words, environ, os.getcwd(), self._texts, before))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """As a scheduler or a terminal does."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and to stderr, when it has ended."""
        self.wait(timeout)
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self._texts)
        return out, err


def _run_module(
    module: str,
    words: tuple[str, ...],
    environment: dict[str, str],
    folder: str,
    texts: tuple[Path, Path],
    before: Callable[[], object] | None,
) -> None:
    multiprocessing.set_start_method(None, force=True)  # what it starts itself is started as in a fresh interpreter
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(texts, start=1):
        with path.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), number)
    if before is not None:
        before()
    sys.argv = [module, *words]
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
