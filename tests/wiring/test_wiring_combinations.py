"""Every legal combination of the registered components is planned; a sample of them is built and trained for two steps."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import attrs
import pytest
import torch

from medvlp_core.errors import Diagnostics, Position
from medvlp_core.model.build import build_run
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import ModelPlan, plain
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import Node, dump_yaml, parse_yaml
from medvlp_core.spec.component import ComponentSpec
from medvlp_core.spec.roles import HEADS, Role

#: Codes that say "these parts do not fit each other"; anything else would be a mistake in a component or in the composer.
DOES_NOT_FIT = {"MV202", "MV203", "MV204"}
SAMPLE = 14
AT = Position("combination.yaml")


@attrs.frozen(eq=False)
class Choice:
    """A component with one of its examples, and its block of a recipe: read once, and part of hundreds of recipes."""

    name: str
    spec: ComponentSpec
    block: Node

    @classmethod
    def of(cls, name: str, spec: ComponentSpec) -> Choice:
        return cls(name, spec, node_of({"use": name, **plain(spec)}))


def node_of(document: dict) -> Node:
    """A document as it is read from its text."""
    diagnostics = Diagnostics()
    node = parse_yaml(dump_yaml(document), file=AT.file, diagnostics=diagnostics)
    assert node is not None
    assert not diagnostics.problems
    return node


#: Paths of a recipe, and what stands there; None: the path is not there.
Parts = dict[str, Choice | None]


def choices(host: PluginHost, role: Role) -> list[Choice]:
    """Every component of a role with each of its examples."""
    return [Choice.of(name, spec) for name, kind in of_role(host, role).items() for spec in kind.examples()]


def of_role(host: PluginHost, role: Role) -> dict[str, type[ComponentSpec]]:
    """The components of a role that a common recipe can hold: those of the gallery need fields of their own (tests/gallery)."""
    return {name: kind for name, kind in host.components.of_role(role).items() if not name.startswith("gallery.")}


def first_examples(host: PluginHost, role: Role) -> list[Choice]:
    """Every component of a role with its first example."""
    return [Choice.of(name, next(iter(kind.examples()))) for name, kind in of_role(host, role).items()]


HEAD = node_of({"medvlp": 1, "train": {"steps": 2, "batch_size": 3, "learning_rate": 1e-3}, "model": {}})


def recipe(parts: Parts) -> Node:
    """A recipe of chosen parts, keyed by path."""
    document = {**HEAD.value, "model": Node({}, AT, AT)}  # type: ignore[dict-item]
    for path, choice in parts.items():
        if choice is None:
            continue
        block: dict[str, Node] = document
        *parents, slot = path.split(".")
        for parent in parents:
            block = block.setdefault(parent, Node({}, AT, AT)).value  # type: ignore[assignment]
        block[slot] = choice.block
    return Node(document, AT)


def plan_parts(host: PluginHost, parts: Parts) -> tuple[ModelPlan | None, Diagnostics]:
    diagnostics = Diagnostics()
    return compose(recipe(parts), host, diagnostics), diagnostics


def decoders(host: PluginHost, port: str) -> list[Choice]:
    return [one for one in first_examples(host, Role.DECODER) if port in one.spec.calls()["forward"].gives]


def all_parts(host: PluginHost) -> list[Parts]:
    """Every combination of components (first examples), with data and tokenizer fixed."""
    data, tokenizer = (
        host.components["open_cxr.pairs"](),
        host.components["standard.wordpiece"](vocab_size=300, max_length=24, end_of_text=True),
    )  # type: ignore[call-arg]
    fixed = {"data": Choice.of("open_cxr.pairs", data), "tokenizer": Choice.of("standard.wordpiece", tokenizer)}
    slots: dict[str, Sequence[Choice | None]] = {
        "model.masking": first_examples(host, Role.MASKING),
        "model.image_encoder": first_examples(host, Role.IMAGE_ENCODER),
        "model.text_encoder": first_examples(host, Role.TEXT_ENCODER),
        "model.fusion": first_examples(host, Role.FUSION),
        "model.alignments.a": [*first_examples(host, Role.ALIGNMENT), None],
        "model.decoders.image": [*decoders(host, "patch_prediction"), None],
        "model.decoders.report": [*decoders(host, "word_logits"), *decoders(host, "next_word_logits"), None],
    }
    combinations = itertools.product(*slots.values())
    return [{**fixed, **dict(zip(slots, chosen, strict=True))} for chosen in combinations if any(chosen[4:])]


@pytest.fixture(scope="module")
def planned(host: PluginHost) -> list[tuple[Parts, ModelPlan | None, Diagnostics]]:
    return [(parts, *plan_parts(host, parts)) for parts in all_parts(host)]


def test_every_combination_is_planned_or_refused_for_a_reason_of_fit(planned) -> None:
    assert len(planned) > 1000
    for parts, _, diagnostics in planned:
        names = {path: choice and choice.name for path, choice in parts.items()}
        assert {problem.code for problem in diagnostics.errors} <= DOES_NOT_FIT, f"{names}\n" + "\n".join(
            map(str, diagnostics.errors)
        )
    fitting = sum(plan is not None for _, plan, _ in planned)
    assert fitting > 0.9 * len(planned), f"only {fitting} of {len(planned)} combinations fit"


def test_every_component_of_the_model_appears_in_a_combination_that_fits(planned, host: PluginHost) -> None:
    used = Counter(choice.name for parts, plan, _ in planned if plan for choice in parts.values() if choice)
    roles = (Role.MASKING, Role.IMAGE_ENCODER, Role.TEXT_ENCODER, Role.FUSION, Role.ALIGNMENT, Role.DECODER)
    missing = [name for role in roles for name in of_role(host, role) if not used[name]]
    assert not missing


@pytest.mark.parametrize("role", [Role.MASKING, Role.IMAGE_ENCODER, Role.TEXT_ENCODER, Role.FUSION, Role.ALIGNMENT, Role.DECODER])
def test_every_example_of_every_component_is_planned_in_a_common_model(host: PluginHost, role: Role) -> None:
    images = ((parts, parts["model.decoders.image"]) for parts in all_parts(host))
    base = next(parts for parts, image in images if image and image.name == "standard.patch_decoder")
    paths = {Role.ALIGNMENT: "model.alignments.a", Role.DECODER: "model.decoders.extra"}
    for choice in choices(host, role):
        tree = recipe({**base, paths.get(role, f"model.{role}"): choice})
        diagnostics = Diagnostics()
        compose(node_of(tree.plain()), host, diagnostics)
        assert not diagnostics.errors, f"{choice.name}: {choice.spec}: " + "\n".join(map(str, diagnostics.errors))


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
        used = {call.path for call in plan.calls}
        assert {one.path for one in plan.components.values() if one.role in HEADS} <= used
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and any(f"model.{name}".startswith(f"{path}.") for path in used):
                assert parameter.grad is not None, f"{name} has no gradient in {parts_of(plan)}"
                assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite in {parts_of(plan)}"
