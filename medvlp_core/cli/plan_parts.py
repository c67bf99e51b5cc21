"""What a plan consists of, for the lines and for the document of ``medvlp explain``. Light."""

from __future__ import annotations

from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import PortKey, Step
from medvlp_core.spec.component import SpecBlock
from medvlp_core.spec.roles import HEADS


def blocks_of(plan: ModelPlan) -> dict[str, SpecBlock]:
    """The blocks of the core: ``inputs``, ``train``, and ``init_from`` if the recipe begins with weights."""
    blocks: dict[str, SpecBlock] = {"inputs": plan.inputs, "train": plan.train}
    if plan.init_from.path is not None:
        blocks["init_from"] = plan.init_from
    return blocks


def heads(plan: ModelPlan) -> list[str]:
    """The alignments, then the decoders, by path."""
    return [one.path for role in HEADS for one in plan.of_role(role).values()]


def given(plan: ModelPlan, step: Step) -> list[PortKey]:
    """The ports that a call computes."""
    return [key for key in plan.wiring.providers if plan.wiring.step_for(key) == step]


def beneficiaries(plan: ModelPlan, step: Step) -> list[str]:
    """The alignments and decoders that need a call."""
    return [head for head in heads(plan) if step in plan.wiring.route([key for _, key in plan.takes(head)])]
