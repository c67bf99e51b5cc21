"""Ops with several implementations ("backends") and the choice between them. Light.

A plugin declares an op with :class:`KernelOp` (torch-free) through the hook ``medvlp_register_kernels``; the import string leads to
a :class:`Kernel`, which knows its backends and why one cannot serve a call. Which backend serves is decided per call::

    requested backend of the caller (YAML: kernel)  ->  else MEDVLP_KERNELS  ->  else auto

A backend that is requested by name and cannot serve is an error with its reasons. ``auto`` takes the first backend of the op's
order that can serve; if it had to pass over a better one, it says so once per process. ``medvlp kernels`` shows all this for a
machine.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable

import attrs

from medvlp_core.errors import KernelError, PluginError, Problem, did_you_mean
from medvlp_core.plugins.import_string import load_object
from medvlp_core.spec.kernel import KernelOp

#: The environment variable that chooses for every op.
VARIABLE = "MEDVLP_KERNELS"

#: What can be requested. ``reference`` is the definition, ``composite`` plain PyTorch as an expert would write it.
BACKENDS = ("auto", "reference", "composite", "triton")

log = logging.getLogger("medvlp.kernels")


@attrs.frozen
class Call:
    """The facts about a call that decide who can serve it: torch device type, dtype name, sizes by letter, what is switched on.

    Example:
        >>> Call("cpu", "float32", (("B", 2), ("M", 40)))["M"]
        40
    """

    device: str
    dtype: str
    sizes: tuple[tuple[str, int], ...] = ()
    features: frozenset[str] = frozenset()

    def __getitem__(self, letter: str) -> int:
        """A size by its letter."""
        return dict(self.sizes)[letter]


@attrs.frozen(kw_only=True)
class Backend:
    """One implementation of an op: its name, and why it cannot serve a call (empty: it can)."""

    name: str = attrs.field(validator=attrs.validators.in_(BACKENDS[1:]))
    unsupported_reasons: Callable[[Call], tuple[str, ...]]


@attrs.frozen(kw_only=True, eq=False)  # one object for each op: compared and hashed as such, which is quick
class Kernel:
    """An op with its backends. ``order`` gives the names of the backends that ``auto`` may take for a call, best first.

    ``name`` is that of its :class:`KernelOp`. ``example`` is a call of usual size: ``medvlp kernels`` asks about it, on the devices
    of the machine.

    Example:
        >>> composite = Backend(name="composite", unsupported_reasons=lambda call: ())
        >>> gate = Kernel(name="acme.gate", backends=(composite,), order=lambda call: ("composite",))
        >>> gate.select("auto", Call("cpu", "float32"))
        'composite'
    """

    name: str
    backends: tuple[Backend, ...]
    order: Callable[[Call], tuple[str, ...]]
    example: Call = Call("cpu", "float32")

    def reasons(self, call: Call) -> dict[str, tuple[str, ...]]:
        """For each backend why it cannot serve the call; no reasons mean that it can."""
        return {backend.name: backend.unsupported_reasons(call) for backend in self.backends}

    def select(self, requested: str, call: Call) -> str:
        """The backend that serves a call.

        Raises:
            KernelError: ``requested`` names a backend that cannot serve, or none that exists; or ``auto`` has none left (MV401).
        """
        return _select(self, requested, call)

    def preview(self, requested: str, call: Call) -> str:
        """:meth:`select` for showing: computed anew, and nothing is said in the log.

        Raises:
            KernelError: as for :meth:`select`.
        """
        return _pick(self, requested, call, self.reasons(call))


def requested_backend(explicit: str = "auto") -> str:
    """The requested backend: the caller's own, else that of the environment variable ``MEDVLP_KERNELS``, else ``auto``.

    Raises:
        KernelError: it is none of :data:`BACKENDS` (MV401).
    """
    requested = explicit if explicit != "auto" else os.environ.get(VARIABLE) or "auto"
    if requested in BACKENDS:
        return requested
    source = f"{VARIABLE}={requested}" if requested != explicit else repr(requested)
    raise KernelError(
        Problem(code="MV401", text=f"{source}: no such kernel backend", hint=did_you_mean(requested, BACKENDS, what="backends"))
    )


@functools.lru_cache(maxsize=4096)  # a call costs microseconds, and so it should stay
def _select(kernel: Kernel, requested: str, call: Call) -> str:
    reasons = kernel.reasons(call)
    chosen = _pick(kernel, requested, call, reasons)
    order = kernel.order(call) if requested == "auto" else (chosen,)
    passed_over = {name: reasons[name] for name in order[: order.index(chosen)]}
    if passed_over:
        _say_once(kernel.name, call.device, chosen, tuple(passed_over.items()))
    return chosen


def _pick(kernel: Kernel, requested: str, call: Call, reasons: dict[str, tuple[str, ...]]) -> str:
    if requested != "auto":
        if requested not in reasons:
            text, hint = f"{kernel.name} has no backend {requested!r}", f"backends: {', '.join(reasons)}"
            raise KernelError(Problem(code="MV401", text=text, hint=hint))
        if reasons[requested]:
            text = f"{kernel.name}: the backend {requested!r} was requested and cannot serve this call"
            hint = f"backends that can: {_that_can(reasons)}; or leave the choice to 'auto'"
            raise KernelError(Problem(code="MV401", text=text, details=reasons[requested], hint=hint))
        return requested
    order = kernel.order(call)
    chosen = next((name for name in order if not reasons[name]), None)
    if chosen is None:
        details = tuple(f"{name}: {', '.join(reasons[name])}" for name in order)
        text = f"{kernel.name}: 'auto' has no backend that can serve this call"
        raise KernelError(Problem(code="MV401", text=text, details=details, hint=f"backends that can: {_that_can(reasons)}"))
    return chosen


def _that_can(reasons: dict[str, tuple[str, ...]]) -> str:
    return ", ".join(name for name, why in reasons.items() if not why) or "none"


@functools.cache
def _say_once(name: str, device: str, chosen: str, passed_over: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    why = "; ".join(f"{backend}: {', '.join(reasons)}" for backend, reasons in passed_over)
    log.warning("%s on %s: the backend %s serves (%s)", name, device, chosen, why)


def load_kernel(op: KernelOp) -> Kernel:
    """Import the kernel that an op declares.

    Raises:
        PluginError: it cannot be imported (MV303), or is not the kernel of that op (MV302).
    """
    found = load_object(op.build, owner=op.name)
    if not isinstance(found, Kernel):
        hint = "build must name a Kernel of medvlp_core.kernels.dispatch"
        raise PluginError(Problem(code="MV302", text=f"{op.name}: {op.build} is not a Kernel", hint=hint))
    if found.name != op.name:
        text = f"{op.name}: {op.build} is the kernel of {found.name!r}"
        raise PluginError(Problem(code="MV302", text=text, hint="KernelOp and Kernel must have the same name"))
    return found
