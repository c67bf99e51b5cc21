"""``--json``: one document on stdout, which says what the text says, and the exit code of the text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from broken_packages import PLUGIN
from laid_out import lay_out

from medvlp_core import __version__
from medvlp_core.cli import COMMANDS, main
from medvlp_core.cli.json_output import JSON_FORMAT, print_json, problem_data
from medvlp_core.errors import DataError, Position, Problem
from medvlp_core.plugins.host import PluginHost
from medvlp_core.testing.check_modules import CHECKS

Output = Any
Data = dict[str, Any]


@pytest.fixture
def recipe(tmp_path: Path, micro: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("micro.yaml").write_text(micro, encoding="utf-8")
    return "micro.yaml"


def both(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Data, str]:
    """The document of a command and what it prints without ``--json``; both end with the same exit code."""
    code = main(list(words))
    text = capsys.readouterr()
    assert main([*words, "--json"]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    assert list(document)[:4] == ["medvlp", "command", "format", "problems"]
    assert (document["medvlp"], document["command"], document["format"]) == (__version__, words[0], JSON_FORMAT)
    for problem in document["problems"]:
        assert problem["text"] in text.out + text.err
        assert f"[{problem['code']}]" in text.out + text.err
    return document, text.out


def squeezed(text: str) -> list[str]:
    """Its lines with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def place(value: Data) -> str:
    """Where a value was written, as the text says it."""
    if value["file"] is None:
        return "default"
    return value["file"] if value["line"] is None else f"{value['file']}:{value['line']}:{value['column']}"


# ------------------------------------------------------------------------------------------------------------------- shapes


def test_a_problem_is_an_object_with_all_its_parts() -> None:
    problem = Problem(code="MV102", text="no heds", position=Position("a.yaml", 3, 5), details=("one",), hint="heads?")
    assert problem_data(problem) == {
        "code": "MV102",
        "text": "no heds",
        "file": "a.yaml",
        "line": 3,
        "column": 5,
        "details": ["one"],
        "hint": "heads?",
        "is_warning": False,
    }
    assert (problem_data(Problem(code="MV102", text="x", position=Position("a.yaml")))["line"]) is None
    assert problem_data("plain text")["code"] is None


def test_numbers_that_json_does_not_have_are_texts(capsys: Output) -> None:
    print_json("x", values=(1.5, float("inf")), deep={"a": [float("nan")]})
    document = json.loads(capsys.readouterr().out)
    assert (document["values"], document["deep"]) == ([1.5, "inf"], {"a": ["nan"]})


