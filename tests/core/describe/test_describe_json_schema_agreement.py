"""The schema's verdict is that of ``medvlp check`` on names, types and ranges: recipes are broken at random and both are asked.

What the schema of one file cannot tell is left out on purpose: required parameters that may be inherited, rules between two
parameters (``problems()``), wiring, loss terms, versions of bundles, and the target of a reference. JSON has one kind of number:
for the schema ``3.0`` is ``3``, so a recipe is compared with the verdict on what JSON makes of it.
"""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medvlp_core.describe.json_schema import json_schema
from medvlp_core.errors import Diagnostics, Problem
from medvlp_core.planning.compose import compose, plan_recipe
from medvlp_core.planning.plan import plain
from medvlp_core.plugins.host import PluginHost, load_plugins
from medvlp_core.recipe.load import dump_yaml, load_recipe, merge, parse_yaml
from medvlp_core.recipe.references import resolve_references
from medvlp_core.spec.blocks import InitSpec, InputSpec, TrainSpec
from medvlp_core.spec.component import Param, SpecBlock, params_of
from medvlp_core.spec.roles import ROLES

CONFIGS = sorted((Path(__file__).parents[3] / "examples" / "configs").glob("*.yaml"))
BETWEEN = "(between parameters) "
#: Complaints of the codes below that no single value is to blame for, and a bundle's name with a strange version behind it.
BEYOND = re.compile(
    r"\(between parameters\)|every loss has the weight 0|version is missing"
    r"|no component, found a mapping"
)
CODES = ("MV008", "MV101", "MV102", "MV103", "MV104", "MV106")

Place = tuple[str | int, ...]


@pytest.fixture(scope="module", autouse=True)
def rules_between_parameters_are_marked() -> Iterator[None]:
    """So that they can be told apart from ranges: they have the same code."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (InitSpec, InputSpec, TrainSpec, *(installed().components[name] for name in installed().components)):
            patch.setattr(kind, "problems", marked(kind.problems))
        yield


def marked(problems: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def found(self: SpecBlock) -> Iterator[tuple[str, str, str | None]]:
        yield from ((field, BETWEEN + text, hint) for field, text, hint in problems(self))

    return found


@cache
def installed() -> PluginHost:
    return load_plugins()


@cache
def validator() -> Any:
    return jsonschema.Draft7Validator(json_schema(installed().components))


@cache
def documents() -> list[Any]:
    """Complete recipes with every parameter written out; every example of every component stands in one."""
    host = installed()
    found = [plan_recipe(source, host=host).resolved() for source in ("mpma:small", "mpma:base", *CONFIGS)]
    for name in host.components:
        *parents, slot = host.components[name].declaration.role.info.slot.replace("*", "other").split(".")
        for one in host.components[name].examples():
            document = copy.deepcopy(found[0])
            block = document
            for parent in parents:
                block = block.setdefault(parent, {})
            block[slot] = {"use": name, **plain(one)}
            found.append(document)
    return found


def underlined(document: Any) -> list[str]:
    """What the schema says."""
    return [f"{list(error.absolute_path)}: {error.message}" for error in validator().iter_errors(document)]


def complaints(document: Any, base: str | None = None) -> list[str]:
    """What ``medvlp check`` says about names, types and ranges."""
    host, diagnostics = installed(), Diagnostics()
    node = parse_yaml(dump_yaml(document), file="it.yaml", diagnostics=diagnostics)
    assert node is not None
    if base is not None:
        node = merge(load_recipe(base, presets=host.presets, environment={}, diagnostics=diagnostics), node)
    compose(resolve_references(node, environment={}, diagnostics=diagnostics), host, diagnostics)
    return [str(problem) for problem in diagnostics if is_one_of_ours(problem)]


def is_one_of_ours(problem: Problem) -> bool:
    is_ours = problem.code in CODES or "names no component, found" in problem.text
    return is_ours and not problem.is_warning and not BEYOND.search(problem.text)


# ------------------------------------------------------------------------------------------------------------------- mutations


def paths(value: Any, above: Place = ()) -> Iterator[Place]:
    """Every place of a document below its root."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        yield (*above, key)
        yield from paths(child, (*above, key))


