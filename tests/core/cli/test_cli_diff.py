"""``medvlp diff``: what it finds, that it finds nothing else, and what it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medvlp_core.cli import main
from medvlp_core.cli.diff import differences
from medvlp_core.errors import DataError, Problem

Output = Any


@pytest.fixture
def recipe(tmp_path: Path, micro: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("micro.yaml").write_text(micro, encoding="utf-8")
    return "micro.yaml"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["diff", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def sections(out: str) -> dict[str, list[str]]:
    """What stands below each title, with single spaces."""
    found: dict[str, list[str]] = {}
    for block in out.rstrip().split("\n\n")[1:]:
        title, *lines = block.splitlines()
        assert title not in found
        assert lines
        found[title] = [" ".join(line.split()) for line in lines]
    return found


def test_a_recipe_does_not_differ_from_itself(capsys: Output, recipe: str) -> None:
    assert run(capsys, recipe, recipe) == (0, "no difference\n", "")


def test_what_is_written_out_does_not_differ_from_what_is_not_written(capsys: Output, recipe: str) -> None:
    assert main(["fill", recipe]) == 0
    Path("filled.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(capsys, recipe, "filled.yaml") == (0, "no difference\n", "")
    assert run(capsys, recipe, recipe, "--set", "model.fusion.dropout=0.1", "--set", "losses.gla.local=1") == (
        0,
        "no difference\n",
        "",
    )


def test_changed_parameters_with_both_places(capsys: Output, recipe: str, micro: str) -> None:
    words = (
        "--set",
        "train.steps=9",
        "--set",
        "model.fusion.dropout=0",
        "--set",
        "inputs.std=0.3",
        "--set",
        "losses.gla.local=0.5",
    )
    code, out, err = run(capsys, recipe, recipe, *words)
    assert (code, err) == (1, "")
    line, column = micro.splitlines().index("train: {steps: 4, batch_size: 4}") + 1, len("train: {steps: ") + 1
    assert out.splitlines()[:2] == ["A: micro.yaml", f"B: micro.yaml {' '.join(words)}"]
    assert sections(out) == {
        "model.fusion: mpma.memory_fusion": ["dropout 0.1 (default) -> 0.0 (--set model.fusion.dropout=0)"],
        "inputs": ["std 0.2449 (default) -> 0.3 (--set inputs.std=0.3)"],
        "train": [f"steps 4 (micro.yaml:{line}:{column}) -> 9 (--set train.steps=9)"],
        "losses": ["gla.local 1.0 (default) -> 0.5 (--set losses.gla.local=0.5)"],
    }


def test_another_component_with_the_parameters_of_each(capsys: Output, recipe: str) -> None:
    code, out, _ = run(capsys, recipe, recipe, "--use", "model.fusion=standard.cross_attention", "--set", "model.fusion.heads=4")
    [(title, lines)] = sections(out).items()
    assert code == 1
    assert title.startswith("model.fusion: mpma.memory_fusion (micro.yaml:")
    assert title.endswith(" -> standard.cross_attention (--use model.fusion=standard.cross_attention)")
    first, second = lines.index("A: mpma.memory_fusion"), lines.index("B: standard.cross_attention")
    assert "dropout 0.1 default" in lines[first:second]
    assert "heads 4 --set model.fusion.heads=4" in lines[second:]


def test_what_only_one_has_and_what_follows_from_it(capsys: Output, recipe: str) -> None:
    words = ("--unset", "model.alignments", "--use", "model.decoders.patches=standard.patch_decoder", "--unset", "data")
    code, out, err = run(capsys, recipe, recipe, *words, "--set", "model.text_encoder.width=64")
    assert code == 1
    assert err.startswith("micro.yaml:1:1 [MV105] warning: the recipe has no `data` block")
    found = sections(out)
    gla = next(title for title in found if title.startswith("model.alignments.gla: only in A, mpma.global_local ("))
    assert any(line.startswith("dim 8 micro.yaml:") for line in found[gla])
    assert (
        "model.decoders.patches: only in B, standard.patch_decoder (--use model.decoders.patches=standard.patch_decoder)" in found
    )
    assert any(title.startswith("data: only in A, open_cxr.pairs") for title in found)
    assert found["losses"][0] == "gla.global 1.0 (default) -> -"
    assert found["losses"][-1] == "patches.reconstruction - -> 1.0 (default)"
    assert found["requires"] == ["only in A: open_cxr==0.1.0"]
    assert "model.fusion Dt=32 -> 64" in found["dimensions"]


def test_calls_that_differ(capsys: Output, recipe: str) -> None:
    _, out, _ = run(capsys, recipe, recipe, "--set", "model.alignments.gla.align_text=clean")
    assert sections(out)["calls of a training step"] == [
        "only in B: model.text_encoder.embed",
        "only in B: model.text_encoder.encode",
    ]


def test_another_order_of_heads_is_a_difference(capsys: Output, recipe: str, micro: str) -> None:
    first, second = (
        next(line for line in micro.splitlines(True) if line.startswith(f"    {name}:")) for name in ("image", "report")
    )
    Path("turned.yaml").write_text(micro.replace(first + second, second + first), encoding="utf-8")
    code, out, _ = run(capsys, recipe, "turned.yaml")
    assert code == 1
    assert sections(out)["model.decoders"] == ["order: image, report -> report, image"]


def test_a_component_without_parameters_says_so(capsys: Output, recipe: str, micro: str) -> None:
    skipped = ("  fusion:", "    report:")
    Path("less.yaml").write_text("".join(line for line in micro.splitlines(True) if not line.startswith(skipped)), encoding="utf-8")
    _, out, _ = run(capsys, "less.yaml", "less.yaml", "--use", "model.fusion=standard.no_fusion")
    title = "model.fusion: only in B, standard.no_fusion (--use model.fusion=standard.no_fusion)"
    assert sections(out) == {title: ["no parameters"]}


CHANGES = [
    (),
    ("set train.num_workers=0",),
    ("set train.num_workers=1",),
    ("set train.betas=[0.9, 0.95]",),
    ("set train.betas=[0.9, 0.99]",),
    ("set data.sources=[covid]",),
    ("set model.image_encoder.drop_path=0.1",),
    ("set losses.report.mlm=2",),
    ("use tokenizer=standard.wordpiece",),
    ("use model.masking=standard.random",),
    ("use evaluators.words=standard.masked_words",),
    ("unset model.decoders.image",),
]


@pytest.mark.parametrize("changes", CHANGES, ids=" ".join)
def test_there_are_lines_exactly_if_the_resolved_recipes_differ(plan_text: Any, micro: str, changes: tuple[str, ...]) -> None:
    a, b = plan_text()[0], plan_text(micro, *changes)[0]
    assert a is not None
    assert b is not None
    for one, other in ((a, b), (b, a)):
        assert bool(list(differences(one, other))) == (a.resolved() != b.resolved())


def test_problems_of_both_are_printed_and_it_is_trouble(capsys: Output, recipe: str) -> None:
    code, out, err = run(capsys, "gone.yaml", recipe, "--set", "train.steps=0", "--set", "x.y")
    assert (code, out) == (2, "")
    assert err.startswith("gone.yaml [MV001] there is no such file")
    assert "\ngone.yaml: 1 error\n" in err
    assert "--set train.steps=0 [MV104] train: steps=0 must be at least 1" in err
    assert err.endswith("micro.yaml --set train.steps=0 --set x.y: 2 errors\n")
    assert run(capsys, recipe, "gone.yaml")[0] == 2
    assert run(capsys, recipe)[0] == 2


def test_an_error_that_is_raised_is_trouble_too(capsys: Output, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_plan(*_: Any) -> None:
        raise DataError(Problem(code="MV502", text="the manifest is gone"))

    monkeypatch.setattr("medvlp_core.cli.diff.read_plan", read_plan)
    code, _, err = run(capsys, recipe, recipe)
    assert (code, err.count("[MV502] the manifest is gone")) == (2, 2)
