"""The JSON Schema that editors use: right recipes pass, typical mistakes are underlined."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from medvlp_core.components import Role, params_of
from medvlp_core.errors import Report
from medvlp_core.plan import plain
from medvlp_core.plugins import PluginHost
from medvlp_core.schema import json_schema
from medvlp_core.yamlio import parse_yaml


@pytest.fixture(scope="module")
def validator(host: PluginHost) -> Any:
    schema = json_schema(host.components, presets=host.presets)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def data(text: str) -> Any:
    node = parse_yaml(text, file="a.yaml", report=Report())
    assert node is not None
    return node.plain()


def test_presets_and_the_micro_recipe_are_valid(host: PluginHost, validator: Any, micro: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in host.presets.values()]
    assert len(texts) >= 2
    for text in (micro, *texts):
        assert [error.message for error in validator.iter_errors(data(text))] == []


def test_every_example_of_every_component_is_valid(host: PluginHost, validator: Any) -> None:
    checked = 0
    for name in host.components:
        definition = {"$ref": f"#/$defs/{name}", "$defs": validator.schema["$defs"]}
        for example in host.components[name].examples():
            jsonschema.Draft202012Validator(definition).validate({"use": name, **plain(example)})
            checked += 1
    assert checked >= 2 * len(host.components)


@pytest.mark.parametrize(
    "text",
    [
        "extends: mpma:base",
        "extends: [mpma:base, mine.yaml]\nmodel: {fusion: null, alignments: {gla: null}}",
        "extends: mpma:base\nmodel: {image_encoder: {depth: '${train.steps}'}}",
        "model: {fusion: {use: '${env:FUSION}'}}",
        "losses: {gla: {global: 0.5, local: '${losses.gla.global}'}}",
        "train: {steps: null, epochs: 1}",
    ],
)
def test_what_extends_references_and_null_allow(validator: Any, text: str) -> None:
    assert [error.message for error in validator.iter_errors(data(text))] == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("medvlp: 2", ["medvlp"]),
        ("modle: {}", []),
        ("model: {fusions: {}}", ["model"]),
        ("model: {fusion: {use: mpma.memori}}", ["model", "fusion", "use"]),
        ("model: {fusion: {use: mpma.paired_masking}}", ["model", "fusion", "use"]),
        ("model: {fusion: {use: mpma.memory_fusion, slotz: 3}}", ["model", "fusion"]),
        ("model: {fusion: {use: mpma.memory_fusion, slots: 0}}", ["model", "fusion", "slots"]),
        ("model: {fusion: {use: mpma.memory_fusion, slots: null}}", ["model", "fusion", "slots"]),
        ("model: {fusion: {use: mpma.memory_fusion, memory: cmn}}", ["model", "fusion", "memory"]),
        ("model: {fusion: {use: mpma.memory_fusion, dropout: 1.0}}", ["model", "fusion", "dropout"]),
        ("model: {alignments: {gla: {use: mpma.memory_fusion}}}", ["model", "alignments", "gla", "use"]),
        ("train: {betas: 0.9}", ["train", "betas"]),
        ("train: {precision: fp8}", ["train", "precision"]),
        ("losses: {gla: 1.0}", ["losses", "gla"]),
        ("losses: {gla: {global: -1.0}}", ["losses", "gla", "global"]),
    ],
)
def test_mistakes_are_underlined_where_they_are(validator: Any, text: str, path: list[str]) -> None:
    errors = list(validator.iter_errors(data(text)))
    assert [list(error.absolute_path) for error in errors] == [path]


def test_help_and_defaults_are_in_the_schema(host: PluginHost, validator: Any) -> None:
    definitions = validator.schema["$defs"]
    for name in host.components:
        for one in params_of(host.components[name]):
            assert definitions[name]["properties"][one.name]["description"] == one.rules.help
    assert definitions["mpma.memory_fusion"]["properties"]["topk"]["default"] == 32
    assert {role.value for role in Role} <= set(definitions)