def at(document: Any, path: Place) -> Any:
    for part in path:
        document = document[part]
    return document


def param_at(host: PluginHost, document: Any, path: Place) -> Param | None:
    """The parameter that stands at a place, or in whose list it stands."""
    names = [part for part in path if isinstance(part, str)]
    block = at(document, tuple(names[:-1])) if len(names) > 1 else None
    kind: type | None = {"inputs": InputSpec, "init_from": InitSpec, "train": TrainSpec}.get(str(path[0]))
    if isinstance(block, dict) and "use" in block:
        kind = host.components[block["use"]]
    found = params_of(kind) if kind is not None else ()
    return next((one for one in found if one.name == names[-1]), None)


def edges(param: Param) -> list[Any]:
    """Numbers on a bound and next to it, allowed texts and almost allowed ones."""
    rules = param.rules
    bounds = [bound for bound in (rules.at_least, rules.at_most, rules.above, rules.below) if bound is not None]
    found: list[Any] = [near for bound in bounds for near in (bound, bound - 1, bound + 1, float(bound))]
    found += [math.nextafter(bound, way) for bound in bounds for way in (-math.inf, math.inf)]
    return [*found, *(rules.one_of or ()), *(f"{one}x" for one in rules.one_of or ()), str(rules.one_of)]


ODD = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    3.0,
    0.5,
    -0.5,
    1e9,
    10**12,
    "",
    "3",
    "true",
    "null",
    "word",
    [],
    ["word"],
    [3],
    [0.5, None],
    {},
    {"a": 1},
)
NAMES = ("modle", "use", "Loud", "with space", "1st", "_low", "heads", "seed", "other_name")


def mutated(document: Any, path: Place, value: Any) -> Any:
    changed = copy.deepcopy(document)
    at(changed, path[:-1])[path[-1]] = value
    return changed


def renamed(document: Any, path: Place, name: str) -> Any:
    """The same with another key at a place."""
    changed = copy.deepcopy(document)
    parent = at(changed, path[:-1])
    if not isinstance(parent, dict):
        return changed
    pairs = [(name if key == path[-1] else key, child) for key, child in parent.items() if key != name]
    parent.clear()
    parent.update(pairs)
    return changed


def without(document: Any, path: Place) -> Any:
    changed = copy.deepcopy(document)
    del at(changed, path[:-1])[path[-1]]
    return changed


