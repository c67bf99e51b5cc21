"""The document of ``medvlp explain --json``: the plan as plain data. Light, but for the parameters that ``--build`` counts."""

from __future__ import annotations

from typing import Any

from medvlp_core.cli.json_output import position_data
from medvlp_core.cli.plan_parts import beneficiaries, blocks_of, losses_of
from medvlp_core.planning.losses import weight_data
from medvlp_core.planning.plan import ModelPlan, plain
from medvlp_core.planning.wiring import Call, PlannedComponent, PortKey
from medvlp_core.spec.component import SpecBlock, params_of

Data = dict[str, Any]


def explanation_data(plan: ModelPlan) -> Data:
    """Components, the blocks of the core, the views and calls of a step, and losses."""
    reasons = {one.path: one.reason for one in plan.skipped}
    return {
        "name": plan.name,
        "components": [{**_component(plan, one), "skipped": reasons.get(one.path)} for one in plan.components.values()],
        "blocks": {path: parameters_data(plan, path, block) for path, block in blocks_of(plan).items()},
        "views": [{"name": one.name, "of": one.parent, "opened_by": one.opener} for one in plan.wiring.views.values()],
        "calls": [_call(plan, call) for call in plan.calls],
        "after": {
            path: [{"argument": argument, **_tensor(plan, key)} for argument, key in rows] for path, rows in plan.after.items()
        },
        "losses": [
            {"term": term, "weight": weight_data(weight), **position_data(plan.source(f"losses.{term}"))}
            for term, weight in plan.losses.items()
        ],
    }


def parameters_data(plan: ModelPlan, path: str, block: object) -> list[Data]:
    """Every parameter of a block with its value and where that was written; ``file`` is None for a default."""
    names = [param.name for param in params_of(type(block))]
    return [{"name": name, "value": _value(getattr(block, name)), **position_data(plan.source(f"{path}.{name}"))} for name in names]


def _value(value: Any) -> Any:
    """As JSON has it: several blocks of parameters are a mapping of mappings."""
    return (
        {key: plain(item) if isinstance(item, SpecBlock) else item for key, item in value.items()}
        if isinstance(value, dict)
        else value
    )


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


def _call(plan: ModelPlan, call: Call) -> Data:
    return {
        "component": call.path,
        "call": call.name,
        "view": call.view,
        "takes": [
            {"argument": argument, **_tensor(plan, key), "from": plan.wiring.provider(key).path} for argument, key in call.takes
        ],
        "gives": [_tensor(plan, key) for key in call.gives],
        "losses": list(losses_of(plan, call)),
        "mixes_rows": plan.components[call.path].calls[call.name].mixes_rows,
        "for": beneficiaries(plan, call),
    }


def _tensor(plan: ModelPlan, key: PortKey) -> Data:
    """A port in a view; a dimension that has no number yet has the size None."""
    spec = plan.wiring.provider(key).spec
    return {
        "port": key.port,
        "view": key.view,
        "dims": list(spec.dims),
        "sizes": list(plan.wiring.sizes(key)),
        "dtype": spec.dtype,
        "layout": spec.layout,
    }
