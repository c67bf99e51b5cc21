"""From recipe to plan: calls, views, dimensions, losses, and what is said when something does not fit."""

from __future__ import annotations

import pytest

from medvlp_core.errors import SpecError
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.planning.wiring import PortKey
from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.roles import Role

#: The calls of the micro recipe before its heads.
BEFORE = [
    "model.masking @masked",
    "model.image_encoder @masked",
    "model.text_encoder.embed @masked",
    "model.text_encoder.encode @masked",
    "model.fusion @masked",
]


def before_heads(plan) -> list[str]:
    return [str(call) for call in plan.calls if not plan.components[call.path].calls[call.name].losses]


def codes(diagnostics) -> list[str]:
    return [problem.code for problem in diagnostics]


def test_a_masked_only_model_encodes_each_modality_once(plan_text) -> None:
    plan, diagnostics = plan_text()
    assert not diagnostics.problems
    heads = ["model.alignments.gla", "model.decoders.image", "model.decoders.report"]
    assert [str(call) for call in plan.calls] == [*BEFORE, *heads]
    assert plan.losses == {"gla.global": 1.0, "gla.local": 1.0, "image.reconstruction": 1.0, "report.mlm": 1.0}


def test_a_clean_alignment_adds_exactly_the_clean_passes(plan_text, micro) -> None:
    plan, _ = plan_text(micro, "set model.alignments.gla.align_text=clean")
    assert set(before_heads(plan)) - set(BEFORE) == {"model.text_encoder.embed", "model.text_encoder.encode"}
    assert len(before_heads(plan)) == len(BEFORE) + 2


def test_without_reconstruction_nothing_is_masked(plan_text, micro) -> None:
    plan, diagnostics = plan_text(micro, "unset model.decoders", "use model.alignments.gla=standard.info_nce")
    assert sorted(before_heads(plan)) == ["model.image_encoder", "model.text_encoder.embed", "model.text_encoder.encode"]
    assert codes(diagnostics) == ["MV208", "MV208"]  # masking and fusion are not used: warnings
    assert not diagnostics.has_errors


def test_an_early_fusion_runs_the_text_layers_on_fused_embeddings(plan_text, micro) -> None:
    plan, diagnostics = plan_text(micro, "set model.fusion.position=early", "unset model.alignments")
    assert not diagnostics.has_errors
    # image and text embeddings in the order in which the fusion takes them; what comes first does not matter
    assert sorted(before_heads(plan)) == sorted([*BEFORE[:3], "model.fusion @masked", "model.text_encoder.fused @masked"])
    assert before_heads(plan)[-2:] == ["model.fusion @masked", "model.text_encoder.fused @masked"]


def test_early_fusion_beside_an_alignment_keeps_an_image_free_text_pass(plan_text, micro) -> None:
    plan, _ = plan_text(micro, "set model.fusion.position=early")
    assert {"model.text_encoder.encode @masked", "model.text_encoder.fused @masked"} <= set(before_heads(plan))
    takes = {call.name: dict(call.takes)["text_embeddings"] for call in plan.calls if call.method == "encode"}
    assert takes == {
        "encode": PortKey("text_encoder.text_embeddings", "masked"),
        "fused": PortKey("fusion.fused_text_embeddings", "masked"),
    }


def test_widths_are_solved_and_handed_on(plan_text) -> None:
    plan, _ = plan_text()
    assert plan.dims("model.fusion") == {"Di": 32, "Dt": 32}, "what weights depend on, and nothing else"
    assert plan.wiring.sizes(PortKey("fusion.fused_text_tokens", "masked")) == (None, 32, 32)
    assert plan.wiring.sizes(PortKey("token_ids")) == (None, 32), "texts of 32 tokens at most"
    assert plan.dims("inputs") == {"C": 1, "H": 32, "W": 32, "Ht": 64, "Wt": 64}
    assert plan.dims("model.masking") == {"GH": 4, "GW": 4, "V": 300, "Mask": 3}
    assert plan.wiring.sizes(PortKey("image_is_masked", "masked")) == (None, 16)
    assert plan.dims("model.decoders.report")["V"] == 300