def as_json(value: Any) -> Any:
    """What JSON makes of a document: one kind of number."""
    if isinstance(value, dict):
        return {key: as_json(child) for key, child in value.items()}
    if isinstance(value, list):
        return [as_json(child) for child in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def mutate(document: Any, dice: random.Random) -> Any:
    """One random change."""
    path = dice.choice(list(paths(document)))
    how = dice.choice(("value", "edge", "rename", "remove", "use", "list"))
    if how == "edge" and (param := param_at(installed(), document, path)) is not None and edges(param):
        return mutated(document, path, dice.choice(edges(param)))
    if how == "rename":
        return renamed(document, path, dice.choice((*NAMES, f"{path[-1]}x", str(path[-1])[:-1] or "x")))
    if how == "remove":
        return without(document, path)
    if how == "list":
        return mutated(document, path, [at(document, path)])
    if how == "use":
        uses = [place for place in paths(document) if place[-1] == "use" and len(place) > 1]
        return mutated(document, dice.choice(uses), dice.choice((*installed().components, "mpma.memori", "acme.gate", "")))
    return mutated(document, path, dice.choice(ODD))


@settings(max_examples=150, deadline=None)
@given(which=st.integers(0, 10**6), seed=st.integers(0, 10**9))
def test_schema_and_check_agree(which: int, seed: int) -> None:
    document = mutate(documents()[which % len(documents())], random.Random(seed))
    assume(not any(is_nameless(document, path) for path in paths(document)))
    assert bool(underlined(document)) == bool(complaints(as_json(document)))


def is_nameless(document: Any, path: Place) -> bool:
    """Whether a slot has lost its ``use``: `check` then asks for it and reads no further."""
    slots = {info.slot for info in ROLES.values()}
    is_slot = ".".join(map(str, path)) in slots or ".".join([*map(str, path[:-1]), "*"]) in slots
    return is_slot and isinstance(at(document, path), dict) and "use" not in at(document, path)


@settings(max_examples=60, deadline=None)
@given(which=st.integers(0, 10**6), seed=st.integers(0, 10**9))
def test_nothing_right_is_underlined_in_a_recipe_that_extends_another(which: int, seed: int) -> None:
    dice = random.Random(seed)
    document = mutate(documents()[which % 2], dice)
    named = [path for path in paths(document) if path[-1] == "use" and isinstance(at(document, path), str)]
    for path in [path for path in named if dice.random() < 0.7]:
        at(document, path[:-1]).pop("use")
    for path in [path for path in paths(document) if len(path) == 3 and isinstance(path[-1], str) and dice.random() < 0.5]:
        at(document, path[:-1]).pop(path[-1])
    assert complaints(as_json(document), base=("mpma:small", "mpma:base")[which % 2]) or not underlined(document)


#: Each stands in ``extends: mpma:small``; the second column is what both must say.
SINGLES = (
    ("model: {fusion: {slots: 1}}", True),
    ("model: {fusion: {slots: 0}}", False),
    ("model: {fusion: {slots: true}}", False),
    ("model: {fusion: {slots: 1.5}}", False),
    ("model: {fusion: {slots: '8'}}", False),
    ("model: {fusion: {dropout: 0}}", True),
    ("model: {fusion: {dropout: 1}}", False),
    ("model: {fusion: {dropout: 0.9999999999999999}}", True),
    ("train: {betas: [0.9, '${train.betas.0}']}", True),
    ("train: {betas: [0.9, 1]}", False),
    ("train: {betas: {a: 0.9}}", False),
    ("train: {use: standard.bert}", False),
    ("train: null", True),
    ("losses: {gla: null}", True),
    ("losses: {gla: {global: null}}", False),
    ("losses: {gla: {global: 0}}", True),
    ("losses: {gla: {global: true}}", False),
    ("losses: {gla: {global: 0.5, local: '${losses.gla.global}'}}", True),
    ("losses: [gla]", False),
    ("model: 3", False),
    ("model: {alignments: {Gla: null}}", False),
    ("model: {fusion: {memory: 'cmn_${env:KIND:-topk}'}}", True),
    ("model: {fusion: {memory: '$${env:KIND:-topk}'}}", False),
    ("model: {fusion: {slots: '1${env:KIND:-0}'}}", False),
    ("model: {fusion: {slots: '${env:KIND:-10}'}}", True),
    ("evaluators: {other: '${evaluators.retrieval}'}", True),
    ("evaluators: {other: 'see ${evaluators.retrieval.use}'}", False),
    ("inputs: {text_kinds: [report, qa]}", True),
    ("inputs: {text_kinds: [report, letter]}", False),
    ("inputs: {text_kinds: null}", True),
    ("requires: [4]", False),
    ("requires: ['mpma >=0.1, <9', standard]", True),
    ("medvlp: true", False),
)


@pytest.mark.parametrize(("text", "is_right"), SINGLES)
def test_both_say(text: str, is_right: bool) -> None:
    node = parse_yaml(text, file="it.yaml", diagnostics=Diagnostics())
    assert node is not None
    assert (underlined(node.plain()) == [], complaints(node.plain(), base="mpma:small") == []) == (is_right, is_right)


@pytest.mark.parametrize("text", ["mpma>=", "mpma>=0.1,,<1", ">=1", "mpma 0.1", ""])
def test_a_bundle_with_half_a_version_is_underlined(text: str) -> None:
    assert underlined({"requires": [text]}) != []
    assert underlined({"requires": ["mpma", "mpma>=0.1,<1", "open_cxr ~= 0.1", "${env:BUNDLE:-mpma}"]}) == []


def test_the_one_known_difference_is_that_json_has_no_floats_apart_from_numbers() -> None:
    document = {"model": {"fusion": {"slots": 8.0}}}
    assert underlined(document) == []
    assert "slots must be int, found float 8.0" in complaints(document, base="mpma:small")[0]
