"""Parameters that are not trained (``train.freeze``), or more slowly or later than others (``train.parameters``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from rich.console import Console
from state_bundle import RECIPE, Encoder, Run, messages, plan_of
from torch import nn

from medvlp_core.cli.explain import explanation
from medvlp_core.cli.explain_json import explanation_data
from medvlp_core.describe.json_schema import json_schema
from medvlp_core.errors import SpecError
from medvlp_core.model.build import build_model
from medvlp_core.spec.blocks import ParameterRule, TrainSpec
from medvlp_core.training.init_from import load_initial_weights
from medvlp_core.training.optim import parameter_groups


def recipe(train: str, *, model: str = "") -> str:
    """The small recipe with more in its training, and more parts."""
    text = RECIPE.replace("train: {", f"train: {{{train}, ") if train else RECIPE
    return text.replace("  decoders:\n", f"{model}  decoders:\n")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def refused(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        build_model(plan_of(text), seed=0)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------------ for good


def test_what_is_frozen_stays_and_the_rest_is_trained() -> None:
    run = Run.of(recipe("freeze: [image_encoder.blocks.*], ema_decay: 0.9, weight_decay: 0.5"))
    before = weights(run)
    run.train()
    moved = {name for name, value in weights(run).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith("image_encoder.blocks.")}
    assert not any(name.startswith("image_encoder.blocks.") for name in run.state.optimizer_tensors())
    assert run.state.ema is not None
    assert "image_encoder.blocks.0.linear.weight" not in run.state.ema.weights


def test_wholly_frozen_modules_stay_in_evaluation_mode() -> None:
    text = recipe("freeze: [image_encoder.blocks.0.*, image_encoder.embed.bias]").replace("st.encoder", "st.encoder, dropout: 0.5")
    model = build_model(plan_of(text), seed=0)
    assert model.frozen_modules == ("image_encoder.blocks.0",)
    for mode in (True, False):
        model.train(mode)
        blocks = model.image_encoder.blocks  # type: ignore[union-attr]
        assert not any(module.training for module in blocks[0].modules()), "its dropout too"
        assert all(module.training is mode for module in blocks[1].modules())
        assert model.image_encoder.embed.training is mode, "a part of it is trained"  # type: ignore[union-attr]
    text = recipe("freeze: ['image_encoder.*']").replace("st.encoder", "st.encoder, has_batch_norm: true")
    run = Run.of(text)
    before = weights(run)
    run.train()
    after = weights(run)
    assert torch.equal(before["image_encoder.batch_norm.running_mean"], after["image_encoder.batch_norm.running_mean"])


def test_what_is_frozen_begins_with_given_weights_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an encoder around a library's model, of which the library knows nothing but its blocks
    for name in ("export", "fit_weight"):
        monkeypatch.setattr(Encoder, name, lambda *_: None, raising=False)
    monkeypatch.setattr(Encoder, "exports", ("timm",), raising=False)
    names = {name: name for name in build_model(plan_of(RECIPE), seed=0).image_encoder.state_dict() if name.startswith("blocks")}  # type: ignore[union-attr]
    monkeypatch.setattr(Encoder, "library_names", lambda self: names, raising=False)
    source = Run.of(RECIPE, seed=7)
    folder = source.save(tmp_path / "source")
    run = Run.of(recipe("freeze: ['image_encoder.*']") + f"init_from: {{path: {folder}, parts: [image_encoder]}}\n")
    load_initial_weights(run.model, None, Console(quiet=True))
    assert torch.equal(run.model.image_encoder.embed.weight, source.model.image_encoder.embed.weight)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------------- for a while

TIMED = "parameters: {image_encoder.blocks.*: {freeze_until: 0.5}}, max_grad_norm: 0.1, weight_decay: 0.5"


def test_a_timed_freeze_keeps_weights_and_optimiser_state_and_counts_in_no_norm() -> None:
    found: list[dict[str, Any]] = []

    def look(run: Run) -> None:
        found.append({"weights": weights(run), "state": set(run.state.optimizer_tensors()), "norm": run.events[-1].grad_norm})

    run = Run.of(recipe(TIMED))
    first = weights(run)
    run.train(seen=look)
    name = "image_encoder.blocks.0.linear.weight"
    moves = [
        not torch.equal(one["weights"][name], before[name])
        for one, before in zip(found, [first, *(f["weights"] for f in found)], strict=False)
    ]
    assert moves == [False] * 4 + [True] * 3, "0/7 to 3/7 are below 0.5"
    assert [f"{name}/exp_avg" in one["state"] for one in found] == moves
    assert run.state.optimizer_tensors()[f"{name}/step"] == 3
    assert run.state.optimizer_tensors()["image_encoder.embed.weight/step"] == 7
    frozen = Run.of(
        recipe(TIMED.replace("parameters: {image_encoder.blocks.*: {freeze_until: 0.5}}", "freeze: [image_encoder.blocks.*]"))
    )
    frozen.train()
    norms = [event.grad_norm for event in frozen.events]
    assert [one["norm"] for one in found][:4] == norms[:4], "as if it were frozen for good, to the bit"


def test_a_timed_freeze_is_exact_on_resume_and_under_accumulation(tmp_path: Path) -> None:
    text = recipe(TIMED)
    whole = weights(Run.of(text).train())
    for stop in (2, 5):
        folder = Run.of(text).train(stop_after=stop).save(tmp_path / "checkpoints" / f"step-{stop}")
        resumed = weights(Run.of(text, resumed=folder).train())
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    split = weights(Run.of(text.replace("steps: 7", "steps: 7, gradient_accumulation_steps: 3")).train())
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-12)


# -------------------------------------------------------------------------------------------------------------------- scales


def test_scales_multiply_with_each_other_and_with_layer_decay() -> None:
    model = build_model(plan_of(RECIPE), seed=0)
    rules = {"image_encoder.*": ParameterRule(lr_scale=0.1), "*.bias": ParameterRule(lr_scale=2)}
    groups = parameter_groups(model, 0.05, 0.5, rules)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {names[id(one)]: group["lr_scale"] for group in groups for one in group["params"]}
    assert scales["decoders.fit.linear.weight"] == 1
    assert scales["decoders.fit.linear.bias"] == 2
    assert scales["image_encoder.blocks.1.linear.weight"] == pytest.approx(0.5 * 0.1)
    assert scales["image_encoder.blocks.0.linear.bias"] == pytest.approx(0.25 * 0.1 * 2)
    assert scales["image_encoder.embed.weight"] == pytest.approx(0.125 * 0.1)
    plain = parameter_groups(model, 0.05, 0.5)
    assert len(names) == sum(len(group["params"]) for group in groups) == sum(len(group["params"]) for group in plain)


def test_a_scale_is_a_learning_rate() -> None:
    run = Run.of(recipe("parameters: {decoders.fit.*: {lr_scale: 0.25}}, schedule: constant, warmup_fraction: 0"))
    run.train(stop_after=1)
    rates = {group["lr"] for group in run.state.optimizer.param_groups}
    assert rates == {0.01, 0.0025}


# --------------------------------------------------------------------------------------------------- how it is written and shown


def test_it_is_written_shown_and_read_again() -> None:
    plan = plan_of(recipe("parameters: {image_encoder.*: {lr_scale: 0.1, freeze_until: 0.05}}, freeze: ['*.embed.*']"))
    assert plan.resolved()["train"]["parameters"] == {"image_encoder.*": {"lr_scale": 0.1, "freeze_until": 0.05}}
    assert plan_of(plan.resolved_yaml()).train == plan.train
    shown = [line.split(maxsplit=1)[1] for line in explanation(plan) if line.lstrip().startswith("parameters ")]
    assert shown == ['{"image_encoder.*": {"lr_scale": 0.1, "freeze_until": 0.05}}  recipe.yaml:6:21']
    values = {one["name"]: one["value"] for one in explanation_data(plan)["blocks"]["train"]}
    assert values["parameters"] == {"image_encoder.*": {"lr_scale": 0.1, "freeze_until": 0.05}}
    assert TrainSpec(steps=1, parameters={"a.*": ParameterRule(lr_scale=0.5)}).parameters["a.*"].freeze_until == 0


def test_the_schema_agrees() -> None:
    validator = jsonschema.Draft7Validator(json_schema(plan_of(RECIPE).host.components))

    def is_valid(parameters: object) -> bool:
        return validator.is_valid({"train": {"parameters": parameters, "freeze": ["a.*"]}})

    assert is_valid({"a.*": {"lr_scale": 0.1, "freeze_until": 0.5}})
    assert not is_valid({"a.*": {"lr_scale": 0}})
    assert not is_valid({"a.*": {"freeze_until": 1}})
    assert not is_valid({"a.*": {"lr": 0.1}})
    assert not is_valid(["a.*"])


# ------------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (
            "freeze: [image_encodr.*]",
            "recipe.yaml:6:18 [MV102] train.freeze: 'image_encodr.*' begins with no part of this model\n"
            "    hint: did you mean 'image_encoder.*'? parts: image_encoder, decoders.fit",
        ),
        (
            "freeze: [decoders.gla.weight]",
            "recipe.yaml:6:18 [MV102] train.freeze: 'decoders.gla.weight' begins with no part of this model\n"
            "    hint: did you mean 'decoders.fit.*'? parts: image_encoder, decoders.fit",
        ),
        (
            "freeze: [image_encoder, decoders]",
            "recipe.yaml:6:18 [MV102] train.freeze: 'image_encoder' is a part of the model, and no parameter\n"
            "    hint: write 'image_encoder.*' for all its parameters\n"
            "recipe.yaml:6:33 [MV102] train.freeze: 'decoders' is a part of the model, and no parameter\n"
            "    hint: write 'decoders.*' for all its parameters",
        ),
        (
            "parameters: {text_encoder.*: {lr_scale: 0.1}}",
            "recipe.yaml:6:22 [MV102] train.parameters: 'text_encoder.*' begins with no part of this model\n"
            "    hint: did you mean 'image_encoder.*'? parts: image_encoder, decoders.fit",
        ),
        (
            "parameters: {image_encoder.*: {lr_scale: 0, freeze: 0.1}, decoders.*: {freeze_until: 1}}",
            "recipe.yaml:6:50 [MV104] train.parameters['image_encoder.*']: lr_scale=0 must be above 0\n"
            "recipe.yaml:6:53 [MV102] train.parameters['image_encoder.*'] has no parameter 'freeze'\n"
            "    hint: did you mean 'freeze_until'? other parameters: lr_scale\n"
            "recipe.yaml:6:94 [MV104] train.parameters['decoders.*']: freeze_until=1 must be below 1",
        ),
        (
            "parameters: [image_encoder.*]",
            "recipe.yaml:6:21 [MV103] train: parameters must be mapping, found a list",
        ),
        (
            "freeze: image_encoder.*",
            "recipe.yaml:6:17 [MV103] train: freeze must be list of str, found str 'image_encoder.*'\n"
            "    hint: write a list: [image_encoder.*]",
        ),
    ],
)
def test_a_wrong_name_is_refused_without_torch(train: str, expected: str) -> None:
    assert messages(recipe(train)) == expected


def test_parts_without_weights_of_their_own_are_refused() -> None:
    parts = "  parts:\n    again: {share: model.image_encoder}\n    teacher: {follow: model.image_encoder, decay: 0.9}\n"
    assert messages(recipe("freeze: [parts.again.*], parameters: {parts.teacher.*: {lr_scale: 1}}", model=parts)) == (
        "recipe.yaml:9:18 [MV104] train.freeze: 'parts.again.*' has no weights of its own, but those of model.image_encoder\n"
        "    hint: write 'image_encoder.*'\n"
        "recipe.yaml:9:47 [MV104] train.parameters: 'parts.teacher.*' follows model.image_encoder, "
        "so it is never trained by itself\n"
        "    hint: remove it: only its source is trained"
    )


def test_a_name_without_a_parameter_is_refused_when_the_model_is_built() -> None:
    assert refused(recipe("freeze: ['image_encoder.block.0.*'], parameters: {'*.wieght': {lr_scale: 0.1}}")) == (
        "recipe.yaml:6:18 [MV102] train.freeze: no parameter of the model has the name 'image_encoder.block.0.*'\n"
        "    hint: did you mean 'image_encoder.blocks.0.*'?\n"
        "recipe.yaml:6:59 [MV102] train.parameters: no parameter of the model has the name '*.wieght'\n"
        "    hint: names are such as image_encoder.embed.weight, image_encoder.embed.bias, image_encoder.blocks.0.norm.weight, "
        "image_encoder.blocks.0.norm.bias, image_encoder.blocks.0.linear.weight, image_encoder.blocks.0.linear.bias"
    )


def test_something_must_be_trained_in_every_step() -> None:
    assert refused(recipe("freeze: ['*']")) == (
        "recipe.yaml:6:18 [MV104] train.freeze: nothing is left to train\n    hint: leave a part that is trained, such as a head"
    )
    assert "nothing is trained in the first step" in refused(recipe("parameters: {'*': {freeze_until: 0.1}}"))
    assert isinstance(build_model(plan_of(recipe("freeze: ['image_encoder.*']")), seed=0), nn.Module)
