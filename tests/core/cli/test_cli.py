"""The command line: what it prints, what it returns, and that its order of overrides counts."""

from __future__ import annotations

import argparse
import io
import json
import re
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medvlp_core.cli import BUNDLE_COMMANDS, COMMANDS, GROUPS, main
from medvlp_core.cli.common import print_problems
from medvlp_core.cli.folding import fold
from medvlp_core.errors import DataError, Diagnostics, Problem
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins import host as plugins
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.host import KNOWN_BUNDLES, PluginHost
from medvlp_core.recipe.load import parse_yaml

Output = Any


@pytest.fixture
def recipe(tmp_path: Path, micro: str) -> str:
    path = tmp_path / "micro.yaml"
    path.write_text(micro, encoding="utf-8")
    return str(path)


def plugin_module(name: str) -> types.ModuleType:
    found = types.ModuleType(name)
    found.MEDVLP_INTERFACE = 2  # type: ignore[attr-defined]
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_overview_lists_every_command(capsys: Output) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name in ("check", "explain", "list", "show", "fill", "schema", "pretrain"):
        assert f"  {name} " in out


def test_the_overview_is_short_and_in_groups(capsys: Output) -> None:
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(COMMANDS)
    out = run(capsys, "--help")[1]
    assert len(out.splitlines()) < 36
    assert [line.removesuffix(":") for line in out.splitlines() if line.endswith(":")] == [*GROUPS, "from plug-ins"]


def test_usage_errors_return_2_with_a_hint(capsys: Output, recipe: str) -> None:
    assert run(capsys)[0] == 2
    code, _, err = run(capsys, "chekc", recipe)
    assert (code, "did you mean 'check'?" in err) == (2, True)
    code, _, err = run(capsys, "check", recipe, "--sett", "a=1")
    assert (code, "did you mean '--set'?" in err) == (2, True)
    code, _, err = run(capsys, "check", recipe, "more")
    assert (code, "unknown argument 'more'" in err) == (2, True)
    assert run(capsys, "check")[0] == 2
    assert run(capsys, "list", "--role", "encoder")[0] == 2


