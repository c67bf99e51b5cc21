"""What a device can do at best, and clocks for it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import attrs
import torch

from medvlp_core.kernels.benchmark import Work

#: Before a timed call the GPU spins so many cycles (about a millisecond), so that the host is ahead and its own work is not timed.
GPU_SPIN_CYCLES = 2_000_000
#: Exponentials a second of an H100: 16 a clock and multiprocessor, at 1.755 GHz.
H100_EXPS, H100_MULTIPROCESSORS = 3.7e12, 132


class Clock(Protocol):
    """Times calls."""

    def time(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], float]]:
        """The result of a call, and a function that gives its seconds once :meth:`finish` has run."""

    def finish(self) -> None:
        """Wait until all that was timed is done."""


class HostClock:
    """For devices that compute while the host waits."""

    def time(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], float]]:
        """See :class:`Clock`."""
        start = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - start
        return result, lambda: seconds

    def finish(self) -> None:
        """Nothing is pending."""


class CudaClock:
    """Events on the GPU's stream; the GPU spins first, so that the host's own work is not in between."""

    def time(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], float]]:
        """See :class:`Clock`."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(GPU_SPIN_CYCLES)
        start.record()
        result = function()
        end.record()
        return result, lambda: start.elapsed_time(end) / 1e3

    def finish(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()


def clock_for(device: torch.device) -> Clock:
    """The clock for a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


# ---------------------------------------------------------------------------------------------------------------------- rates


@attrs.frozen(kw_only=True)
class Rates:
    """What a device does in a second at best: operations of a large matrix product, bytes of a large copy, exponentials."""

    flops: float
    bytes: float
    exps: float

    def floor(self, work: Work) -> float:
        """Seconds below which no implementation can get.

        Example:
            >>> Rates(flops=100.0, bytes=10.0, exps=1.0).floor(Work(flops=300.0, bytes=50.0))
            5.0
        """
        return max(work.flops / self.flops, work.bytes / self.bytes, work.exps / self.exps)

    @property
    def text(self) -> str:
        """The three numbers with units."""
        return f"{self.flops / 1e9:,.0f} GFLOP/s (matmul), {self.bytes / 1e9:,.0f} GB/s (copy), {self.exps / 1e9:,.1f} Gexp/s"


def device_label(device: torch.device) -> str:
    """The device in words, without the name of the host."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()}-core {platform.machine()} CPU" if device.type == "cpu" else device.type


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure a large matrix product in ``dtype`` and a large copy; exponentials are measured on a CPU, computed for a GPU."""
    on_gpu = device.type == "cuda"
    side, numbers = (8192, 2**29) if on_gpu else (1024, 2**25)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.ones(numbers, device=device, dtype=torch.float32)
    target = torch.empty_like(source)
    few = torch.randn(2**20, device=device)
    result = torch.empty_like(few)
    with torch.no_grad(), on_device(device):
        flops = 2.0 * side**3 / _best(lambda: torch.mm(left, right, out=product), device)
        moved = 8.0 * numbers / _best(lambda: target.copy_(source), device)
        if on_gpu:
            exps = H100_EXPS * torch.cuda.get_device_properties(device).multi_processor_count / H100_MULTIPROCESSORS
        else:
            exps = few.numel() / _best(lambda: torch.exp(few, out=result), device)
    return Rates(flops=flops, bytes=moved, exps=exps)


def _best(function: Callable[[], Any], device: torch.device) -> float:
    """The second best of some calls, in seconds."""
    clock = clock_for(device)
    function()
    readers = [clock.time(function)[1] for _ in range(15)]
    clock.finish()
    return sorted(read() for read in readers)[1]


def free_bytes(device: torch.device) -> int:
    """How much memory can be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**63


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a GPU the current one."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield
