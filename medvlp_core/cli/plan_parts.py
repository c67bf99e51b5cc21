"""What a plan consists of, for the lines and for the document of ``medvlp explain``. Light."""

from __future__ import annotations

from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import Call
from medvlp_core.spec.component import SpecBlock


def blocks_of(plan: ModelPlan) -> dict[str, SpecBlock]:
    """The blocks of the core: ``inputs``, ``train``, and ``init_from`` if the recipe begins with weights."""
    blocks: dict[str, SpecBlock] = {"inputs": plan.inputs, "train": plan.train}
    if plan.init_from.path is not None:
        blocks["init_from"] = plan.init_from
    return blocks


def losses_of(plan: ModelPlan, call: Call) -> tuple[str, ...]:
    """The loss terms that a call emits."""
    return plan.components[call.path].calls[call.name].losses


def beneficiaries(plan: ModelPlan, call: Call) -> list[str]:
    """The components whose losses need a call, by path."""
    found = (one for one in plan.calls if losses_of(plan, one) and one != call)
    return list(dict.fromkeys(one.path for one in found if call in plan.wiring.route(key for _, key in one.takes)))
