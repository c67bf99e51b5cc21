"""``medvlp ablate`` before anything runs: what ``--over`` means, the grid, and every problem at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from medvlp_core.ablation.grid import Ablation, parse_axes, plan_ablation, split_values
from medvlp_core.cli import main
from medvlp_core.errors import Diagnostics
from medvlp_core.plugins.host import PluginHost

Output = Any


@pytest.fixture
def recipe(tmp_path: Path, micro: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("micro.yaml").write_text(micro, encoding="utf-8")
    return "micro.yaml"


def plan(recipe: str, host: PluginHost, *over: str, seeds: tuple[int, ...] | None = None) -> tuple[Ablation | None, list[str]]:
    diagnostics = Diagnostics()
    axes = parse_axes(over, diagnostics)
    ablation = plan_ablation(recipe, axes, seeds=seeds, host=host, diagnostics=diagnostics) if axes is not None else None
    return ablation, [str(problem) for problem in diagnostics]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["ablate", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a", ["a"]),
        (" a , b ", ["a", "b"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("{use: a, x: {y: [1, 2]}},null", ["{use: a, x: {y: [1, 2]}}", "null"]),
        ("""'a,b',"c,\\",d",e""", ["'a,b'", '"c,\\",d"', "e"]),
        ("'it''s, so',x", ["'it''s, so'", "x"]),
        ("it's,x", ["it's", "x"]),
        ("{a: '}', b: 1},2", ["{a: '}', b: 1}", "2"]),
        ("a,,b,", ["a", "", "b", ""]),
        ("{a: 1,b", ["{a: 1,b"]),
        ("a],b", ["a]", "b"]),
    ],
)
def test_commas_split_outside_of_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_a_value_is_what_it_looks_like(recipe: str, host: PluginHost) -> None:
    block = "{use: standard.cross_attention, heads: 1}"
    over = (f"model.fusion=...,standard.cross_attention,{block}", "model.alignments.gla=...,null", "train.max_grad_norm=null,1e-1")
    ablation, problems = plan(recipe, host, *over)
    assert ablation is not None, problems
    found = []
    for one in ablation.combinations:
        [made] = one.plans.values()
        fusion = made.components["model.fusion"]
        found.append((fusion.name, fusion.spec.heads, "model.alignments.gla" in made.components, made.train.max_grad_norm))  # type: ignore[attr-defined]
    kinds = [("mpma.memory_fusion", 2), ("standard.cross_attention", None), ("standard.cross_attention", 1)]
    assert found == [(*kind, has_gla, norm) for kind in kinds for has_gla in (True, False) for norm in (None, 0.1)]


def test_two_names_for_one_combination(recipe: str, host: PluginHost) -> None:
    # `...` and the name of the component that is there both leave the recipe as it is
    assert plan(recipe, host, "model.fusion=...,mpma.memory_fusion", "train.steps=8,9")[1] == [
        f"--over [MV007] two combinations are the same: fusion=... steps={steps} and fusion=mpma.memory_fusion steps={steps}\n"
        "    hint: leave one of them out; ... is what the recipe has"
        for steps in (8, 9)
    ]


def test_overrides_come_first_and_all_kinds_of_slots_take_names(recipe: str, capsys: Output) -> None:
    arguments = ("--unset", "model.alignments.gla", "--over", "model.alignments.clip=standard.info_nce,...", "--dry-run")
    code, out, _ = run(capsys, recipe, *arguments, "--over", "model.masking.use=mpma.paired_masking,standard.random")
    assert code == 0
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "micro: 2 x 2 combinations x 1 seed (0) = 4 runs",
        "1 clip=standard.info_nce masking=mpma.paired_masking 4 steps, 9 components, 3 loss terms, 11 calls a step",
        "2 clip=standard.info_nce masking=standard.random 4 steps, 9 components, 3 loss terms, 11 calls a step",
        "3 clip=... masking=mpma.paired_masking 4 steps, 8 components, 2 loss terms, 7 calls a step",
        "4 clip=... masking=standard.random 4 steps, 8 components, 2 loss terms, 7 calls a step",
        "...: as the recipe has it",
    ]
    assert not Path("runs").exists()


