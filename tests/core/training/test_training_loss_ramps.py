"""Weights of losses that change in the course of training: ``{from: 0, to: 1, begin: 0.1, end: 0.4}``."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from state_bundle import RECIPE, Run, messages, plan_of, read

from medvlp_core.ablation.grid import parse_axes, plan_ablation
from medvlp_core.cli.differences import block_values
from medvlp_core.cli.explain import explanation
from medvlp_core.cli.explain_json import explanation_data
from medvlp_core.describe import forward_source
from medvlp_core.describe.json_schema import json_schema
from medvlp_core.errors import Diagnostics
from medvlp_core.model.build import build_model
from medvlp_core.planning.losses import Ramp
from medvlp_core.training.events import StepDone

RAMPED = RECIPE + "losses: {fit: {fit: {from: 0.5, to: 2, begin: 0.2, end: 0.6}, size: 0.25}}\n"


def losses(text: str) -> str:
    """The errors of a recipe with these losses."""
    return messages(RECIPE + f"losses: {text}\n")


def test_a_ramp_is_linear_between_its_ends() -> None:
    ramp = Ramp(0.5, 2, start=0.2, end=0.6)
    assert [ramp.at(one) for one in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0.5, 0.5, 1.25, 2, 2])
    assert ramp.at(torch.tensor(0.4)).item() == pytest.approx(1.25)
    assert Ramp(1, 0, start=0, end=1).at(0.25) == 0.75, "down as well as up"


def test_the_total_is_weighted_and_the_terms_are_not() -> None:
    run = Run.of(RAMPED).train()
    done = [event for event in run.events if isinstance(event, StepDone)]
    ramp = run.plan.losses["fit.fit"]
    assert isinstance(ramp, Ramp)
    assert run.plan.losses["fit.size"] == 0.25
    for event in done:
        expected = ramp.at((event.step - 1) / 7) * event.losses["fit.fit"] + 0.25 * event.losses["fit.size"]
        assert event.total == pytest.approx(expected, rel=1e-5)
    assert ramp.at(0) == 0.5
    assert len(done) == 7


def test_after_training_the_last_weight_counts() -> None:
    run = Run.of(RAMPED)
    output = run.model(run.images.batch([0, 1, 2]))
    torch.testing.assert_close(output.loss, 2 * output.losses["fit.fit"] + 0.25 * output.losses["fit.size"])


def test_a_weight_of_zero_still_runs() -> None:
    run = Run.of(RECIPE + "losses: {fit: {fit: {from: 0, to: 1, begin: 0.5, end: 1}}}\n")
    run.model({**run.images.batch([0, 1]), "progress": torch.tensor(0.0)}).loss.backward()
    gradient = run.model.decoders["fit"].linear.weight.grad
    assert gradient is not None, "so that no other process waits for it"
    assert not gradient.any()


def test_the_written_out_pass_is_equal_to_the_bit() -> None:
    plan = plan_of(RAMPED)
    model = build_model(plan, seed=0).double()
    space: dict = {}
    exec(forward_source(plan), space)
    for progress in (0.0, 0.3, 0.37, 0.6, 1.0):
        batch = {**Run.of(RAMPED).images.batch([0, 1, 2]), "progress": torch.tensor(progress)}
        loss, terms = space["forward"](model, batch)
        output = model(batch)
        assert torch.equal(loss, output.loss)
        assert terms.keys() == output.losses.keys()


def test_it_is_shown_and_written_as_it_was_given() -> None:
    plan = plan_of(RAMPED)
    given = {"from": 0.5, "to": 2.0, "begin": 0.2, "end": 0.6}
    assert plan.resolved()["losses"] == {"fit": {"fit": given, "size": 0.25}}
    again = plan_of(plan.resolved_yaml())
    assert again.losses == plan.losses
    assert "0.5 to 2 while progress goes from 0.2 to 0.6 x fit.fit, 0.25 x fit.size" in dict(plan.display()[1])["losses"]
    lines = [line for line in explanation(plan) if "fit.fit" in line]
    assert lines == ["  fit.fit   weight 0.5 to 2 while progress goes from 0.2 to 0.6  recipe.yaml:7:21"]
    shown = json.loads(json.dumps(explanation_data(plan)["losses"]))
    assert shown[0]["weight"] == given
    assert shown[1]["weight"] == 0.25
    assert block_values(plan_of(RECIPE), plan)["losses"] == (
        {"fit.fit": 1.0, "fit.size": 1.0},
        {"fit.fit": given, "fit.size": 0.25},
    )


def test_an_ablation_may_vary_it(tmp_path: Path) -> None:
    path, diagnostics = tmp_path / "recipe.yaml", Diagnostics()
    path.write_text(RECIPE)
    axes = parse_axes(["losses.fit.fit=..., 0.5, {from: 0, to: 1, begin: 0.1, end: 0.4}"], diagnostics)
    assert axes is not None
    found = plan_ablation(str(path), axes, host=plan_of(RECIPE).host, diagnostics=diagnostics)  # type: ignore[arg-type]
    assert found is not None, [str(one) for one in diagnostics]
    assert [run.plan.losses["fit.fit"] for run in found.runs()] == [1.0, 0.5, Ramp(0, 1, 0.1, 0.4)]
    assert [run.combination.parts for run in found.runs()][1] == ("fit=0.5",)


def test_every_problem_is_reported_at_its_place() -> None:
    assert losses("{fit: {fit: {from: -1, to: .inf, begin: 0.4, ende: 0.1}}}") == (
        "recipe.yaml:7:16 [MV105] losses.fit.fit is a ramp without end\n"
        "    hint: write `{from: 0, to: 1, begin: 0.1, end: 0.4}`; begin and end are shares of the training\n"
        "recipe.yaml:7:28 [MV104] losses.fit.fit.from must be a finite number of at least 0, found int -1\n"
        "recipe.yaml:7:36 [MV104] losses.fit.fit.to must be a finite number of at least 0, found float inf\n"
        "recipe.yaml:7:54 [MV102] losses.fit.fit has no key 'ende'\n"
        "    hint: did you mean 'end'? other keys of a ramp: begin, from, to"
    )


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (
            "{from: 0, to: 1, begin: 0.4, end: 0.4}",
            "recipe.yaml:7:55 [MV104] losses.fit.fit: begin=0.4 must be below end=0.4\n"
            "    hint: both are shares of the training, from 0 to 1",
        ),
        (
            "{from: 0, to: 1, begin: 0, end: 400}",
            "recipe.yaml:7:53 [MV104] losses.fit.fit.end must be a number from 0 to 1, found int 400",
        ),
        (
            "{from: a, to: 1, begin: 0, end: 1}",
            "recipe.yaml:7:28 [MV103] losses.fit.fit.from must be a finite number of at least 0, found str 'a'",
        ),
        (
            "[0, 1]",
            "recipe.yaml:7:21 [MV103] losses.fit.fit must be a finite number of at least 0, found a list\n"
            "    hint: write a number, or a ramp such as `{from: 0, to: 1, begin: 0.1, end: 0.4}`",
        ),
        ("-1", "recipe.yaml:7:21 [MV104] losses.fit.fit must be a finite number of at least 0, found int -1"),
    ],
)
def test_what_is_no_weight_is_refused(weight: str, expected: str) -> None:
    assert losses(f"{{fit: {{fit: {weight}}}}}") == expected


def test_something_must_count_at_some_time() -> None:
    zero = "{from: 0, to: 0, begin: 0, end: 1}"
    assert losses(f"{{fit: {{fit: {zero}, size: 0}}}}") == (
        "recipe.yaml:7:9 [MV104] every loss has the weight 0: nothing would be learned"
    )
    assert losses("{fit: {fit: {from: 0, to: 1, begin: 0, end: 1}, size: 0}}") == ""


def test_the_schema_agrees() -> None:
    plan, _ = read(RECIPE)
    assert plan is not None
    schema = json_schema(plan.host.components)

    def is_valid(weight: object) -> bool:
        return jsonschema.Draft7Validator(schema).is_valid({"losses": {"fit": {"fit": weight}}})

    assert is_valid({"from": 0, "to": 1, "begin": 0.1, "end": 0.4})
    assert is_valid(0.5)
    assert is_valid("${other}")
    assert not is_valid({"from": 0, "until": 1})
    assert not is_valid({"from": -1})
    assert not is_valid({"end": 2})
    assert not is_valid(-1)
    assert not is_valid(None)
