"""The document of ``medvlp explain --json``: the plan as plain data. Light, but for the parameters that ``--build`` counts."""

from __future__ import annotations

from typing import Any

from medvlp_core.cli.json_output import position_data
from medvlp_core.cli.plan_parts import beneficiaries, blocks_of, given, heads
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import PlannedComponent, PortKey, Step
from medvlp_core.spec.component import params_of
from medvlp_core.spec.contract import Symbol

Data = dict[str, Any]


def explanation_data(plan: ModelPlan) -> Data:
    """Components, the blocks of the core, the calls of a step, heads and losses."""
    reasons = {one.path: one.reason for one in plan.skipped}
    return {
        "name": plan.name,
        "components": [{**_component(plan, one), "skipped": reasons.get(one.path)} for one in plan.components.values()],
        "blocks": {path: parameters_data(plan, path, block) for path, block in blocks_of(plan).items()},
        "calls": [_call(plan, step) for step in plan.steps],
        "heads": [_head(plan, path) for path in heads(plan)],
        "losses": [
            {"term": term, "weight": weight, **position_data(plan.source(f"losses.{term}"))} for term, weight in plan.losses.items()
        ],
    }


def parameters_data(plan: ModelPlan, path: str, block: object) -> list[Data]:
    """Every parameter of a block with its value and where that was written; ``file`` is None for a default."""
    names = [param.name for param in params_of(type(block))]
    return [{"name": name, "value": getattr(block, name), **position_data(plan.source(f"{path}.{name}"))} for name in names]


def _component(plan: ModelPlan, component: PlannedComponent) -> Data:
    return {
        "path": component.path,
        "name": component.name,
        "role": component.role,
        "distribution": plan.host.components.distribution(component.name) or None,
        "parameters": parameters_data(plan, component.path, component.spec),
        "dimensions": dict(plan.dims(component.path)),
        "free_dimensions": list(plan.free_symbols(component.path)),
    }


def _call(plan: ModelPlan, step: Step) -> Data:
    return {
        "stage": step.stage,
        "component": step.path,
        "view": step.view,
        "takes": _taken(plan, step.takes),
        "gives": [_tensor(plan, key) for key in given(plan, step)],
        "for": beneficiaries(plan, step),
    }


def _head(plan: ModelPlan, path: str) -> Data:
    component = plan.components[path]
    takes = _taken(plan, plan.takes(path))
    return {"component": path, "role": component.role, "takes": takes, "losses": list(component.contract.losses)}


def _taken(plan: ModelPlan, takes: tuple[tuple[str, PortKey], ...]) -> list[Data]:
    return [{"argument": argument, **_tensor(plan, key), "from": plan.wiring.providers[key].path} for argument, key in takes]


def _tensor(plan: ModelPlan, key: PortKey) -> Data:
    """A port in a view; a dimension that has no number yet has the size None."""
    provider = plan.wiring.providers[key]
    dims = provider.spec.dims
    sizes = [plan.wiring.table.value(Symbol(provider.path, dim)) if isinstance(dim, str) else dim for dim in dims]
    port, view = key
    return {
        "port": port,
        "view": view,
        "dims": list(dims),
        "sizes": sizes,
        "dtype": provider.spec.dtype,
        "layout": provider.spec.layout,
    }