def test_seeds_are_those_of_the_command_or_of_the_recipe(recipe: str, host: PluginHost) -> None:
    ablation, _ = plan(recipe, host, "train.steps=2,3", seeds=(5, 1))
    assert ablation is not None
    assert [(run.plan.train.steps, run.plan.train.seed, run.folder) for run in ablation.runs()] == [
        (2, 5, "steps=2/seed-5"),
        (3, 5, "steps=3/seed-5"),
        (2, 1, "steps=2/seed-1"),
        (3, 1, "steps=3/seed-1"),
    ]
    assert plan(recipe, host, "train={steps: 2},{steps: 2, seed: 3}")[1] == [
        "--over [MV007] the combinations have different values of train.seed\n"
        "    hint: write --seeds 0,1,2: all combinations get the same"
    ]


def test_names_are_short_and_no_two_folders_the_same(recipe: str, host: PluginHost) -> None:
    long = "standard.cross_attention, layers: 1, ffn_ratio"
    over = (
        f"model.fusion={{use: {long}: 2.0}},{{use: {long}: 3.0}}",
        "model.decoders.image.width=16,24",
        "model.image_encoder.width=32,64",
        "tokenizer.vocab_size=300,0x12c0",
    )
    ablation, problems = plan(recipe, host, *over)
    assert ablation is not None, problems
    assert ablation.combinations[0].parts == (
        "fusion={use: standard.cross_attention, la...#1",
        "image.width=16",
        "image_encoder.width=32",
        "vocab_size=300",
    )
    folders = [one.folder for one in ablation.combinations]
    assert len({folder.casefold() for folder in folders}) == len(folders) == 16
    assert all(re.fullmatch(r"[\w.,=+-]{10,130}", folder, re.ASCII) for folder in folders)


# ----------------------------------------------------------------------------------------------------------------- problems