@pytest.mark.parametrize("command", [*COMMANDS, *BUNDLE_COMMANDS])
def test_every_command_has_help(capsys: Output, command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"usage: medvlp {command}" in out
    example = out.rpartition("\nexample:\n  ")[2]
    assert example.startswith(f"medvlp {command}") or f"medvlp {command} " in example


# -------------------------------------------------------------------------------------------------------------------- check


def test_check_says_ok(capsys: Output, recipe: str) -> None:
    code, out, err = run(capsys, "check", recipe)
    assert (code, err) == (0, "")
    assert out == f"{recipe}: ok, 9 components, 4 loss terms, 8 calls a step\n"


def test_check_prints_every_problem_and_counts(capsys: Output, recipe: str) -> None:
    code, out, _ = run(capsys, "check", recipe, "--set", "model.decoders.image.heds=2", "--set", "train.steps=ten", "--set", "x.y")
    assert code == 1
    lines = out.splitlines()
    assert lines[-1] == f"{recipe}: 3 errors"
    assert "--set model.decoders.image.heds=2 [MV102] model.decoders.image (mpma.image_decoder) has no parameter 'heds'" in lines
    assert "--set train.steps=ten [MV103] train: steps must be int | None, found str 'ten'" in lines
    assert "--set x.y [MV007] this override has not the right form" in lines


def test_warnings_are_printed_and_do_no_harm(capsys: Output, recipe: str) -> None:
    code, out, _ = run(capsys, "check", recipe, "--unset", "model.decoders.report")
    assert code == 0
    assert "[MV208] warning: model.fusion" in out
    assert out.endswith("1 warning\n")


def test_overrides_keep_their_order(capsys: Output, recipe: str) -> None:
    swap = ("--use", "model.fusion=standard.cross_attention")
    heads = ("--set", "model.fusion.heads=3")
    assert run(capsys, "check", recipe, *heads, *swap, "--set", "model.fusion.heads=2")[0] == 0
    code, out, _ = run(capsys, "check", recipe, *swap, *heads)
    assert code == 1
    assert "heads=3 must divide" in out


def test_check_of_a_missing_file(capsys: Output, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "check", str(tmp_path / "gone.yaml"))
    assert code == 1
    assert "[MV001] there is no such file" in out
    assert out.endswith("gone.yaml: 1 error\n")


# ------------------------------------------------------------------------------------------------------------ explain, fill


def test_explain_shows_parts_dimensions_calls_losses_and_origins(capsys: Output, recipe: str, micro: str) -> None:
    text = ("--set", "losses.gla.local=0.5", "--set", "model.alignments.gla.align_text=clean")
    code, out, err = run(capsys, "explain", recipe, *text)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "model.fusion: mpma.memory_fusion (from medvlp-mpma 0.1.0)" in lines
    line, column = (
        micro[: micro.index("8, topk")].count("\n") + 1,
        micro.index("8, topk") - micro.rindex("\n", 0, micro.index("8, topk")),
    )
    assert f"slots 8 {recipe}:{line}:{column}" in lines
    assert "dropout 0.1 default" in lines
    assert any(line.startswith("dimensions:") and "Dt=32 (model.text_encoder)" in line for line in lines)
    numbered = [line.partition(". ")[2] for line in lines if line[:1].isdigit()]
    assert numbered[0] == "model.masking @masked"
    assert {"model.text_encoder.encode", "model.text_encoder.encode @masked"} <= set(numbered)
    assert numbered[-3:] == ["model.alignments.gla", "model.decoders.image", "model.decoders.report"]
    assert [line for line in lines if line.startswith("losses ")] == [
        "losses global, local",
        "losses reconstruction",
        "losses mlm",
    ]
    assert "takes image_tokens (B, Nv, 32) @masked, masked ones dropped from model.image_encoder" in lines
    assert "gives word_logits (R, V=300)" in lines
    views = lines[lines.index("views") + 1 : lines.index("views") + 3]
    assert views == [
        "masked, of clean, opened by model.masking: 3 components; run in another view too: model.text_encoder",
        "clean: 4 components",
    ]
    assert "gla.local weight 0.5 --set losses.gla.local=0.5" in lines
    assert "report.mlm weight 1 default" in lines
    assert lines[-2:] == ["trainable parameters", "not counted; --build builds the model and counts them"]


def test_explain_shows_evaluators_like_other_parts(capsys: Output, recipe: str) -> None:
    words = ("--use", "evaluators.words=standard.masked_words", "--set", "evaluators.words.draws=7")
    words += ("--use", "evaluators.retrieval=standard.retrieval", "--unset", "model.alignments")
    code, out, _ = run(capsys, "explain", recipe, *words)
    assert code == 0
    lines = [" ".join(line.split()) for line in out.split("\nevaluators\n")[1].splitlines()]
    assert lines[0] == "evaluators.words: standard.masked_words (from medvlp-standard 0.1.0)"
    assert "draws 7 --set evaluators.words.draws=7" in lines
    assert "max_pairs 512 default" in lines
    assert any(line.startswith("skipped: needs image_embedding") for line in lines)


def test_every_call_says_for_whom_it_runs(capsys: Output, recipe: str) -> None:
    _, out, _ = run(capsys, "explain", recipe, "--set", "model.alignments.gla.align_text=clean")
    blocks = [block.split("\n", 1) for block in re.split(r"\n  \d+\. ", out)[1:]]
    reasons = {call: re.findall(r"^ +for (.*)$", block, re.MULTILINE) for call, block in blocks}
    assert reasons["model.text_encoder.encode"] == ["model.alignments.gla"]
    assert reasons["model.text_encoder.encode @masked"] == ["model.decoders.report"]
    assert [call for call, found in reasons.items() if not found] == ["model.alignments.gla", *HEADS], "they run for themselves"


HEADS = ["model.decoders.image", "model.decoders.report"]


def test_explain_prints_the_forward_pass_as_code(capsys: Output, recipe: str) -> None:
    code, out, err = run(capsys, "explain", recipe, "--code")
    assert (code, err) == (0, "")
    assert out.startswith("def forward(model, batch):\n")
    calls = run(capsys, "explain", recipe, "--json")[1]
    assert out.count("model.") == len(json.loads(calls)["calls"]) == 8
    compile(out, "forward", "exec")


def test_explain_with_build_counts_parameters(capsys: Output, recipe: str) -> None:
    code, out, _ = run(capsys, "explain", recipe, "--build", "--unset", "data")
    assert code == 0
    counts = dict(line.split() for line in out.split("trainable parameters\n")[1].splitlines())
    numbers = {path: int(count.replace(",", "")) for path, count in counts.items()}
    total = numbers.pop("total")
    assert total == sum(numbers.values())
    assert numbers["model.masking"] == 0
    # embeddings of words and positions, one layer of attention and feed-forward: at least its 12 D^2 weights
    assert numbers["model.text_encoder"] > 300 * 32


def test_fill_writes_every_default_and_reads_back(capsys: Output, recipe: str, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "fill", recipe)
    assert code == 0
    node = parse_yaml(out, file="filled", diagnostics=Diagnostics())
    assert node is not None
    assert node.get("model.fusion.dropout").value == 0.1  # type: ignore[union-attr]
    assert node.get("train.batch_size").value == 4  # type: ignore[union-attr]
    filled = tmp_path / "filled.yaml"
    filled.write_text(out, encoding="utf-8")
    assert run(capsys, "fill", str(filled))[1] == out


@pytest.mark.parametrize("command", ["explain", "fill", "pretrain"])
def test_problems_go_to_stderr_where_stdout_is_the_result(capsys: Output, recipe: str, command: str) -> None:
    code, out, err = run(capsys, command, recipe, "--set", "train.steps=0")
    assert (code, out) == (1, "")
    assert "[MV104] train: steps=0 must be at least 1" in err


def test_pretrain_hands_the_plan_on(capsys: Output, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import medvlp_core.training.trainer

    seen: dict[str, Any] = {}
    problems: list[str] = []

    def pretrain(plan: ModelPlan, **rest: Any) -> SimpleNamespace:
        seen.update(rest, steps=plan.train.steps)
        return SimpleNamespace(problems=tuple(problems))

    monkeypatch.setattr(medvlp_core.training.trainer, "pretrain", pretrain)
    words = ("pretrain", recipe, "--set", "train.steps=2", "--out", "runs/x", "--device", "cpu")
    assert run(capsys, *words)[0] == 0
    assert seen == {"steps": 2, "out": "runs/x", "device": "cpu"}
    problems.append("retrieval: no labels")
    assert run(capsys, *words)[0] == 1


def test_an_empty_run_folder_name_is_refused(capsys: Output, recipe: str) -> None:
    code, _, err = run(capsys, "pretrain", recipe, "--out", "")
    assert code == 1
    assert err.startswith("[MV508] the run folder's name is empty\n    hint: ")


@pytest.mark.parametrize(("error", "shown"), [(DataError("only text"), "only text\n"), (DataError(), "DataError\n")])
def test_an_error_without_problems_is_not_silent(
    capsys: Output, recipe: str, monkeypatch: pytest.MonkeyPatch, error: DataError, shown: str
) -> None:
    import medvlp_core.training.trainer

    def pretrain(plan: ModelPlan, **rest: Any) -> None:
        raise error

    monkeypatch.setattr(medvlp_core.training.trainer, "pretrain", pretrain)
    assert run(capsys, "pretrain", recipe)[::2] == (1, shown)


# --------------------------------------------------------------------------------------------------------- list, show, schema


def test_list_shows_role_distribution_and_first_line(capsys: Output, host: PluginHost) -> None:
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "")
    for name in host.components:
        assert any(line.split()[0] == name for line in out.splitlines() if line.strip())
    assert "mpma.memory_fusion" in out.split("fusion:\n")[1].split("alignment:")[0]
    assert "  mpma:small" in out
    assert out.count("medvlp-mpma 0.1.0") == 1
    assert ["mpma", "medvlp-mpma", "0.1.0"] in [line.split() for line in out.split("bundles:\n")[1].splitlines()]


def test_list_and_explain_fit_into_a_narrow_terminal(capsys: Output, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skipping = ("--set", "evaluators.retrieval.use=standard.retrieval", "--unset", "model.alignments")
    for words in (("list",), ("explain", recipe, *skipping)):
        monkeypatch.setenv("COLUMNS", "1000")
        whole = run(capsys, *words)[1]
        monkeypatch.setenv("COLUMNS", "80")
        folded = run(capsys, *words)[1]
        assert folded.split() == whole.split(), "no word is cut"
        assert max(map(len, whole.splitlines())) > 80
        is_long = [line for line in folded.splitlines() if len(line) > 80 and len(line.split()) > 1]
        assert [line for line in is_long if len(max(line.split(), key=len)) < 60] == []
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr("sys.__stdout__", io.StringIO())  # a pipe
    assert run(capsys, *words)[1] == whole


def test_folded_lines_keep_their_column() -> None:
    assert fold("  fusion  looks at every patch", 20, hang=10) == "  fusion  looks at\n          every\n          patch"
    assert fold("  takes a b from c", 12) == "  takes a b\n      from c"
    assert fold("short", 5) == "short"
    assert fold("  a " + "x" * 30, 20) == "  a\n      " + "x" * 30


def test_list_of_one_role(capsys: Output) -> None:
    _, out, _ = run(capsys, "list", "--role", "fusion")
    assert out.startswith("fusion:\n")
    assert "standard.timm_vit" not in out


def test_list_names_broken_plugins_with_their_reason(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def medvlp_model_built(plan: Any) -> None: ...

    broken = plugin_module("acme")
    broken.medvlp_model_built = medvlp_model_built  # type: ignore[attr-defined]
    monkeypatch.setattr(plugins, "load_plugins", lambda: PluginHost.from_modules({"acme": broken}))
    code, out, err = run(capsys, "list")
    assert (code, out) == (0, "")
    assert "[MV302] plugin 'acme': medvlp_model_built is not marked as a hook" in err


def test_show_prints_parameters_ports_and_about(capsys: Output) -> None:
    code, out, _ = run(capsys, "show", "mpma.memory_fusion")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "slots int = 2048 at least 1" in lines
    assert "needs text_is_valid B L:bool" in lines
    assert "gives fused_text_tokens B L Dt" in lines
    assert any(line.startswith("requires") and "divides Dt" in line for line in lines)
    assert "licences:" in run(capsys, "show", "open_cxr.pairs")[1]


def test_every_component_can_be_shown_and_its_recipe_text_reads_back(host: PluginHost) -> None:
    from medvlp_core.cli.show import component_text, recipe_text

    for name in host.components:
        kind = host.components[name]
        assert component_text(kind, "x 1")[0] == f"{name}: {kind.declaration.role}, from x 1"
        for example in kind.examples():
            node = parse_yaml(recipe_text(example), file="shown", diagnostics=Diagnostics())
            assert node is not None
            use = node.get(kind.declaration.role.info.slot.replace("*", "my_name") + ".use")
            assert use is not None
            assert use.value == name


def test_show_of_a_preset_and_of_nothing(capsys: Output, host: PluginHost) -> None:
    assert run(capsys, "show", "mpma:base")[1] == host.presets["mpma:base"].read_text(encoding="utf-8")
    code, _, err = run(capsys, "show", "mpma.memory_fusoin")
    assert code == 1
    assert "did you mean 'mpma.memory_fusion'?" in err


def test_schema_is_json(capsys: Output, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "schema")
    assert code == 0
    target = tmp_path / "schema.json"
    assert run(capsys, "schema", "--out", str(target))[:2] == (0, "")
    assert json.loads(out) == json.loads(target.read_text(encoding="utf-8"))
    code, _, err = run(capsys, "schema", "--out", str(tmp_path / "gone" / "schema.json"))
    assert code == 1
    assert "cannot be written" in err


# ----------------------------------------------------------------------------------------------------------- plugins' commands


def test_plugins_add_commands(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def configure(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--count", type=int, default=1)

    def greet(arguments: argparse.Namespace) -> int:
        print("hello " * arguments.count)
        return 0

    @hookimpl
    def medvlp_add_commands(commands: Any) -> None:
        commands.add("greet", "say hello", configure, greet, example="medvlp greet --count 2")

    acme = plugin_module("acme")
    acme.medvlp_add_commands = medvlp_add_commands  # type: ignore[attr-defined]
    monkeypatch.setattr(plugins, "load_plugins", lambda: PluginHost.from_modules({"acme": acme}))
    assert "  greet      say hello" in run(capsys, "--help")[1]
    assert run(capsys, "greet", "--count", "2")[:2] == (0, "hello hello \n")
    assert run(capsys, "greet", "--help")[1].endswith("\nexample:\n  medvlp greet --count 2\n")
    assert "did you mean 'greet'?" in run(capsys, "gret")[2]


@pytest.mark.parametrize("command", BUNDLE_COMMANDS)
def test_a_command_of_a_bundle_that_is_missing_says_what_to_install(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Messages of the core may name such a command whether it is installed or not."""
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "load_plugins", PluginHost)
        code, _, err = run(capsys, command, "mpma:small")
    assert (code, err) == (2, f"medvlp: there is no command '{command}'\n    hint: pip install medvlp-bench\n")
    monkeypatch.setenv("MEDVLP_PLUGINS", "mpma")
    hint = "MEDVLP_PLUGINS=mpma excludes the plugin 'bench'"
    assert run(capsys, command, "mpma:small")[2] == f"medvlp: there is no command '{command}'\n    hint: {hint}\n"
    assert f"did you mean '{command}'?" in run(capsys, f"{command}s")[2]


def test_the_bundles_of_the_hint_are_known() -> None:
    assert set(BUNDLE_COMMANDS.values()) <= set(KNOWN_BUNDLES)


def test_a_plugin_whose_commands_fail_harms_nobody(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def adding(name: str) -> types.ModuleType:
        @hookimpl
        def medvlp_add_commands(commands: Any) -> None:
            commands.add(name, "mine", lambda parser: None, lambda arguments: 0)

        found = plugin_module(name)
        found.medvlp_add_commands = medvlp_add_commands  # type: ignore[attr-defined]
        return found

    host = PluginHost.from_modules({"good": adding("greet"), "bad": adding("check"), "late": adding("wave")})
    monkeypatch.setattr(plugins, "load_plugins", lambda: host)
    code, out, err = run(capsys, "--help")
    assert code == 0
    assert err == "[MV306] warning: plugin 'bad': its hook medvlp_add_commands failed: there is already a command 'check'\n"
    assert "  greet " in out
    assert "  wave " in out
    code, _, err = run(capsys, "weave")
    assert code == 2
    assert err.count("[MV306]") == 1
    assert "did you mean 'wave'?" in err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_same_words_in_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    error = Problem(code="MV102", text="no [bold]markup[/bold] " + "x" * 200, hint="did you mean 'heads'?")
    warning = Problem(code="MV105", text="no data", is_warning=True)
    stream = Terminal()
    print_problems([error, warning], stream)
    assert re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()) == f"{error}\n{warning}\n"
    assert "\x1b[1;31m[MV102]\x1b[0m" in stream.getvalue()  # red
    assert "\x1b[1;33m[MV105] warning:\x1b[0m" in stream.getvalue()  # yellow


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_can_be_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(name, value)
    stream = Terminal()
    problem = Problem(code="MV102", text="x", hint="y")
    print_problems([problem], stream)
    assert stream.getvalue() == f"{problem}\n"


def test_a_pipe_gets_no_colour(capsys: Output, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in "".join(run(capsys, "check", recipe, "--set", "train.steps=ten")[1:])


def test_a_recipe_without_its_bundles_says_why(capsys: Output, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    monkeypatch.setenv("MEDVLP_PLUGINS", "")
    code, out, _ = run(capsys, "check", recipe)
    assert code == 1
    assert "MEDVLP_PLUGINS= excludes the plugin 'mpma'" in out