def test_a_width_that_only_the_built_model_knows_is_no_error(plan_text, micro, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    plan, diagnostics = plan_text(micro, "use model.text_encoder=standard.hf_text", "set model.text_encoder.model=acme/radbert")
    assert codes(diagnostics) == ["MV210"], "the words are numbered in another way"
    assert plan.free_symbols("model.fusion") == ("Dt",)
    assert "Dt" not in plan.dims("model.text_encoder")


def test_resolved_yaml_gives_the_same_plan_again(plan_text, micro) -> None:
    plan, _ = plan_text(micro, "set losses.gla.local=0.5")
    again, diagnostics = plan_text(plan.resolved_yaml())
    assert not diagnostics.problems
    assert again.resolved() == plan.resolved()
    assert (again.calls, again.losses) == (plan.calls, plan.losses)
    assert plan.resolved()["model"]["fusion"]["dropout"] == 0.1  # a default, written out
    assert "mpma==0.1.0" in plan.resolved()["requires"]


def test_a_saved_recipe_names_files_absolutely(plan_text, micro, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = micro.replace("{use: open_cxr.pairs, sources: [nih]}", "{use: standard.manifest, path: lists/studies.csv}")
    plan, _ = plan_text(text)
    assert plan.one(Role.DATA).spec.path == "lists/studies.csv"
    assert plan.resolved()["data"]["path"] == str(tmp_path / "lists" / "studies.csv")
    assert plan.resolved()["data"]["image_root"] is None


def test_a_missing_tokenizer_is_one_message_that_lists_who_needs_it(plan_text, micro) -> None:
    plan, diagnostics = plan_text(micro, "unset tokenizer")
    assert plan is None
    (problem,) = diagnostics
    assert problem.text == "the recipe has no tokenizer, and 5 components need it"
    assert "model.masking (mpma.paired_masking) needs vocabulary, token_ids, text_is_valid, word_ids" in ", ".join(problem.details)


def test_a_typo_does_not_cascade(plan_text, micro) -> None:
    plan, diagnostics = plan_text(micro.replace("standard.bert", "standard.brt"))
    assert plan is None
    assert codes(diagnostics) == ["MV101"]
    assert "did you mean 'standard.bert'?" in diagnostics.problems[0].hint


def test_a_masked_view_without_a_masking(plan_text, micro) -> None:
    _, diagnostics = plan_text(micro, "unset model.masking")
    assert set(codes(diagnostics)) <= {"MV201", "MV205"}
    assert any("recipe has no masking" in problem.text for problem in diagnostics)


def test_heads_that_do_not_divide_are_blamed_where_they_are_written(plan_text, micro) -> None:
    _, diagnostics = plan_text(micro.replace("topk: 2, heads: 2", "topk: 2, heads: 3"))
    (problem,) = diagnostics
    assert problem.code == "MV203"
    assert "heads=3 must divide Dt, and Dt is 32" in problem.text
    assert problem.position.line == micro[: micro.index("topk: 2, heads: 2")].count("\n") + 1
    assert problem.details[0].startswith("Dt=32 comes from standard.bert")
    assert problem.hint == "1, 2 or 4 heads divide 32"


def test_two_heads_with_one_name(plan_text, micro) -> None:
    _, diagnostics = plan_text(micro.replace("    gla:", "    image:"))
    assert "MV209" in codes(diagnostics)


def test_an_unknown_loss_term(plan_text, micro) -> None:
    _, diagnostics = plan_text(micro + "losses: {gla: {gloabl: 1.0}}\n")
    (problem,) = diagnostics
    assert (problem.code, problem.hint.split("?")[0]) == ("MV107", "did you mean 'gla.global'")


def test_an_evaluator_that_does_not_apply_is_named_and_kept(plan_text, micro) -> None:
    text = micro + "evaluators: {retrieval: {use: standard.retrieval}}\n"
    plan, diagnostics = plan_text(text)
    assert list(plan.evaluators) == ["retrieval"]
    plan, diagnostics = plan_text(text, "unset model.alignments")
    assert not plan.evaluators
    assert plan.skipped[0].path == "evaluators.retrieval"
    assert "image_embedding" in plan.skipped[0].reason
    assert codes(diagnostics) == ["MV207"]
    assert plan.resolved()["evaluators"]["retrieval"]["use"] == "standard.retrieval"


def test_a_component_in_the_wrong_slot(plan_text, micro) -> None:
    fusion = "{use: mpma.memory_fusion, slots: 8, topk: 2, heads: 2, layers: 1}"
    _, diagnostics = plan_text(micro.replace(fusion, "{use: mpma.paired_masking}"))
    assert codes(diagnostics) == ["MV106"]


def test_slot_names_are_names(plan_text, micro) -> None:
    plan, diagnostics = plan_text(micro.replace("    gla:", "    a.b:").replace("    report:", '    "":'))
    assert plan is None
    assert [problem.text for problem in diagnostics.errors] == [
        "model.alignments: 'a.b' is no name for a slot",
        "model.decoders: '' is no name for a slot",
    ]


def test_weights_that_are_all_zero_would_learn_nothing(plan_text, micro) -> None:
    zero = "losses: {gla: {global: 0, local: 0}, image: {reconstruction: 0}, report: {mlm: 0}}\n"
    assert codes(plan_text(micro + zero)[1]) == ["MV104"]
    assert not plan_text(micro + zero.replace("mlm: 0", "mlm: 1"))[1].problems


def test_a_recipe_without_data_is_planned_with_a_warning(plan_text, micro) -> None:
    plan, diagnostics = plan_text(micro, "unset data")
    assert [problem.code for problem in plan.warnings] == codes(diagnostics) == ["MV105"]


def test_required_bundles_and_versions(plan_text, micro) -> None:
    _, diagnostics = plan_text(micro + "requires: [mpma, acme, 'standard>=99']\n")
    assert codes(diagnostics) == ["MV108", "MV108"]
    assert "'acme'" in diagnostics.problems[0].text
    assert "standard>=99" in diagnostics.problems[1].text


def test_every_problem_at_once(plan_text) -> None:
    _, diagnostics = plan_text(
        "medvlp: 2\nmodle: {}\nmodel:\n  fusion: {use: mpma.memory_fusion, heds: 2, dropout: 'a', topk: 0}\ntrain: {steps: 1.5}\n"
    )
    assert set(codes(diagnostics)) >= {"MV008", "MV102", "MV103", "MV104"}
    assert diagnostics.errors[0].position is not None


def test_roles_of_the_plan(plan_text) -> None:
    plan, _ = plan_text()
    assert plan.one(Role.FUSION).name == "mpma.memory_fusion"
    assert list(plan.of_role(Role.DECODER)) == ["image", "report"]
    assert plan.source("model.fusion.heads").line == 9
    assert plan.source("model.fusion.dropout") is None


def test_wrong_overrides_and_wrong_values_are_reported_at_once(host: PluginHost) -> None:
    with pytest.raises(SpecError) as caught:
        plan_recipe("mpma:small", ["train.steps", "train.batch_size=0"], host=host)
    assert {one.code for one in caught.value.problems} == {"MV007", "MV104"}


def test_weights_that_only_a_share_uses_are_used(plan_text, micro) -> None:
    share = "set model.parts.again={share: model.text_encoder, needs: {token_ids: token_ids}}"
    point = "set model.alignments.clip={use: standard.info_nce, needs: {text_tokens: again.text_tokens}}"
    plan, diagnostics = plan_text(micro, "unset model.decoders", "unset model.alignments.gla", share, point)
    assert [problem.text.partition(" ")[0] for problem in diagnostics] == ["model.masking", "model.fusion"]
    assert "model.text_encoder" not in {call.path for call in plan.calls}, "yet its weights are those that learn"


def test_a_masking_is_shared_with_a_view_of_its_own_and_never_followed(plan_text, micro) -> None:
    plan, diagnostics = plan_text(micro, "set model.maskings.more={share: model.masking, of: masked}")
    assert not diagnostics.has_errors
    assert plan.components["model.maskings.more"].of == "masked"
    _, diagnostics = plan_text(micro, "set model.maskings.more={follow: model.masking, decay: 0.5}")
    assert [(problem.code, problem.hint) for problem in diagnostics.errors] == [
        ("MV104", "`share` gives the same masking once more")
    ]
