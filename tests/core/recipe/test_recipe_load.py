"""Reading recipes: scalars, source marks, extends, overrides, references and the way back to text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_core.errors import Diagnostics
from medvlp_core.plugins.host import install_hint
from medvlp_core.recipe.load import Node, dump_yaml, escape_references, load_recipe, merge, parse_override, parse_yaml

quick = settings(deadline=None, max_examples=60)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(
        ["on", "no", "~", "", "010", "1e5", "1e-4", "0x1f", "12:30:45", "null", "<<", "a: b", "# c", "- x", "2024-01-01"]
    )
)
keys = st.text(alphabet="abc_<~1", min_size=1, max_size=5) | st.sampled_from(["on", "1", "1e5", "null", "a b"])
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=15)
mappings = st.dictionaries(keys, trees, max_size=4)


def read(text: str) -> tuple[Any, list[str]]:
    diagnostics = Diagnostics()
    node = parse_yaml(text, file="a.yaml", diagnostics=diagnostics)
    return (node.plain() if node else None), [f"{one.code} {one.position}" for one in diagnostics]


def node_of(data: Any) -> Node:
    diagnostics = Diagnostics()
    node = parse_yaml(dump_yaml(data), file="a.yaml", diagnostics=diagnostics)
    assert node is not None
    assert not diagnostics.problems
    return node


def load(folder: Path, text: str, *overrides: tuple[str, str], files: dict[str, str] | None = None, **environment: str) -> Any:
    for name, content in {"main.yaml": text, **(files or {})}.items():
        (folder / name).write_text(content, encoding="utf-8")
    diagnostics = Diagnostics()
    parsed = [parse_override(kind, value, diagnostics) for kind, value in overrides]  # type: ignore[arg-type]
    presets = {"mpma:base": folder / "base.yaml"}
    good = [one for one in parsed if one is not None]
    node = load_recipe(folder / "main.yaml", presets=presets, overrides=good, environment=environment, diagnostics=diagnostics)
    return node.plain(), list(diagnostics), node


# ------------------------------------------------------------------------------------------------------------------ scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3e4", 3e4),
        ("1e+3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("10", 10),
        ("010", 10),
        ("-7", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ("!!float 1", 1.0),
        ("! 12", "12"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found, problems = read(f"key: {text}\n")
    assert problems == []
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


def test_nan_is_a_float() -> None:
    found, _ = read("key: .nan")
    assert math.isnan(found["key"])


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["MV001 a.yaml"]),
        ("# only a comment\n", ["MV001 a.yaml"]),
        ("a: b: c", ["MV002 a.yaml:1:5"]),
        ("a:\n\tb: 1", ["MV002 a.yaml:2:1"]),
        ("a: 1\nb: [1, 2\n", ["MV002 a.yaml:3:1"]),
        ("a: \x07", ["MV002 a.yaml:1:4"]),
        ("? [a]\n: 1", ["MV002 a.yaml:1:3"]),
        ("a: *gone", ["MV002 a.yaml:1:4"]),
        ("a: &x [*x]", ["MV002 a.yaml:1:8"]),
        ("a: 1\nb:\n  c: 1\n  c: 2", ["MV003 a.yaml:4:3"]),
        ("a: !!python/name:os.system x", ["MV004 a.yaml:1:4"]),
        ("a: !!binary aGk=", ["MV004 a.yaml:1:4"]),
        ("a: !acme {b: 1}", ["MV004 a.yaml:1:4"]),
        ("a: !!int word", ["MV004 a.yaml:1:4"]),
        ("!acme a: 1", ["MV004 a.yaml:1:1"]),
        ("a: 1\n---\nb: 2", ["MV004 a.yaml:2:1"]),
        ("a: &x {b: 1}\nc:\n  <<: *x", ["MV004 a.yaml:3:3"]),
        ("a: " + "[" * 80 + "]" * 80, ["MV004 a.yaml:1:64"]),
    ],
)
def test_what_is_not_accepted_has_a_place(text: str, problems: list[str]) -> None:
    assert read(text)[1] == problems


def test_aliases_repeat_a_block_but_cannot_explode() -> None:
    assert read("a: &x {b: 1}\nc: *x") == ({"a": {"b": 1}, "c": {"b": 1}}, [])
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert read(bomb)[1][0].startswith("MV004")


def test_duplicate_keys_name_both_places() -> None:
    diagnostics = Diagnostics()
    parse_yaml("a: 1\nb: 2\na: 3\n", file="f.yaml", diagnostics=diagnostics)
    assert str(diagnostics.problems[0]).splitlines()[:2] == [
        "f.yaml:3:1 [MV003] the key 'a' stands twice",
        "    it stands first at f.yaml:1:1",
    ]


def test_positions_count_from_one() -> None:
    node = parse_yaml("model:\n  fusion: {heads: 12}\nlist: [a, b]\n", file="f.yaml", diagnostics=Diagnostics())
    assert node is not None
    heads = node.get("model.fusion.heads")
    assert heads is not None
    assert (str(heads.position), str(heads.key_position)) == ("f.yaml:2:19", "f.yaml:2:12")
    assert node.get("list.1").value == "b"  # type: ignore[union-attr]
    assert node.get("list.2") is None
    assert node.get("list.1.x") is None
    assert node.get("model.fusion.heads.deeper") is None


@quick
@given(trees.filter(lambda tree: tree is not None))
def test_written_data_reads_back_the_same(tree: Any) -> None:
    text = dump_yaml({"key": tree})
    found, problems = read(text)
    assert problems == []
    assert found == {"key": tree}
    assert repr(found) == repr({"key": tree})  # 1, 1.0 and True differ here


ODD = ("\x85", "a\u2028b", "\ufeff", "a\r\nb", "a\n\n b\n", " ", "\t", "\x07", "'", '"', "\\", "a #b")


@pytest.mark.parametrize("text", ODD)
def test_texts_with_odd_characters_survive(text: str) -> None:
    assert read(dump_yaml({"key": text, text: 1}))[0] == {"key": text, text: 1}


def test_numbers_that_yaml_1_1_misreads_survive() -> None:
    text = dump_yaml({"rate": 1e-4, "steps": 30000, "big": 1e22, "word": "1e5", "flag": "on", "code": "010"})
    assert "'1e5'" in text
    assert "'on'" in text
    assert "'010'" in text
    assert read(text)[0] == {"rate": 1e-4, "steps": 30000, "big": 1e22, "word": "1e5", "flag": "on", "code": "010"}


# -------------------------------------------------------------------------------------------------------------------- merge


def merged(base: Any, top: Any) -> Any:
    return merge(node_of(base), node_of(top)).plain()


def test_merge_rules() -> None:
    assert merged({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}}
    assert merged({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}
    assert merged({"a": {"x": 1}, "b": 1}, {"a": None}) == {"b": 1}
    assert merged({"a": 5}, {"a": None}) == {"a": None}, "null over a scalar is a value"
    assert merged({}, {"a": None}) == {"a": None}
    assert merged({"a": {"use": "s.x", "heads": 4}}, {"a": {"use": "s.y"}}) == {"a": {"use": "s.y"}}
    assert merged({"a": {"use": "s.x", "heads": 4}}, {"a": {"use": "s.x", "k": 1}}) == {"a": {"use": "s.x", "heads": 4, "k": 1}}
    assert merged({"a": {"use": "s.x", "heads": 4}}, {"a": {"heads": 8}}) == {"a": {"use": "s.x", "heads": 8}}


@quick
@given(mappings, mappings)
def test_merging_twice_changes_nothing_more(base: Any, top: Any) -> None:
    once = merge(node_of(base), node_of(top))
    if "null" not in dump_yaml(top):
        assert merge(once, node_of(top)).plain() == once.plain()


@quick
@given(mappings)
def test_the_empty_recipe_is_neutral(data: Any) -> None:
    assert merged(data, {}) == data
    assert merged({}, data) == data


@quick
@given(mappings)
def test_merging_with_itself_is_itself(data: Any) -> None:
    assert merged(data, data) == data


# ------------------------------------------------------------------------------------------------------------------ extends


def test_extends_presets_and_files_later_wins(tmp_path: Path) -> None:
    files = {"base.yaml": "a: {x: 1, y: 1}\nb: 1\n", "second.yaml": "a: {y: 2}\nb: 2\n"}
    found, problems, node = load(tmp_path, "extends: ['mpma:base', second.yaml]\nb: 3\n", files=files)
    assert problems == []
    assert found == {"a": {"x": 1, "y": 2}, "b": 3}
    assert str(node.get("a.x").position) == "mpma:base:1:8"
    assert node.get("a.y").position.file == str(tmp_path / "second.yaml")


def test_extends_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    files = {"deep/a.yaml": "extends: b.yaml\nx: 1", "deep/b.yaml": "extends: ../c.yaml\ny: 1", "c.yaml": "z: 1"}
    assert load(tmp_path, "extends: deep/a.yaml", files=files)[0] == {"x": 1, "y": 1, "z": 1}


def test_a_diamond_is_no_circle(tmp_path: Path) -> None:
    files = {"a.yaml": "extends: c.yaml\na: 1", "b.yaml": "extends: c.yaml\nb: 1", "c.yaml": "c: 1"}
    assert load(tmp_path, "extends: [a.yaml, b.yaml]", files=files)[0] == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("text", "files", "message", "hint"),
    [
        ("extends: mpma:bsae", {}, "there is no preset 'mpma:bsae'", "pip install medvlp-mpma"),
        ("extends: bse.yaml", {"base.yaml": "a: 1"}, "there is no file", "did you mean 'base.yaml'?"),
        ("extends: main.yaml", {}, "goes in a circle", None),
        ("extends: a.yaml", {"a.yaml": "extends: main.yaml"}, "goes in a circle", None),
        ("extends: {a: 1}", {}, "takes names of presets or files", None),
        ("extends: [3]", {}, "takes names of presets or files", None),
    ],
)
def test_extends_that_cannot_work(tmp_path: Path, text: str, files: dict[str, str], message: str, hint: str | None) -> None:
    found, problems, _ = load(tmp_path, text, files=files)
    assert found is None
    assert [one.code for one in problems] == ["MV005"]
    assert message in problems[0].text
    assert problems[0].position.line == 1
    expected = "did you mean 'mpma:base'?" if "bsae" in text else hint
    assert expected is None or expected in problems[0].hint


@pytest.mark.parametrize("kind", ["missing", "folder", "latin-1", "empty", "list", "preset", "bundle"])
def test_sources_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "recipe.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"latin-1": "note: caf\xe9".encode("latin-1"), "list": b"- a\n- b\n"}.get(kind, b""))
    diagnostics = Diagnostics()
    source = {"preset": "mpma:bsae", "bundle": "open_cxr:base"}.get(kind, path)
    node = load_recipe(source, presets={"mpma:base": path}, diagnostics=diagnostics, install_hint=install_hint)
    assert node.value is None
    codes = {"list": "MV002", "preset": "MV005", "bundle": "MV005"}
    assert [one.code for one in diagnostics] == [codes.get(kind, "MV001")]
    if kind == "bundle":
        assert diagnostics.problems[0].hint == "pip install medvlp-open-cxr"


# ---------------------------------------------------------------------------------------------------------------- overrides


def test_overrides_are_applied_in_order(tmp_path: Path) -> None:
    text = "model: {fusion: {use: a.b, heads: 4}, gla: {use: a.c}}\ntrain: {steps: 1}\n"
    overrides = [
        ("set", "train.steps=5"),
        ("set", "train.rate=1e-4"),
        ("set", "new.block.list=[1, {a: on}]"),
        ("use", "model.fusion=a.b"),
        ("set", "model.fusion.heads=8"),
        ("unset", "model.gla"),
        ("set", "train.steps=6"),
    ]
    found, problems, node = load(tmp_path, text, *overrides)
    assert problems == []
    assert found == {
        "model": {"fusion": {"use": "a.b", "heads": 8}},
        "train": {"steps": 6, "rate": 1e-4},
        "new": {"block": {"list": [1, {"a": "on"}]}},
    }
    assert str(node.get("train.steps").position) == "--set train.steps=6"


def test_use_drops_the_old_parameters_and_so_does_set_use(tmp_path: Path) -> None:
    text = "fusion: {use: a.b, heads: 4}"
    for kind, value in (("use", "fusion=a.c"), ("set", "fusion.use=a.c")):
        assert load(tmp_path, text, (kind, value))[0] == {"fusion": {"use": "a.c"}}
    assert load(tmp_path, text, ("use", "fusion=a.b"))[0] == {"fusion": {"use": "a.b", "heads": 4}}


def test_null_removes_a_block_but_is_a_value_for_a_parameter(tmp_path: Path) -> None:
    assert load(tmp_path, "a: {b: {c: 1}, d: 2}", ("set", "a.b=null"), ("set", "a.d=null"))[0] == {"a": {"d": None}}


def test_overrides_reach_what_references_see(tmp_path: Path) -> None:
    assert load(tmp_path, "a: 1\nb: ${a}", ("set", "a=7"), ("set", "c=${a}"))[0] == {"a": 7, "b": 7, "c": 7}


@pytest.mark.parametrize(
    ("kind", "text", "hint"),
    [
        ("set", "train.steps", "--set PATH=VALUE"),
        ("set", "=3", "--set PATH=VALUE"),
        ("set", "train..steps=3", "--set PATH=VALUE"),
        ("set", "train.steps=", "--set PATH=VALUE"),
        ("use", "model.fusion", "--use PATH=COMPONENT"),
        ("unset", "train.steps=1", "--unset PATH"),
        ("set", "train.steps=[1", "bracket"),
        ("set", "train.steps=!!set {a}", "tag"),
        ("set", "train.steps.more=1", "set train.steps as a whole"),
        ("unset", "train.step", "did you mean 'steps'?"),
        ("unset", "trian", "did you mean 'train'?"),
        ("unset", "train.steps.more", "train.steps has no keys"),
    ],
)
def test_overrides_that_cannot_be_applied(tmp_path: Path, kind: str, text: str, hint: str) -> None:
    found, problems, _ = load(tmp_path, "train: {steps: 1}", (kind, text))
    assert found == {"train": {"steps": 1}}
    assert [one.code for one in problems] == ["MV007"]
    assert str(problems[0].position) == f"--{kind} {text}"
    assert hint in problems[0].hint


# --------------------------------------------------------------------------------------------------------------- references


def test_references_keep_the_type_or_become_text(tmp_path: Path) -> None:
    text = """
