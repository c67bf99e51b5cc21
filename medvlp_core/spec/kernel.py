"""How a plugin declares an op with several implementations. The implementations are chosen in medvlp_core.kernels.dispatch."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class KernelOp:
    """Declaration of an op: its name, what it does, and import strings.

    ``build`` names its ``Kernel``, ``benchmark`` its ``KernelBenchmark``, and ``first_run`` the ``FirstRun`` by which it is
    checked, timed and tuned on a GPU for the first time; several ops may share one. All three classes are in
    medvlp_core.kernels.
    """

    name: str
    summary: str
    build: str
    benchmark: str | None = None
    first_run: str | None = None
