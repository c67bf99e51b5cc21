"""The JSON Schema that editors use: right recipes pass, typical mistakes are underlined."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from medvlp_core.cli import main
from medvlp_core.describe.json_schema import json_schema
from medvlp_core.errors import Diagnostics
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import plain
from medvlp_core.plugins.host import KNOWN_BUNDLES, PluginHost, load_plugins
from medvlp_core.recipe.load import Node, load_recipe, merge, parse_yaml
from medvlp_core.recipe.references import resolve_references
from medvlp_core.spec.component import params_of
from medvlp_core.spec.roles import Role

ROOT = Path(__file__).parents[3]
CASES = ROOT / "tests" / "messages" / "cases"
sys.path.append(str(CASES.parent))
import toy_bundle  # noqa: E402

#: What a schema can see of a recipe, and the exceptions (see test_describe_json_schema_agreement.py).
SEEN = ("MV008", "MV101", "MV102", "MV103", "MV104", "MV105", "MV106")
UNSEEN = re.compile(
    r"is missing|(needs|views) names |needs \w+ \(|nothing to train|found float 64.0|must divide"
    r"|no component, found a mapping|no `data` block"
    r"|is a ramp without|must be below end|begins with no part|is a part of the model, and no parameter"
)


@pytest.fixture(scope="module")
def validator(host: PluginHost) -> Any:
    schema = json_schema(host.components, presets=host.presets)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def data(text: str) -> Any:
    node = parse_yaml(text, file="a.yaml", diagnostics=Diagnostics())
    assert node is not None
    return node.plain()


def shipped(host: PluginHost, micro: str) -> dict[str, str]:
    """Presets, example recipes, and the recipes on pages, but for broken ones and those of a tutorial's bundle."""
    files = [*host.presets.values(), *(ROOT / "examples" / "configs").glob("*.yaml")]
    found = {"micro": micro, **{str(path): path.read_text(encoding="utf-8") for path in files}}
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        if page.name != "errors.md":
            blocks = re.findall(r"^```yaml[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
            found |= {f"{page.name} {number}": block for number, block in enumerate(blocks)}
    recipes = {name: text for name, text in found.items() if re.search(r"^(medvlp|extends):", text, re.MULTILINE)}
    return {name: text for name, text in recipes.items() if set(re.findall(r"use: (\w+)\.", text)) <= set(KNOWN_BUNDLES)}


def test_every_shipped_recipe_is_valid(host: PluginHost, validator: Any, micro: str) -> None:
    texts = shipped(host, micro)
    assert len(texts) >= 16
    wrong = {name: [error.message for error in validator.iter_errors(data(text))] for name, text in texts.items()}
    assert {name: messages for name, messages in wrong.items() if messages} == {}


def readable_cases() -> list[Path]:
    """The broken recipes of tests/messages that are mappings, as an editor sees them."""
    found = []
    for path in sorted(CASES.glob("*.yaml")):
        node = parse_yaml(path.read_bytes().decode("utf-8", errors="replace"), file=path.name, diagnostics=Diagnostics())
        found += [path] if node is not None and node.is_mapping and not path.stem.startswith("mv001") else []
    return found


@pytest.mark.parametrize("path", readable_cases(), ids=lambda path: path.stem)
def test_broken_recipes_are_underlined_where_check_complains(path: Path) -> None:
    """On every line with a wrong name, type or range, and on no line that `check` finds right."""
    toy = PluginHost.from_modules({"toy": toy_bundle})
    node = parse_yaml(path.read_text(encoding="utf-8"), file=path.name, diagnostics=Diagnostics())
    assert node is not None
    underlined = {place(node, error) for error in jsonschema.Draft7Validator(json_schema(toy.components)).iter_errors(node.plain())}
    heads = re.findall(rf"^{path.name}:(\d+):\d+ \[(MV\d+)\] (.*)", path.with_suffix(".txt").read_text("utf-8"), re.MULTILINE)
    visible = {int(line) for line, code, text in heads if code in SEEN and not UNSEEN.search(text)}
    assert visible <= underlined <= {int(line) for line, _, _ in heads}


def place(node: Node, error: jsonschema.ValidationError) -> int:
    """The line of what is wrong: of the key that is too much, else of the value."""
    below = node
    for key in error.absolute_path:  # names of parameters have dots in them
        found = below.child(str(key))
        assert found is not None
        below = found
    if error.validator == "additionalProperties":
        extra = next(child for key, child in below.value.items() if key not in error.schema["properties"])  # type: ignore[union-attr]
        below = Node(None, extra.key_position or extra.position)
    return below.position.line


def test_every_example_of_every_component_is_valid(host: PluginHost, validator: Any) -> None:
    checked = 0
    for name in host.components:
        definition = {"$ref": f"#/definitions/{name}", "definitions": validator.schema["definitions"]}
        for example in host.components[name].examples():
            jsonschema.Draft7Validator(definition).validate({"use": name, **plain(example)})
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


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("model: {fusion: {slots: 3}}", True),
        ("model: {fusion: {slots: 0}}", False),
        ("model: {fusion: {vocab_size: 3}}", False),
        ("model: {alignments: {gla: {dim: 8}}, decoders: {image: {depth: 1}}}", True),
    ],
)
def test_a_block_without_use_changes_an_inherited_component(validator: Any, text: str, is_right: bool) -> None:
    assert validator.is_valid(data(f"extends: mpma:small\n{text}")) is is_right