size: 224
rate: 1e-4
flag: true
block: {use: a.b, heads: [1, 2]}
copy: ${size}
deep: ${block.heads.1}
whole: ${block}
chain: ${copy}
through: ${whole.use}
name: run_${size}_${rate}_${flag}
plain: $${size}
list: ['${size}', x]
"""
    found, problems, _ = load(tmp_path, text)
    assert problems == []
    assert found["copy"] == found["chain"] == 224
    assert found["deep"] == 2
    assert found["whole"] == {"use": "a.b", "heads": [1, 2]}
    assert found["through"] == "a.b"
    assert found["name"] == "run_224_0.0001_true"
    assert found["plain"] == "${size}"
    assert found["list"] == [224, "x"]


def test_environment_references(tmp_path: Path) -> None:
    text = "a: ${env:SIZE}\nb: ${env:GONE:-1e-4}\nc: x_${env:SIZE}\nd: ${env:DOLLAR}"
    found, problems, _ = load(tmp_path, text, SIZE="010", DOLLAR="${a}")
    assert problems == []
    assert found == {"a": 10, "b": 1e-4, "c": "x_010", "d": "${a}"}


@pytest.mark.parametrize(
    ("text", "column", "message", "hint"),
    [
        ("a: {bee: 1}\nb: ${a.be}", 4, "${a.be} does not exist", "did you mean 'bee'?"),
        ("size: 1\nb: ${sise}", 4, "${sise} does not exist", "did you mean 'size'?"),
        ("a: 1\nb: ${a.x}", 4, "${a.x} does not exist", "a has no keys"),
        ("a: 1\nb: ${}", 4, "${} does not exist", "keys of the recipe"),
        ("a: 1\nb: ${env:GONE}", 4, "'GONE' is not set", "${env:GONE:-default}"),
        ("a: {b: 1}\nc: x${a}", 4, "is a mapping", "whole value"),
        ("a: 1\nb: x${a", 4, "not closed", "$${"),
    ],
)
def test_references_that_cannot_be_resolved(tmp_path: Path, text: str, column: int, message: str, hint: str) -> None:
    found, problems, _ = load(tmp_path, text)
    assert [one.code for one in problems] == ["MV006"]
    assert (problems[0].position.line, problems[0].position.column) == (2, column)
    assert message in problems[0].text
    assert hint in problems[0].hint
    assert len(found) == 1, "the key without a value is skipped"


def test_circles_are_found_once(tmp_path: Path) -> None:
    for text in ("a: ${b}\nb: ${c}\nc: ${a}", "a: ${a}", "a: {b: '${a}'}", "a: {x: '${b.y}'}\nb: {y: '${a.x}'}"):
        _, problems, _ = load(tmp_path, text)
        assert [one.code for one in problems] == ["MV006"]
        assert "refers to itself" in problems[0].text


@quick
@given(st.text(alphabet="a${}:", max_size=10))
def test_escaped_text_reads_as_itself(text: str) -> None:
    from medvlp_core.recipe.references import resolve_references

    diagnostics = Diagnostics()
    found = resolve_references(node_of({"key": escape_references(text)}), environment={}, diagnostics=diagnostics)
    assert not diagnostics.problems
    assert found.plain() == {"key": text}


@quick
@given(mappings)
def test_a_written_recipe_loads_again(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("recipes") / "main.yaml"
    path.write_text(dump_yaml({**data, "end": 1}), encoding="utf-8")
    diagnostics = Diagnostics()
    expected = {key: child for key, child in {**data, "end": 1}.items() if key != "extends"}
    if "${" not in dump_yaml(data):
        assert load_recipe(path, presets={}, diagnostics=diagnostics).plain() == expected
        assert not diagnostics.problems
