"""Triton's interpreter for all tests of kernels, and the compile gate's table at the end of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest

if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]  # there are builds of Triton for Linux only
else:
    # Read when a kernel's module is imported; tests/conftest.py did the same for Triton's own functions.
    os.environ["TRITON_INTERPRET"] = "1"
    import medvlp_mpma.kernels.memory_attention.triton_kernel
    import medvlp_mpma.kernels.memory_topk.triton_kernel  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    """Calls of these tests may take the Triton path on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield


TABLES: pytest.StashKey[list[str]] = pytest.StashKey()


@pytest.fixture
def show_at_the_end(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a text in the summary of the run."""
    return request.config.stash.setdefault(TABLES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what tests asked to be shown."""
    for text in config.stash.get(TABLES, []):
        terminalreporter.section("compiled for GPUs")
        terminalreporter.write_line(text)
