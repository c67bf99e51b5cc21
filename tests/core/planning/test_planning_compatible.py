"""What fits into a slot: the verdict is that of ``medvlp check``, for every installed component."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medvlp_core.cli import main
from medvlp_core.errors import Diagnostics
from medvlp_core.planning.compatible import Fit, compatible
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.component import params_of
from medvlp_core.spec.roles import Role

Output = Any


def fits(source: str | Path, role: Role, host: PluginHost) -> dict[str, Fit]:
    diagnostics = Diagnostics()
    found = compatible(source, role, host, diagnostics)
    assert not diagnostics.has_errors
    return {fit.name: fit for fit in found}


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.PART], ids=str)  # nobody brings a part yet
@pytest.mark.parametrize("preset", ["mpma:small", "mpma:base"])
def test_every_component_agrees_with_check(role: Role, preset: str, host: PluginHost, capsys: Output) -> None:
    found = fits(preset, role, host)
    assert list(found) == list(host.components.of_role(role))
    assert len(found) >= 2 or role is Role.PART, "no bundle here brings a part"
    for name, fit in found.items():
        slot = role.info.slot.replace("*", fit.path.rpartition(".")[2])
        assert fit.path == slot
        code = main(["check", preset, "--use", f"{slot}={name}"])
        out = capsys.readouterr().out
        assert (code == 0) == fit.is_good, name
        for problem in (*fit.errors, *fit.warnings):
            assert str(problem) in out
        assert sum("[MV" in line and "warning: " not in line for line in out.splitlines()) == len(fit.errors)


@pytest.mark.parametrize("role", list(Role), ids=str)
def test_required_parameters_are_named(role: Role, host: PluginHost) -> None:
    for name, fit in fits("mpma:small", role, host).items():
        required = tuple(param.name for param in params_of(host.components[name]) if param.is_required)
        assert fit.needs == (() if fit.present == fit.path else required)
        assert [f"needs {param} (" in str(fit.errors) for param in fit.needs] == [True] * len(fit.needs)


def test_there_are_parts_that_need_parameters_and_parts_that_do_not_fit(host: PluginHost) -> None:
    assert fits("mpma:small", Role.DATA, host)["standard.manifest"].needs == ("path",)
    vit = fits("mpma:small", Role.IMAGE_ENCODER, host)["standard.timm_vit"]
    assert (vit.is_good, vit.needs, {problem.code for problem in vit.errors}) == (False, (), {"MV203"})


def test_the_present_component_keeps_its_parameters(host: PluginHost, micro: str, tmp_path: Path) -> None:
    found = fits(write(tmp_path, micro), Role.FUSION, host)
    assert found["mpma.memory_fusion"].present == "model.fusion"
    assert found["mpma.memory_fusion"].is_good
    assert [name for name, fit in found.items() if fit.present] == ["mpma.memory_fusion"]
    # 32 wide: with the default of 12 heads it would not fit
    other = micro.replace("{use: mpma.memory_fusion, slots: 8, topk: 2, heads: 2, layers: 1}", "{use: standard.no_fusion}")
    assert not fits(write(tmp_path, other), Role.FUSION, host)["mpma.memory_fusion"].is_good


def test_an_added_component_gets_a_name_that_is_free(host: PluginHost, micro: str, tmp_path: Path) -> None:
    text = micro.replace("    gla:", "    info_nce: {use: standard.info_nce}\n    info_nce_2: {use: standard.info_nce}\n    gla:")
    text = text.replace("    report: {", "    siglip: {")
    found = fits(write(tmp_path, text), Role.ALIGNMENT, host)
    assert found["standard.info_nce"].path == "model.alignments.info_nce_3"
    assert found["standard.info_nce"].present == "model.alignments.info_nce"
    assert found["standard.siglip"].path == "model.alignments.siglip_2"
    assert found["mpma.global_local"].present == "model.alignments.gla"
    assert all(fit.is_good for name, fit in found.items() if not name.startswith("gallery."))  # which need fields of their own


def test_warnings_are_no_misfit_and_only_new_ones_count(host: PluginHost, micro: str, tmp_path: Path) -> None:
    local_only = micro[: micro.index("  alignments:")] + micro[micro.index("  decoders:") :]
    local_only = local_only.replace("data: {use: open_cxr.pairs, sources: [nih]}\n", "")
    found = fits(write(tmp_path, local_only), Role.EVALUATOR, host)
    assert {name for name, fit in found.items() if not fit.is_good} == set()
    assert [problem.code for problem in found["standard.retrieval"].warnings] == ["MV207"]
    assert found["standard.masked_words"].warnings == ()


# ------------------------------------------------------------------------------------------------- errors of the recipe itself


def test_a_wrong_part_in_the_slot_is_what_the_question_is_about(host: PluginHost, micro: str, tmp_path: Path) -> None:
    for wrong in ("topk: 2, heads: 3", "topk: 2, heds: 2", "topk: two, heads: 2"):
        found = fits(write(tmp_path, micro.replace("topk: 2, heads: 2", wrong)), Role.FUSION, host)
        assert not found["mpma.memory_fusion"].is_good
        assert found["standard.no_fusion"].is_good
    found = fits(write(tmp_path, micro.replace("mpma.memory_fusion", "mpma.memory_fusoin")), Role.FUSION, host)
    assert [fit.present for fit in found.values()] == [None] * len(found)


def test_an_empty_slot_can_be_filled(host: PluginHost, micro: str, tmp_path: Path) -> None:
    lines = [line for line in micro.splitlines(True) if not line.startswith("  fusion:")]
    assert fits(write(tmp_path, "".join(lines)), Role.FUSION, host)["standard.no_fusion"].is_good
    headless = micro[: micro.index("  alignments:")] + micro[micro.index("train:") :]
    found = fits(write(tmp_path, headless), Role.DECODER, host)
    assert found["standard.mlm_head"].is_good
    found = fits(write(tmp_path, headless), Role.ALIGNMENT, host)
    assert found["standard.info_nce"].is_good


@pytest.mark.parametrize("role", list(Role), ids=str)
@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("train: {steps: 4", "train: {steps: 0", "MV104"),
        ("train:", "losses: {gla: {golbal: 1}}\ntrain:", "MV107"),
        ("medvlp: 1\n", "", "MV008"),
        ("train:", "train: {", "MV002"),
    ],
)
def test_errors_elsewhere_are_reported_and_nothing_is_listed(
    host: PluginHost, micro: str, tmp_path: Path, role: Role, old: str, new: str, code: str
) -> None:
    source, diagnostics = write(tmp_path, micro.replace(old, new)), Diagnostics()
    assert compatible(source, role, host, diagnostics) == []
    assert [problem.code for problem in diagnostics] == [code]


def test_an_error_whose_text_counts_components_is_recognised(host: PluginHost, micro: str, tmp_path: Path) -> None:
    lines = [line for line in micro.splitlines(True) if "image_encoder" not in line and "vit_tiny" not in line]
    diagnostics = Diagnostics()
    assert compatible(write(tmp_path, "".join(lines)), Role.ALIGNMENT, host, diagnostics) == []
    assert [problem.code for problem in diagnostics] == ["MV201"]


# ------------------------------------------------------------------------------------------------------------------ command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["list", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_lists_what_fits_and_why_the_others_do_not(capsys: Output) -> None:
    code, out, err = run(capsys, "--role", "image_encoder", "--compatible-with", "mpma:small")
    assert (code, err) == (0, "")
    assert out.startswith("fit into model.image_encoder of mpma:small, with default parameters:\n  standard.timm_cnn  Any feature")
    misfits = out.split("\ndo not fit with default parameters:\n")[1].splitlines()
    assert misfits[0] == "  standard.timm_vit"
    assert misfits[1] == "      [MV203] model.decoders.image (mpma.image_decoder): GH must divide 128, and GH is 14"
    assert misfits[-1].startswith("`medvlp check mpma:small --use model.image_encoder=NAME` shows")


def test_the_command_names_required_parameters_and_present_parts(capsys: Output) -> None:
    _, out, _ = run(capsys, "--role", "data", "--compatible-with", "mpma:small")
    assert "  standard.manifest\n      [MV105] data (standard.manifest) needs path (str): " in out
    [line] = [line for line in out.splitlines() if line.startswith("  open_cxr.pairs")]
    assert line.endswith(" (in the recipe, with the recipe's values)")
    _, out, _ = run(capsys, "--role", "alignment", "--compatible-with", "mpma:small")
    assert out.count(" (also at model.alignments.gla)") == 1


def test_the_command_shows_warnings_briefly(capsys: Output, micro: str, tmp_path: Path) -> None:
    local_only = micro[: micro.index("  alignments:")] + micro[micro.index("  decoders:") :]
    code, out, _ = run(capsys, "--role", "evaluator", "--compatible-with", write(tmp_path, local_only))
    assert code == 0
    assert "      warning [MV207] evaluators.retrieval (standard.retrieval) is skipped: needs image_embedding" in out
    assert "medvlp check" not in out


def test_the_command_refuses_wrong_recipes_and_a_missing_role(capsys: Output, micro: str, tmp_path: Path) -> None:
    source = write(tmp_path, micro.replace("steps: 4", "steps: 0"))
    code, out, err = run(capsys, "--role", "fusion", "--compatible-with", source)
    assert (code, out) == (1, "")
    assert "[MV104] train: steps=0 must be at least 1" in err
    assert err.endswith(f"{source}: nothing at model.fusion would change these errors; repair them first\n")
    code, out, err = run(capsys, "--compatible-with", "mpma:small")
    assert (code, out) == (2, "")
    assert err.startswith("medvlp list: --compatible-with needs --role\n    hint: write e.g. `medvlp list --role fusion")


def test_a_role_without_components(host: PluginHost) -> None:
    from medvlp_core.cli.list_components import fit_lines

    assert list(fit_lines([], "x.yaml", Role.FUSION, host)) == ["fusion: none is installed"]
