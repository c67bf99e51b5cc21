"""What a plan shows of itself."""

from __future__ import annotations

from collections.abc import Callable


def test_a_plan_shows_its_parts_its_losses_and_its_length(plan_text: Callable) -> None:
    plan, _ = plan_text()
    lines = repr(plan).splitlines()
    assert lines[0] == "ModelPlan recipe"
    shown = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines[1:]}
    assert shown["fusion"] == "mpma.memory_fusion"
    assert shown["alignments.gla"] == "mpma.global_local"
    assert shown["losses"].startswith("gla.global, gla.local, ")
    assert shown["train"] == "4 steps of batch size 4, fp32"
    assert not {"evaluators", "skipped", "warnings"} & set(shown)
    assert len(lines) == 12


def test_what_differs_from_the_default_is_shown(plan_text: Callable, micro: str) -> None:
    text = (
        micro
        + "losses: {gla: {local: 0.5}}\nevaluators: {curves: {use: standard.loss_curves}, words: {use: standard.masked_words}}\n"
    )
    text = text.replace("    report: {use: mpma.report_decoder}\n", "")
    plan, _ = plan_text(text, "unset train.steps", "set train.epochs=2.5")
    shown = repr(plan)
    assert "0.5 x gla.local" in shown
    assert "2.5 epochs" in shown
    assert "evaluators      curves\n" in shown
    assert "skipped         words\n" in shown
    assert "MV207" in shown.splitlines()[-1]
    assert plan._repr_html_().count("<tr>") == len(shown.splitlines()) - 1
