"""How a plugin declares an op with several implementations. The implementations are chosen in medvlp_core.kernels.dispatch."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class KernelOp:
    """Declaration of an op: its name, what it does, and where its :class:`Kernel` and its benchmark are (import strings)."""

    name: str
    summary: str
    build: str
    benchmark: str | None = None
