"""Batch norms of an untrained baseline take their statistics from the data."""

from __future__ import annotations

import torch

from medvlp_core.evaluation.baseline import calibrate
from medvlp_core.model.build import build_run

CNN = "{use: standard.timm_cnn, model: resnet10t, image_size: 32, channels: 1, stage: 1}"


def test_after_calibration_evaluation_mode_gives_what_the_batch_statistics_give(plan_text, micro) -> None:
    start = micro.index("    {use: standard.timm_vit")
    text = micro[:start] + "    " + CNN + micro[micro.index("\n", start) :]
    plan, report = plan_text(text)
    assert not report.has_errors
    built = build_run(plan, seed=0)
    batches = [next(iter(built.pipeline.loader("val", batch_size=40)))]
    weights = {name: value.clone() for name, value in built.model.named_parameters()}

    before = built.model.eval().encode_image(batches[0]["image"]).image_tokens
    model = calibrate(built.model, batches, torch.device("cpu"))
    after = model.encode_image(batches[0]["image"]).image_tokens
    assert not model.training
    own = model.train().encode_image(batches[0]["image"]).image_tokens

    assert (after - own).abs().mean() < 0.05 * own.abs().mean()
    assert (before - own).abs().mean() > 0.2 * own.abs().mean()
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())


def test_a_model_without_batch_norm_is_left_alone(plan_text) -> None:
    plan, _ = plan_text()
    model = build_run(plan, seed=0).model

    def never() -> None:
        raise AssertionError("no pass over the data is needed")
        yield

    assert calibrate(model, never(), torch.device("cpu")) is model