def test_every_problem_of_every_combination_is_shown_first(recipe: str, capsys: Output) -> None:
    over = ("--over", "model.fusoin=a,null", "--over", "train.steps=1,x", "--over", "model.alignments.gla=standard.info_nec")
    code, out, err = run(capsys, recipe, *over, "--set", "train.batch_size=0", "--out", "there")
    assert (code, out) == (1, "")
    assert re.sub(r" other alignment components: .*", "", err) == (
        "--over model.alignments.gla=standard.info_nec [MV101] unknown alignment 'standard.info_nec'\n"
        "    in every combination\n"
        "    hint: did you mean 'standard.info_nce'?\n"
        "--over model.fusoin=a [MV102] a model has no part 'fusoin'\n"
        "    in 2 of 4 combinations:\n"
        "      fusoin=a steps=1 gla=standard.info_nec\n"
        "      fusoin=a steps=x gla=standard.info_nec\n"
        "    hint: did you mean 'fusion'? other parts of a model: alignments, decoders, "
        "image_encoder, masking, maskings, parts, text_encoder\n"
        "--over model.fusoin=null [MV102] a model has no part 'fusoin'\n"
        "    in 2 of 4 combinations:\n"
        "      fusoin=null steps=1 gla=standard.info_nec\n"
        "      fusoin=null steps=x gla=standard.info_nec\n"
        "    hint: did you mean 'fusion'? other parts of a model: alignments, decoders, "
        "image_encoder, masking, maskings, parts, text_encoder\n"
        "--over train.steps=x [MV103] train: steps must be int | None, found str 'x'\n"
        "    in 2 of 4 combinations:\n"
        "      fusoin=a steps=x gla=standard.info_nec\n"
        "      fusoin=null steps=x gla=standard.info_nec\n"
        "--set train.batch_size=0 [MV104] train: batch_size=0 must be at least 1\n"
        "    in every combination\n"
        "micro.yaml: 5 errors, nothing was trained\n"
    )
    assert not Path("there").exists()


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            ["model"],
            "--over model [MV007] this --over has not the right form\n"
            "    hint: write --over PATH=VALUE,VALUE, e.g. --over model.fusion=mpma.memory_fusion,standard.cross_attention",
        ),
        (["model.=a"], "--over model.=a [MV007] this --over has not the right form\n    hint: write --over PATH=VALUE,..."),
        (["train.steps="], "--over train.steps= [MV007] this --over has not the right form\n    hint: ..."),
        (
            ["train.steps=1,,2"],
            "--over train.steps=1,,2 [MV007] value 2 of 3 is empty\n"
            "    hint: null removes a block, '' is an empty text, ... is what the recipe has",
        ),
        (["train.steps=1,2,1"], "--over train.steps=1,2,1 [MV007] the value 1 stands twice\n    hint: leave one of them out"),
        (
            ["train.learning_rate=1e-3,0.001"],
            "--over train.learning_rate=1e-3,0.001 [MV007] the value 0.001 stands twice (as 1e-3 and as 0.001)\n    hint: ...",
        ),
        (
            ["model.fusion=...,null", "model.fusion.heads=1,2"],
            "--over model.fusion.heads [MV007] model.fusion.heads lies inside model.fusion, which another --over varies\n"
            "    hint: write whole blocks, e.g. --over model.fusion='{use: ..., heads: ...}, ...'",
        ),
        (
            ["train.steps=1,2", "train.steps=3"],
            "--over train.steps [MV007] this path is varied twice\n    hint: put all values into one --over",
        ),
        (["train.seed=0,1"], "--over train.seed=0,1 [MV007] seeds are no values of an --over\n    hint: write --seeds 0,1,2"),
        (
            ["model.alignments.glaa=...,null"],
            "--over model.alignments.glaa=null [MV007] there is no model.alignments.glaa to remove\n"
            "    in 1 of 2 combinations:\n      glaa=null\n    hint: did you mean 'gla'?",
        ),
        (
            ["train.betas=[0.9, 0.95],[0.9"],
            "--over train.betas=[0.9 [MV007] the value '[0.9': not valid YAML: expected ',' or ']', but got '<stream end>'\n"
            "    in 1 of 2 combinations:\n      betas=[0.9\n    hint: a bracket is not closed, or a comma is missing",
        ),
    ],
)
def test_what_is_wrong_with_an_over(recipe: str, host: PluginHost, over: list[str], message: str) -> None:
    ablation, problems = plan(recipe, host, *over)
    assert ablation is None
    [problem] = problems
    start, is_cut, _ = message.partition("...") if message.endswith("...") else (message, "", "")
    assert problem.startswith(start) if is_cut else problem == message


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--metrics", "gla.globl"],
            "[MV602] no run of the ablation can give the metric 'gla.globl'\n    hint: did you mean 'gla.global'?",
        ),
        (["--metrics", "total", "--device", "cuda:77"], "[MV104] device 'cuda:77' cannot be used"),
    ],
)
def test_metrics_and_the_device_are_checked_without_a_run(
    recipe: str, capsys: Output, arguments: list[str], complaint: str
) -> None:
    code, out, err = run(capsys, recipe, "--over", "train.steps=1,2", "--dry-run", *arguments)
    assert (code, out) == (1, "")
    assert complaint in err


def test_one_is_not_counted_as_many(recipe: str, capsys: Output) -> None:
    code, out, _ = run(capsys, recipe, "--over", "train.steps=1", "--dry-run")
    assert code == 0
    assert " x 1 seed (0) = 1 run\n" in out
    assert " 1 step, " in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: --over"),
        (["--over", "train.steps=1,2", "--seeds", "0,1,0"], "seeds are at least 0, each given once, found 0,1,0"),
        (["--over", "train.steps=1,2", "--seeds", "a"], "'a' is not a list of whole numbers such as 0,1,2"),
        (["--over", "train.steps=1,2", "--metrics", "a,,b"], "an empty name in 'a,,b'"),
        (["--ovr", "train.steps=1,2", "--over", "a=1"], "hint: did you mean '--over'?"),
    ],
)
def test_usage_errors(recipe: str, capsys: Output, arguments: list[str], complaint: str) -> None:
    code, _, err = run(capsys, recipe, *arguments)
    assert code == 2
    assert complaint in err
