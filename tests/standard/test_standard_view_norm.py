"""Batch norm statistics of the clean and the masked view."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import timm
import torch
from medvlp_standard.image_encoders import TimmCNN
from medvlp_standard.specs.image_encoders import TimmCNNSpec

SPEC = TimmCNNSpec(model="resnet10t", image_size=32, channels=1, stage=1)


def encoder() -> TimmCNN:
    torch.manual_seed(0)
    return TimmCNN(SPEC, {})


def images() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    is_masked = torch.zeros(6, 64, dtype=torch.bool)
    is_masked[:, ::2] = True
    return torch.randn(6, 1, 32, 32) + 2.0, is_masked


def train(model: TimmCNN, *, with_clean: bool = True, with_masked: bool = True) -> None:
    image, is_masked = images()
    model.train()
    for _ in range(200):  # long enough for the running statistics to settle
        if with_clean:
            model(image)
        if with_masked:
            model(image, is_masked)
    model.eval()


def test_each_view_is_evaluated_with_its_own_statistics() -> None:
    """In evaluation both views give what they give with the statistics of the batch itself."""
    model = encoder()
    image, is_masked = images()
    train(model)
    for arguments in ((image,), (image, is_masked)):
        evaluated = model.eval()(*arguments).image_tokens
        trained = model.train()(*arguments).image_tokens
        assert (evaluated - trained).abs().mean() < 0.1 * trained.abs().mean()


def test_common_statistics_would_fail_that_test(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder()
    image, _ = images()
    monkeypatch.setattr(model.masked_statistics, "of_view", lambda *, is_masked: nullcontext())
    train(model)
    evaluated, trained = model.eval()(image).image_tokens, model.train()(image).image_tokens
    assert (evaluated - trained).abs().mean() > 0.1 * trained.abs().mean()


@pytest.mark.parametrize("trained", ["clean", "masked"])
def test_a_view_that_was_never_trained_borrows_the_other_ones_statistics(trained: str) -> None:
    model = encoder()
    image, is_masked = images()
    train(model, with_clean=trained == "clean", with_masked=trained == "masked")
    nothing = torch.zeros_like(is_masked)
    torch.testing.assert_close(model(image).image_tokens, model(image, nothing).image_tokens)
    assert model(image).image_tokens.abs().mean() < 10, "not the raw scale of uninitialised statistics"


def test_statistics_survive_a_state_dict_and_the_network_keeps_timms_names() -> None:
    model = encoder()
    train(model)
    again = encoder()
    again.load_state_dict(model.state_dict())
    image, is_masked = images()
    torch.testing.assert_close(again.eval()(image, is_masked), model(image, is_masked), rtol=0, atol=0)
    assert model.net.state_dict().keys() == timm.create_model("resnet10t", features_only=True, out_indices=(1,)).state_dict().keys()


def test_an_error_in_the_masked_pass_leaves_the_clean_statistics_in_place() -> None:
    model = encoder()
    image, is_masked = images()
    train(model)
    before = model(image).image_tokens
    with pytest.raises(RuntimeError):
        model(image.repeat(1, 2, 1, 1), is_masked)
    torch.testing.assert_close(model(image).image_tokens, before, rtol=0, atol=0)


def test_networks_without_batch_norm_have_nothing_to_keep() -> None:
    model = TimmCNN(TimmCNNSpec(model="convnext_atto", image_size=32, channels=1, stage=0), {})
    assert not model.masked_statistics.state_dict()
    image, _ = images()
    assert model.eval()(image).image_tokens.isfinite().all()


def test_torch_can_trace_the_choice_of_statistics() -> None:
    model = encoder()
    image, is_masked = images()
    train(model)
    for arguments in ((image,), (image, is_masked)):
        traced = torch.export.export(model, arguments).module()
        torch.testing.assert_close(traced(*arguments).image_tokens, model(*arguments).image_tokens)