@pytest.mark.parametrize("command", ["check", "list", "show", "explain", "diff", "kernels", "conform"])
def test_every_command_that_prints_has_the_option(capsys: Output, command: str) -> None:
    assert command in COMMANDS
    main([command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_an_error_that_is_raised_is_in_the_document(capsys: Output, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    document, _ = both(capsys, "show", "mpma.memory_fusoin")
    assert [problem["code"] for problem in document["problems"]] == ["MV101"]
    assert document["problems"][0]["hint"].startswith("did you mean 'mpma.memory_fusion'?")

    def plan(*_: Any) -> None:
        raise DataError("only text")

    monkeypatch.setattr("medvlp_core.cli.check.read_plan", plan)
    assert main(["check", recipe, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["text"] == "only text"


def test_a_wrong_command_line_prints_no_document(capsys: Output) -> None:
    assert main(["list", "--compatible-with", "mpma:small", "--json"]) == 2
    assert capsys.readouterr().out == ""


# ----------------------------------------------------------------------------------------------------------------- recipes


def test_check(capsys: Output, recipe: str) -> None:
    document, text = both(capsys, "check", recipe)
    counts = document["counts"]
    assert document["ok"]
    sizes = f"{counts['components']} components, {counts['loss_terms']} loss terms, {counts['calls']} calls a step"
    assert text == f"{document['recipe']}: ok, {sizes}\n"


def test_check_with_problems(capsys: Output, recipe: str) -> None:
    words = ("--set", "model.decoders.image.heds=2", "--set", "train.steps=ten", "--unset", "model.decoders.report")
    document, text = both(capsys, "check", recipe, *words)
    assert not document["ok"]
    assert len(document["problems"]) == text.count("[MV")
    assert document["counts"] == {"errors": 2, "warnings": text.count("warning: ")}
    assert document["problems"][0]["file"].startswith("--set")
    shown = [f"    hint: {one['hint']}" for one in document["problems"] if one["hint"]]
    assert [line for line in shown if line not in text.splitlines()] == []


def test_explain(capsys: Output, recipe: str) -> None:
    words = ("--set", "losses.gla.local=0.5", "--set", "model.alignments.gla.align_text=clean")
    document, text = both(capsys, "explain", recipe, *words, "--use", "evaluators.retrieval=standard.retrieval")
    lines = squeezed(text)
    assert lines[0] == f"recipe {document['name']}"
    for component in document["components"]:
        assert f"{component['path']}: {component['name']} (from {component['distribution']})" in lines
        for name, size in component["dimensions"].items():
            assert component["role"] == "evaluator" or re.search(rf"dimensions: .*\b{name}={size}\b", text)
        assert component["skipped"] is None or f"skipped: {component['skipped']}" in lines
    parameters = [one for component in document["components"] for one in component["parameters"]]
    parameters += [one for block in document["blocks"].values() for one in block]
    assert len(parameters) > 60
    assert [
        one for one in parameters if not any(line.startswith(one["name"]) and line.endswith(place(one)) for line in lines)
    ] == []
    for index, call in enumerate(document["calls"], start=1):
        view = f" @{call['view']}" if call["view"] != "clean" else ""
        method = f".{call['call']}" if call["call"] != "forward" else ""
        assert f"{index}. {call['component']}{method}{view}" in lines
        assert bool(call["for"]) != bool(call["losses"])
        assert f"for {', '.join(call['for'])}" in lines or not call["for"]
        assert f"losses {', '.join(call['losses'])}" in lines or not call["losses"]
        assert call["mixes_rows"] is (call["component"] == "model.alignments.gla")
    assert document["views"] == [
        {"name": "clean", "of": None, "opened_by": None},
        {"name": "masked", "of": "clean", "opened_by": "model.masking"},
    ]
    assert "masked, of clean, opened by model.masking: 3 components; run in another view too: model.text_encoder" in lines
    tensors = [tensor for one in document["calls"] for tensor in [*one["takes"], *one["gives"]]]
    assert {"image", "token_ids", "image_encoder.image_tokens", "report.word_logits"} <= {tensor["port"] for tensor in tensors}
    for tensor in tensors:
        dims = [
            name if size in (None, name) else f"{name}={size}" for name, size in zip(tensor["dims"], tensor["sizes"], strict=True)
        ]
        assert f"{tensor['port'].rpartition('.')[2]} ({', '.join(map(str, dims))})" in text
    assert [f"{one['term']} weight {one['weight']:g} {place(one)}" for one in document["losses"]] == [
        line for line in lines if " weight " in line
    ]
    assert document["trainable_parameters"] is None


def test_explain_with_build_and_with_errors(capsys: Output, recipe: str) -> None:
    document, text = both(capsys, "explain", recipe, "--build", "--unset", "data")
    counts = dict(line.split() for line in text.split("trainable parameters\n")[1].splitlines())
    assert document["trainable_parameters"] == {path: int(count.replace(",", "")) for path, count in counts.items()}
    document, text = both(capsys, "explain", recipe, "--set", "train.steps=0")
    assert (text, list(document)) == ("", ["medvlp", "command", "format", "problems", "recipe"])


def test_diff(capsys: Output, recipe: str) -> None:
    words = ("--unset", "model.alignments", "--use", "model.decoders.patches=standard.patch_decoder", "--unset", "data")
    words += ("--set", "model.text_encoder.width=64", "--set", "train.steps=9", "--set", "model.fusion.dropout=0.2")
    document, text = both(capsys, "diff", recipe, recipe, *words)
    lines = squeezed(text)
    assert not document["same"]
    assert lines[:2] == [f"A: {document['a']}", f"B: {document['b']}"]
    titles = [line.partition(":")[0] for line in lines if re.match(r"(model|data|tokenizer|evaluators)[\w.]*: ", line)]
    assert [one["path"] for one in document["components"]] == titles
    kept = [one for one in document["components"] if one["a"] and one["b"] and one["a"]["name"] == one["b"]["name"]]
    assert [one["path"] for one in kept] == ["model.text_encoder", "model.fusion"]
    for change in [*(change for one in kept for change in one["parameters"]), *document["train"], *document["losses"]]:
        sides = [f"{one['value']} ({place(one)})" if one else "-" for one in (change["a"], change["b"])]
        assert f"{change['name']} {' -> '.join(sides)}" in lines
    assert [f"only in A: {one}" for one in document["requires"]["only_a"]] == ["only in A: open_cxr==0.1.0"]
    for one in document["dimensions"]:
        assert re.search(rf"{one['path']} .*{one['symbol']}={one['a'] or 'free'} -> {one['b'] or 'free'}", text)
    for one in [*document["calls"]["only_a"], *document["calls"]["only_b"]]:
        assert one in text


def test_diff_of_the_same_of_another_order_and_of_a_broken_one(capsys: Output, recipe: str, micro: str) -> None:
    document, text = both(capsys, "diff", recipe, recipe)
    assert (text, document["same"]) == ("no difference\n", True)
    assert {
        key: value for key, value in document.items() if value and key not in ("medvlp", "command", "format", "a", "b", "same")
    } == {key: {"only_a": [], "only_b": []} for key in ("requires", "calls")}
    first, second = (
        next(line for line in micro.splitlines(True) if line.startswith(f"    {name}:")) for name in ("image", "report")
    )
    Path("turned.yaml").write_text(micro.replace(first + second, second + first), encoding="utf-8")
    document, _ = both(capsys, "diff", recipe, "turned.yaml")
    assert document["order"] == [{"slot": "model.decoders", "a": ["image", "report"], "b": ["report", "image"]}]
    document, _ = both(capsys, "diff", "gone.yaml", recipe)
    assert (document["same"], len(document["problems"])) == (None, 1)


# --------------------------------------------------------------------------------------------------------------- components


def test_list(capsys: Output, host: PluginHost) -> None:
    document, text = both(capsys, "list")
    names = [one["name"] for components in document["components"].values() for one in components]
    assert sorted(names) == list(host.components)
    lines = squeezed(text)
    for components in document["components"].values():
        assert [one for one in components if f"{one['name']} {one['about']}" not in lines] == []
    assert document["presets"] == lines[lines.index("presets:") + 1 : lines.index("kernels:")]
    assert [f"{one['name']} {one['summary']}" for one in document["kernels"]] == lines[
        lines.index("kernels:") + 1 : lines.index("bundles:")
    ]
    bundles = [f"{one['namespace']} {one['distribution']} {one['version']}" for one in document["bundles"]]
    assert bundles == lines[lines.index("bundles:") + 1 :]
    document, text = both(capsys, "list", "--role", "fusion")
    assert [one["name"] for one in document["components"]["fusion"]] == [line.split()[0] for line in text.splitlines()[1:]]


def test_list_of_what_fits(capsys: Output) -> None:
    document, text = both(capsys, "list", "--role", "image_encoder", "--compatible-with", "mpma:small")
    good, rest = text.split("\ndo not fit with default parameters:")
    for fit in document["fits"]:
        assert f"  {fit['name']}" in (good if fit["fits"] else rest)
        assert all(f"[{problem['code']}]" in text for problem in fit["problems"])
    assert {fit["fits"] for fit in document["fits"]} == {True, False}
    assert document["slot"] == "model.image_encoder"
    document, _ = both(capsys, "list", "--role", "decoder", "--compatible-with", "mpma:small")
    assert document["slot"] == "model.decoders.*"
    document, _ = both(capsys, "list", "--role", "fusion", "--compatible-with", "gone.yaml")
    assert (document["fits"], [one["code"] for one in document["problems"]]) == ([], ["MV001"])


def test_list_names_broken_plugins(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "torn_gate", plugin=PLUGIN + "raise RuntimeError('no licence file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MEDVLP_PLUGINS", "torn_gate")
    document, _ = both(capsys, "list")
    assert [one["code"] for one in document["problems"]] == ["MV301"]


def test_show(capsys: Output, host: PluginHost) -> None:
    calls = {"mpma.memory_fusion": ["forward"], "standard.hf_text": ["embed", "encode"], "open_cxr.pairs": ["forward"]}
    calls["mpma.global_local"] = ["forward", "embed_image", "embed_text"]
    for name in calls:
        document, text = both(capsys, "show", name)
        lines = squeezed(text)
        assert lines[0] == f"{name}: {document['role']}, from {document['distribution']}"
        heads = [f"{one['name']} {one['type']}" for one in document["parameters"]]
        assert [head for head in heads if not any(line.startswith(head) for line in lines)] == []
        assert " ".join(document["parameters"][0]["help"].split()) in " ".join(text.split())
        assert list(document["calls"]) == calls[name]
        for call, contract in document["calls"].items():
            assert call == "forward" or call in lines
            assert [one for one in contract["needs"] if f"needs {one['argument']}" not in " ".join(lines)] == []
            assert [one for one in contract["gives"] if f"gives {one['port']} {one['tensor']}" not in lines] == []
            assert [one for one in contract["requires"] if f"requires {one}" not in lines] == []
            assert [one for one in contract["losses"] if f"loss {one}" not in lines] == []
            assert not contract["sizes"] or f"sizes {', '.join(contract['sizes'])}" in lines
        assert squeezed(document["recipe"])[0] in lines
    document, text = both(capsys, "show", "mpma:base")
    assert (document["kind"], document["text"]) == ("preset", text)


def test_kernels(capsys: Output) -> None:
    document, text = both(capsys, "kernels")
    lines = squeezed(text)
    for op in document["ops"]:
        assert f"{op['name']}: {op['summary']}" in lines
        assert all(f"{one['device']}, {one['dtype']}: {one['backend']}" in lines for one in op["devices"])
        for reasons in (reasons for one in op["devices"] for reasons in one["unsupported_reasons"].values()):
            assert not reasons or f"cannot serve: {'; '.join(reasons)}" in text
        assert " ".join(f"{letter}={size}" for letter, size in op["example"]["sizes"].items()) in text


def test_conform(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    loud = "FusedFeatures(fused_text_tokens=(print('forward'), text_tokens.detach())[1])"
    lay_out(tmp_path, "loud_gate", returns=loud)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MEDVLP_PLUGINS", "loud_gate")
    words = ("conform", "loud_gate", "--component", "loud_gate.gate")
    assert main([*words, "--verbose"]) == 1
    text = capsys.readouterr().out
    assert main([*words, "--json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)  # what a component prints is not in it
    assert "forward" in captured.err
    for result in document["results"]:
        word = "FAILED" if result["outcome"] == "failed" else result["outcome"]
        assert re.search(rf"{word} {result['check']}\b|more checks? fails? as .*\b{result['check']}\b", text)
    told = ", ".join(f"{count} {outcome}" for outcome, count in document["counts"].items() if count)
    assert f"loud_gate: {told} (" in text
    document, text = both(capsys, "conform", "--checks")
    assert [one["name"] for one in document["checks"]] == list(CHECKS)
    assert all(f"{one['name']} {one['summary']}" in " ".join(text.split()) for one in document["checks"])
