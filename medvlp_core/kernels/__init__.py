"""Ops with several implementations, and which of them serves a call.

``benchmark``, ``benchmark_files``, ``benchmark_report``, ``machine`` and ``timing`` are public modules.
"""

from __future__ import annotations

from medvlp_core.kernels.dispatch import Backend, Call, Kernel, requested_backend

__all__ = [
    "Backend",
    "Call",
    "Kernel",
    "requested_backend",
]
