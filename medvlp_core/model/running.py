"""What generation and pair scores ask of a composed model: to run single calls of its plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from medvlp_core.errors import Problem, SpecError
from medvlp_core.nn.batch import Batch, Output
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import Call, PortKey

Ports = dict[PortKey, Tensor]


class RunsCalls(Protocol):
    """The part of :class:`medvlp_core.model.composed.ComposedModel` that is asked for."""

    plan: ModelPlan

    def given(self, batch: Batch) -> Ports:
        """What a batch brings, checked."""
        ...

    def run(self, call: Call, arguments: dict[str, Any]) -> Output:
        """What a call gives."""
        ...

    def key_of(self, name: str) -> PortKey:
        """The key of a port by its name."""
        ...


def computed(model: RunsCalls, calls: Iterable[Call], ports: Mapping[PortKey, Tensor]) -> Ports:
    """``ports``, and what these calls give.

    Raises:
        SpecError: a call takes what is not there (MV201).
    """
    found = dict(ports)
    for call in calls:
        if lacking := [str(key) for _, key in call.takes if key not in found]:
            text = f"{call} takes {', '.join(lacking)}, which the batch does not hold"
            raise SpecError(Problem(code="MV201", text=text, hint=f"the batch holds {', '.join(map(str, ports)) or 'nothing'}"))
        output = model.run(call, {argument: found[key] for argument, key in call.takes})
        found |= {key: output.ports[key.name] for key in call.gives}
    return found
