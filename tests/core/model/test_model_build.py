"""What a component's class must have: a method for each call of its spec, and no size that no call declares; first weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import torch
from state_bundle import RECIPE, plan_of
from torch import Tensor, nn

from medvlp_core.errors import PluginError, SpecError
from medvlp_core.model.build import build_component, build_model
from medvlp_core.nn import Alignment, FusedFeatures, Fusion, Output
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import PlannedComponent
from medvlp_core.spec.component import ComponentSpec, component
from medvlp_core.spec.contract import Contract, Dims


class WithoutVectors(Alignment):
    """Has a loss alone."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)

    def forward(self, **needs: Tensor) -> Output:
        return Output()


class AsksForTheBatch(Fusion):
    """Wants to know how many rows there are."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.layer = nn.Linear(dims["Dt"], dims["B"])

    def forward(self, **needs: Tensor) -> FusedFeatures:
        return FusedFeatures()


def other(plan: ModelPlan, path: str, build: type) -> PlannedComponent:
    """The plan's component at ``path``, built by another class."""
    old = plan.components[path]

    @component("acme.other", role=old.role, build=f"{__name__}:{build.__name__}")
    @attrs.frozen(kw_only=True)
    class OtherSpec(ComponentSpec):
        """Declares what the old one does."""

        def calls(self) -> Mapping[str, Contract]:
            return old.calls

        @classmethod
        def examples(cls) -> tuple[ComponentSpec, ...]:
            return (cls(),)

    plan.host.components._distributions.setdefault("acme.other", "acme 1.0")
    return attrs.evolve(old, spec=OtherSpec(), name="acme.other")


def test_a_call_without_a_method_is_named(plan_text: Any) -> None:
    plan, _ = plan_text()
    with pytest.raises(PluginError) as caught:
        build_component(plan, other(plan, "model.alignments.gla", WithoutVectors))
    said = "[MV302] model.alignments.gla (acme.other): test_model_build:WithoutVectors has no method embed_image, embed_text"
    assert f"{said}, which its calls() declares" in str(caught.value)
    assert "hint: define it, or leave the call out of calls()" in str(caught.value)


def test_a_size_that_is_not_declared_is_named(plan_text: Any) -> None:
    plan, _ = plan_text()
    with pytest.raises(SpecError) as caught:
        build_component(plan, other(plan, "model.fusion", AsksForTheBatch))
    assert "[MV206] model.fusion asks for dimension B, which its contract does not list: sizes=('Dt', 'Di')" in str(caught.value)
    assert "hint: add 'B' to the sizes of a call that names it" in str(caught.value)


def test_a_component_begins_alike_whatever_stands_beside_it() -> None:
    alone = build_model(plan_of(RECIPE), seed=3).state_dict()
    more = RECIPE.replace("  decoders:\n", "  parts:\n    pool: {use: st.pool}\n  decoders:\n    other: {use: st.fit}\n")
    before = torch.get_rng_state()
    together = build_model(plan_of(more), seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "torch's random state stays as it was"
    assert all(torch.equal(together[name], value) for name, value in alone.items())
    assert not torch.equal(together["decoders.other.linear.weight"], together["decoders.fit.linear.weight"])
    assert not torch.equal(
        build_model(plan_of(RECIPE), seed=4).state_dict()["image_encoder.embed.weight"], alone["image_encoder.embed.weight"]
    )