def test_help_and_defaults_are_in_the_schema(host: PluginHost, validator: Any) -> None:
    definitions = validator.schema["definitions"]
    for name in host.components:
        for one in params_of(host.components[name]):
            assert definitions[name]["properties"][one.name]["description"] == one.rules.help
    assert definitions["mpma.memory_fusion"]["properties"]["topk"]["default"] == 32
    assert {role.value for role in Role} <= set(definitions)


def test_what_an_editor_shows_over_a_component_and_a_parameter(validator: Any) -> None:
    fusion = validator.schema["definitions"]["standard.cross_attention"]
    assert fusion["markdownDescription"].startswith("**standard.cross_attention**, fusion from medvlp-standard ")
    assert "```yaml\nmodel:\n  fusion:\n    use: standard.cross_attention\n" in fusion["markdownDescription"]
    layers, dropout = (fusion["properties"][name] for name in ("layers", "dropout"))
    assert layers["markdownDescription"] == "layers\n\n`int`, default `2`, at least 1"
    assert dropout["markdownDescription"].endswith("`float`, default `0.1`, at least 0, below 1")
    assert layers["errorMessage"] == layers["patternErrorMessage"] == "layers must be int"
    uses = validator.schema["definitions"]["fusion"]["properties"]["use"]["anyOf"][0]
    assert len(uses["enum"]) == len(uses["markdownEnumDescriptions"])
    assert not [name for name, one in validator.schema["definitions"].items() if "/" in str(one.get("default", ""))]


# ---------------------------------------------------------------------------------------------------------------- third parties

ACME = """
import attrs
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.roles import Role
from medvlp_core.spec.contract import Contract
from medvlp_core.plugins.hooks import hookimpl

MEDVLP_INTERFACE = 2

@component("schematic.gate", role=Role.FUSION, build="nowhere:Gate")
@attrs.frozen(kw_only=True)
class GateSpec(ComponentSpec):
    '''Opens and closes.'''

    speed: float = param(help="openings a second", above=0)
    sides: tuple[str, ...] = param(("left",), help="which", one_of=("left", "right"))
    weights: dict[str, float] | None = param(None, help="of each side", at_least=0, at_most=1)
    limit: int | None = param(None, help="most openings", at_least=1, at_most=9)
    old: bool = param(False, help="creak", deprecated="use speed")

    def contract(self):
        return Contract(needs={"text_tokens": "B L Dt"}, gives={"fused_text_tokens": "B L Dt"})

    @classmethod
    def examples(cls):
        return (cls(speed=1.0), cls(speed=2.0, limit=3))

@hookimpl
def medvlp_register_components(registry):
    registry.add(GateSpec)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ``medvlp schema`` writes where another distribution is installed beside the bundles."""
    info = tmp_path / "schematic_parts-1.2.dist-info"
    info.mkdir()
    (tmp_path / "schematic_plugin.py").write_text(ACME)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: schematic-parts\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[medvlp.plugins]\nschematic = schematic_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MEDVLP_PLUGINS", raising=False)
    assert main(["schema", "--out", str(tmp_path / "schema.json")]) == 0
    return jsonschema.Draft7Validator(json.loads((tmp_path / "schema.json").read_text("utf-8")))


def test_third_parties_are_in_the_schema_like_the_bundles_here(installed: Any) -> None:
    gate = installed.schema["definitions"]["schematic.gate"]
    assert gate["description"] == "Opens and closes. From schematic-parts 1.2."
    assert "**schematic.gate**, fusion from schematic-parts 1.2" in gate["markdownDescription"]
    assert (gate["properties"]["old"]["deprecated"], gate["properties"]["old"]["deprecationMessage"]) == (True, "use speed")
    assert gate["properties"]["speed"]["markdownDescription"] == "openings a second\n\n`float`, required, above 0"
    assert "schematic.gate" in installed.schema["definitions"]["fusion"]["properties"]["use"]["anyOf"][0]["enum"]


@pytest.mark.parametrize(
    ("parameters", "is_right"),
    [
        ("speed: 2, sides: [right], weights: {left: 0.5, right: '${train.seed}'}, limit: 9, old: true", True),
        ("weights: null, limit: null, sides: []", True),
        ("speed: 0", False),
        ("sides: [top]", False),
        ("sides: left", False),
        ("weights: {left: 1.5}", False),
        ("weights: [0.5]", False),
        ("limit: 10", False),
        ("limit: true", False),
        ("old: 1", False),
        ("odl: true", False),
    ],
)
def test_every_type_of_parameter(installed: Any, parameters: str, is_right: bool) -> None:
    text = f"extends: mpma:small\nmodel: {{fusion: {{use: schematic.gate, {parameters}}}}}"
    assert installed.is_valid(data(text)) is is_right
    diagnostics, host = Diagnostics(), load_plugins()
    node = load_recipe("mpma:small", presets=host.presets, environment={}, diagnostics=diagnostics)
    top = parse_yaml(text.partition("\n")[2], file="it.yaml", diagnostics=diagnostics)
    assert top is not None
    compose(resolve_references(merge(node, top), environment={}, diagnostics=diagnostics), host, diagnostics)
    assert any(problem.code in ("MV102", "MV103", "MV104") for problem in diagnostics) is not is_right
