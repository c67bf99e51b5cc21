"""Every legal combination of the registered components is planned; a sample of them is built and trained for two steps."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
import torch

from medvlp_core.errors import Diagnostics
from medvlp_core.model.build import build_run
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import ModelPlan, plain
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import dump_yaml, parse_yaml
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.roles import Role

Choice = tuple[str, ComponentSpec] | None

#: Codes that say "these parts do not fit each other"; anything else would be a mistake in a component or in the composer.
DOES_NOT_FIT = {"MV202", "MV203", "MV204"}
SAMPLE = 14


def choices(host: PluginHost, role: Role) -> list[Choice]:
    """Every component of a role with each of its examples."""
    return [(name, spec) for name, kind in host.components.of_role(role).items() for spec in kind.examples()]


def first_examples(host: PluginHost, role: Role, *, may_be_absent: bool = False) -> list[Choice]:
    """Every component of a role with its first example."""
    found: list[Choice] = [(name, next(iter(kind.examples()))) for name, kind in host.components.of_role(role).items()]
    return [*found, None] if may_be_absent else found


def recipe(parts: dict[str, Choice]) -> str:
    """A recipe of chosen parts, keyed by path."""
    document: dict = {"medvlp": 1, "train": {"steps": 2, "batch_size": 3, "learning_rate": 1e-3}, "model": {}}
    for path, choice in parts.items():
        if choice is None:
            continue
        block = document
        *parents, slot = path.split(".")
        for parent in parents:
            block = block.setdefault(parent, {})
        block[slot] = {"use": choice[0], **plain(choice[1])}
    return dump_yaml(document)


def plan_parts(host: PluginHost, parts: dict[str, Choice]) -> tuple[ModelPlan | None, Diagnostics]:
    diagnostics = Diagnostics()
    node = parse_yaml(recipe(parts), file="combination.yaml", diagnostics=diagnostics)
    assert node is not None
    return compose(node, host, diagnostics), diagnostics


def image_decoders(host: PluginHost) -> list[Choice]:
    return [one for one in first_examples(host, Role.DECODER) if one and "patch_prediction" in one[1].contract().gives]


def text_decoders(host: PluginHost) -> list[Choice]:
    return [one for one in first_examples(host, Role.DECODER) if one and "word_logits" in one[1].contract().gives]


def all_parts(host: PluginHost) -> list[dict[str, Choice]]:
    """Every combination of components (first examples), with data and tokenizer fixed."""
    data = ("open_cxr.pairs", host.components["open_cxr.pairs"]())  # type: ignore[call-arg]
    tokenizer = ("standard.wordpiece", host.components["standard.wordpiece"](vocab_size=300, max_length=24))  # type: ignore[call-arg]
    slots = {
        "model.masking": first_examples(host, Role.MASKING),
        "model.image_encoder": first_examples(host, Role.IMAGE_ENCODER),
        "model.text_encoder": first_examples(host, Role.TEXT_ENCODER),
        "model.fusion": first_examples(host, Role.FUSION),
        "model.alignments.a": first_examples(host, Role.ALIGNMENT, may_be_absent=True),
        "model.decoders.image": [*image_decoders(host), None],
        "model.decoders.report": [*text_decoders(host), None],
    }
    combinations = itertools.product(*slots.values())
    return [
        {"data": data, "tokenizer": tokenizer, **dict(zip(slots, chosen, strict=True))}
        for chosen in combinations
        if any(chosen[4:])
    ]


@pytest.fixture(scope="module")
def planned(host: PluginHost) -> list[tuple[dict[str, Choice], ModelPlan | None, Diagnostics]]:
    return [(parts, *plan_parts(host, parts)) for parts in all_parts(host)]


def test_every_combination_is_planned_or_refused_for_a_reason_of_fit(planned) -> None:
    assert len(planned) > 1000
    for parts, _, diagnostics in planned:
        names = {path: choice and choice[0] for path, choice in parts.items()}
        assert {problem.code for problem in diagnostics.errors} <= DOES_NOT_FIT, f"{names}\n" + "\n".join(
            map(str, diagnostics.errors)
        )
    fitting = sum(plan is not None for _, plan, _ in planned)
    assert fitting > 0.9 * len(planned), f"only {fitting} of {len(planned)} combinations fit"


def test_every_component_of_the_model_appears_in_a_combination_that_fits(planned, host: PluginHost) -> None:
    used = Counter(choice[0] for parts, plan, _ in planned if plan for choice in parts.values() if choice)
    roles = (Role.MASKING, Role.IMAGE_ENCODER, Role.TEXT_ENCODER, Role.FUSION, Role.ALIGNMENT, Role.DECODER)
    missing = [name for role in roles for name in host.components.of_role(role) if not used[name]]
    assert not missing


@pytest.mark.parametrize("role", [Role.MASKING, Role.IMAGE_ENCODER, Role.TEXT_ENCODER, Role.FUSION, Role.ALIGNMENT, Role.DECODER])
def test_every_example_of_every_component_is_planned_in_a_common_model(host: PluginHost, role: Role) -> None:
    base = next(parts for parts in all_parts(host) if (parts["model.decoders.image"] or ("",))[0] == "standard.patch_decoder")
    paths = {Role.ALIGNMENT: "model.alignments.a", Role.DECODER: "model.decoders.extra"}
    for choice in choices(host, role):
        _, diagnostics = plan_parts(host, {**base, paths.get(role, f"model.{role}"): choice})
        assert not diagnostics.errors, f"{choice}: " + "\n".join(map(str, diagnostics.errors))


@pytest.fixture(scope="module")
def sample(planned) -> list[ModelPlan]:
    """A fixed sample in which every component appears at least once."""
    fitting = [plan for _, plan, _ in planned if plan is not None]
    random.Random(0).shuffle(fitting)
    chosen: list[ModelPlan] = []
    seen: set[str] = set()
    for plan in fitting:
        names = {one.name for one in plan.components.values()}
        if names - seen or len(chosen) < SAMPLE // 2:
            chosen.append(plan)
            seen |= names
    return chosen


def parts_of(plan: ModelPlan) -> dict[str, str]:
    return {path: one.name for path, one in plan.components.items()}


def test_a_sample_trains(sample: list[ModelPlan]) -> None:
    """Finite losses, finite gradients, and every trainable parameter of a used part gets one."""
    assert len(sample) >= SAMPLE // 2
    for plan in sample:
        built = build_run(plan, seed=0)
        model = built.model.train()
        batch = next(iter(built.pipeline.loader("train", batch_size=3)))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            output = model(batch)
            assert set(output.losses) == set(plan.losses)
            assert all(torch.isfinite(value) for value in output.losses.values()), (parts_of(plan), output.losses)
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        used = {step.path for step in plan.steps} | {one.path for one in plan.of_role(Role.ALIGNMENT).values()}
        used |= {one.path for one in plan.of_role(Role.DECODER).values()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and any(f"model.{name}".startswith(f"{path}.") for path in used):
                assert parameter.grad is not None, f"{name} has no gradient in {parts_of(plan)}"
                assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite in {parts_of(plan)}"
