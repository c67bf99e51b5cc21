"""Recipes of parts that a test declares by their contracts, planned, built and run: every part answers as its contract says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from random_recipes import _random_spec, stub_host, tree

from medvlp_core.errors import Diagnostics
from medvlp_core.model.build import build_model, build_tokenizer
from medvlp_core.model.composed import ComposedModel
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.spec.contract import Contract, TensorSpec
from medvlp_core.spec.roles import SLOTS, Role

DROPPED = TensorSpec.parse("B Nv 6", layout="dropped", port="image_tokens", when="image_is_masked")
#: A small model in the sizes of the random modules; tests lay other parts over it.
ENCODER = Contract(
    needs={"image": "B 1 8 8", "image_is_masked": "B 4:bool?"},
    gives={"image_grid": "2 2:shape", "image_tokens": "B 4 6", "visible": DROPPED, "image_prefix": "B 1 6"},
)
TEXT = {
    "embed": Contract(needs={"token_ids": "B L:int"}, gives={"text_embeddings": "B L 5"}),
    "encode": Contract(needs={"text_embeddings": "B L 5", "text_is_valid": "B L:bool"}, gives={"text_tokens": "B L 5"}),
}
MASKING = Contract(
    needs={"text_is_valid": "B L:bool"}, gives={"image_is_masked": "B 4:bool", "text_is_masked": "B L:bool", "token_ids": "B L:int"}
)
FUSION = Contract(needs={"text_tokens": "B L Dt", "image_tokens": "B S Di"}, gives={"fused_text_tokens": "B L Dt"})
EARLY = Contract(needs={"text_embeddings": "B L Dt", "image_tokens": "B S Di"}, gives={"fused_text_embeddings": "B L Dt"})
PIXELS = Contract(
    needs={"image_tokens": "B S Di @masked", "image_is_masked": "B N:bool @masked"}, gives={"guess": "B 3"}, losses=("loss",)
)
CONTRAST = {
    "forward": Contract(needs={"image_tokens": "B S Di", "text_tokens": "B L Dt"}, losses=("loss",), mixes_rows=True),
    "embed_image": Contract(needs={"image_tokens": "B S Di"}, gives={"image_embedding": "B 3"}),
    "embed_text": Contract(needs={"text_tokens": "B L Dt"}, gives={"text_embedding": "B 3"}),
}
Parts = Mapping[str, Any]
BASE: Parts = {"model.image_encoder": ENCODER, "model.text_encoder": TEXT, "model.masking": MASKING}


def plan_parts(parts: Parts, **blocks: Any) -> tuple[ModelPlan | None, Diagnostics]:
    """Plan a recipe of parts by path. A part is a contract, its calls by name, or a pair of that and more of its block.

    ``blocks`` replaces whole blocks such as ``tokenizer`` or ``evaluators``.
    """
    host = stub_host()
    recipe: dict[str, Any] = {"medvlp": 1, "data": {"use": "kit.pairs"}, "tokenizer": {"use": "kit.words"}, "model": {}}
    for path, given in parts.items():
        what, more = given if isinstance(given, tuple) else (given, {})
        slot = path if path in SLOTS else f"{path.rpartition('.')[0]}.*"
        role = SLOTS[slot][0]
        if what is not None:
            name = f"rnd.{path.replace('.', '_')}"
            host.components._specs.pop(name, None)
            build = "random_modules:Random" + "".join(word.title() for word in role.value.split("_"))
            contracts = {"forward": what} if isinstance(what, Contract) else what
            host.components.add(_random_spec(name, role, build, contracts))
            more = {"use": name, **more}
        block: dict[str, Any] = recipe
        *parents, last = path.split(".")
        for parent in parents:
            block = block.setdefault(parent, {})
        block[last] = more
    recipe |= {"train": {"steps": 1, "batch_size": 2}, **blocks}
    diagnostics = Diagnostics()
    return compose(tree(recipe), host, diagnostics), diagnostics


def planned(parts: Parts, **blocks: Any) -> ModelPlan:
    """The plan of parts that fit."""
    plan, diagnostics = plan_parts(parts, **blocks)
    assert plan is not None, "\n".join(map(str, diagnostics))
    return plan


def synthetic_batch(rows: int = 3, length: int = 7, **more: torch.Tensor) -> Batch:
    """What the input pipeline would make, and ``more``."""
    ids = torch.ones(rows, length, dtype=torch.int64)
    given = {"image": torch.randn(rows, 1, 8, 8), "token_ids": ids, "text_is_valid": ids.bool(), "word_ids": ids - 1}
    return {**given, **more, "record_index": torch.arange(rows)}


def built(plan: ModelPlan) -> ComposedModel:
    """The model of a plan of toy parts."""
    if plan.one(Role.TOKENIZER) is not None and plan.one(Role.TOKENIZER).name == "kit.words":  # type: ignore[union-attr]
        build_tokenizer(plan)
    return build_model(plan, seed=0)
