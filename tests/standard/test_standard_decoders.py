"""Decoders: loss only where it belongs, against written-out formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from medvlp_standard.decoders import MlmHead, PatchDecoder
from medvlp_standard.specs.decoders import MlmHeadSpec, PatchDecoderSpec
from torch import Tensor

from medvlp_core.nn.batch import Output
from medvlp_core.nn.functional import normalise_patches, patchify, random_patch_mask

IMAGE_DIMS = {"GH": 2, "GW": 3, "H": 8, "W": 12, "C": 1, "Di": 6, "P": 1}
TEXT_DIMS = {"Df": 8, "V": 20, "Mask": 3}


def patch_decoder(**parameters: bool) -> PatchDecoder:
    torch.manual_seed(0)
    return PatchDecoder(PatchDecoderSpec(width=8, depth=1, heads=2, ffn_ratio=2.0, **parameters), IMAGE_DIMS)


def image_inputs(batch: int = 2, visible: int = 2, prefix: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "image_tokens": torch.randn(batch, visible, 6),
        "image_prefix": torch.randn(batch, prefix, 6),
        "image_is_masked": random_patch_mask(batch, 6, visible, torch.device("cpu")),
        "image": torch.randn(batch, 1, 8, 12),
    }


def reconstruction(output: Output) -> float:
    return float(output.losses["reconstruction"].detach())


@pytest.mark.parametrize("normalises", [True, False])
def test_patch_decoder_scores_its_prediction_against_the_image_itself(normalises: bool) -> None:
    decoder, given = patch_decoder(normalise_patches=normalises), image_inputs()
    output = decoder(**given)
    assert output.ports["patch_prediction"].shape == (2, 6, 16)
    target = patchify(given["image"], 2, 3)
    target = normalise_patches(target) if normalises else target
    wanted = F.mse_loss(output.ports["patch_prediction"][given["image_is_masked"]], target[given["image_is_masked"]])
    assert reconstruction(output) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_only_pixels_of_masked_patches_count() -> None:
    decoder, given = patch_decoder(), image_inputs()
    is_masked = given["image_is_masked"].reshape(2, 1, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    before = reconstruction(decoder(**given))
    noise = torch.randn(2, 1, 8, 12)
    visible_changed = given | {"image": torch.where(is_masked, given["image"], noise)}
    masked_changed = given | {"image": torch.where(is_masked, noise, given["image"])}
    assert reconstruction(decoder(**visible_changed)) == before
    assert reconstruction(decoder(**masked_changed)) != before


def test_predictions_follow_the_places_of_visible_patches() -> None:
    decoder, given = patch_decoder(), image_inputs(batch=1)
    moved = given | {"image_is_masked": given["image_is_masked"].roll(1, dims=1)}
    assert not torch.allclose(decoder(**given).ports["patch_prediction"], decoder(**moved).ports["patch_prediction"])


def test_a_full_sequence_is_kept_and_its_masked_places_are_marked() -> None:
    decoder = patch_decoder()
    is_masked = torch.tensor([[True, False] * 3] * 2)
    given = image_inputs(visible=6) | {"image_is_masked": is_masked}
    joint: list[Tensor] = []
    handle = decoder.blocks[0].register_forward_pre_hook(lambda _, args: joint.append(args[0]))
    decoder(**given).losses["reconstruction"].backward()
    handle.remove()
    marked = joint[0][:, 1:] - decoder.positions - decoder.embed(given["image_tokens"])
    torch.testing.assert_close(marked, is_masked.unsqueeze(-1) * decoder.mask_token, atol=1e-6, rtol=0)
    assert decoder.mask_token.grad is not None
    assert decoder.mask_token.grad.any()


def test_prefix_tokens_take_part_and_may_be_absent() -> None:
    decoder, given = patch_decoder(), image_inputs()
    other = decoder(**(given | {"image_prefix": given["image_prefix"] + 3.0 * torch.randn(2, 1, 6)}))
    assert not torch.allclose(decoder(**given).ports["patch_prediction"], other.ports["patch_prediction"])
    assert decoder(**image_inputs(prefix=0)).ports["patch_prediction"].shape == (2, 6, 16)


def test_nothing_masked_gives_zero_and_finite_gradients() -> None:
    decoder = patch_decoder()
    output = decoder(**image_inputs(batch=1, visible=6))
    output.losses["reconstruction"].backward()
    assert reconstruction(output) == 0.0
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)


def test_every_parameter_of_the_patch_decoder_learns() -> None:
    decoder = patch_decoder()
    decoder(**image_inputs()).losses["reconstruction"].backward()
    dead = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in dead if not name.endswith("key.bias")] == []  # softmax does not see a shift of all keys


def test_losses_of_float64_parts_stay_float64() -> None:
    given = {name: value.double() if value.is_floating_point() else value for name, value in image_inputs().items()}
    assert patch_decoder().double()(**given).losses["reconstruction"].dtype is torch.float64
    given = {name: value.double() if value.is_floating_point() else value for name, value in text_inputs().items()}
    assert MlmHead(MlmHeadSpec(), TEXT_DIMS).double()(**given).losses["mlm"].dtype is torch.float64


def test_widths_that_do_not_fit_are_reported_before_building() -> None:
    found = {field: text for field, text, _ in PatchDecoderSpec(width=30, heads=4).problems()}
    assert found == {
        "heads": "heads=4 must divide width=30",
        "width": "width=30 must be a multiple of 4 (sine-cosine positions)",
    }
    assert list(PatchDecoderSpec().problems()) == []


# ------------------------------------------------------------------------------------------------------------------ MLM head


def text_inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    is_valid = torch.tensor([[True] * 5 + [False], [True] * 3 + [False] * 3])
    is_masked = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()
    return {
        "fused_text_tokens": torch.randn(2, 6, 8),
        "token_ids": torch.randint(4, 20, (2, 6)).masked_fill(~is_valid, 0),
        "text_is_masked": is_masked,
        "text_is_valid": is_valid,
    }


@pytest.mark.parametrize("positions", ["masked", "nonpad", "all"])
def test_mlm_loss_equals_a_loop_over_the_scored_positions(positions: str) -> None:
    torch.manual_seed(0)
    head, given = MlmHead(MlmHeadSpec(positions=positions), TEXT_DIMS).double(), text_inputs()
    given["fused_text_tokens"] = given["fused_text_tokens"].double()
    full = head.to_vocabulary(head.transform(given["fused_text_tokens"])).detach()
    total, count = 0.0, 0
    for b in range(2):
        for position in range(6):
            scores = {"masked": given["text_is_masked"], "nonpad": given["text_is_valid"]}.get(positions)
            if scores is None or scores[b, position]:
                logits = full[b, position].tolist()
                total += math.log(sum(map(math.exp, logits))) - logits[int(given["token_ids"][b, position])]
                count += 1
    output = head(**given)
    assert count == {"masked": 3, "nonpad": 8, "all": 12}[positions]
    assert float(output.losses["mlm"].detach()) == pytest.approx(total / count, rel=1e-10)
    torch.testing.assert_close(output.ports["word_logits"], full[given["text_is_masked"]])


@pytest.mark.parametrize("positions", ["masked", "nonpad"])
def test_padding_and_labels_elsewhere_are_ignored(positions: str) -> None:
    torch.manual_seed(0)
    head, given = MlmHead(MlmHeadSpec(positions=positions), TEXT_DIMS), text_inputs()
    scored = given["text_is_masked"] if positions == "masked" else given["text_is_valid"]
    other = given | {
        "fused_text_tokens": given["fused_text_tokens"].masked_fill(~scored.unsqueeze(-1), 55.0),
        "token_ids": given["token_ids"].masked_fill(~scored, 9),
    }
    assert torch.equal(head(**given).losses["mlm"], head(**other).losses["mlm"])


def test_no_masked_word_gives_zero_with_zero_gradients() -> None:
    head, given = MlmHead(MlmHeadSpec(), TEXT_DIMS), text_inputs()
    given["text_is_masked"] = torch.zeros_like(given["text_is_masked"])
    output = head(**given)
    output.losses["mlm"].backward()
    assert float(output.losses["mlm"].detach()) == 0.0
    assert output.ports["word_logits"].shape == (0, 20)
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_certain_and_right_predictions_cost_nothing() -> None:
    head, given = MlmHead(MlmHeadSpec(positions="all"), TEXT_DIMS), text_inputs()
    with torch.no_grad():
        head.to_vocabulary.weight.zero_()
        head.to_vocabulary.bias.zero_()
        head.to_vocabulary.bias[11] = 60.0
    given["token_ids"] = torch.full((2, 6), 11)
    assert float(head(**given).losses["mlm"].detach()) == pytest.approx(0.0, abs=1e-6)
