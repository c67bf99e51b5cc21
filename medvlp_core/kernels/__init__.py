"""Ops with several implementations, and which of them serves a call.

``benchmark``, ``benchmark_report``, ``timing`` and ``machine`` are public modules.
"""

from __future__ import annotations

from medvlp_core.kernels.dispatch import Backend, Call, Kernel, requested_backend

__all__ = [
    "Backend",
    "Call",
    "Kernel",
    "requested_backend",
]
