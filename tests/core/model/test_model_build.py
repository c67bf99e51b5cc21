"""First weights: each component draws its own."""

from __future__ import annotations

import torch
from state_bundle import RECIPE, plan_of

from medvlp_core.model.build import build_model


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
