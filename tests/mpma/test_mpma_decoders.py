"""The image decoder with its finer target, and the report decoder."""

from __future__ import annotations

import attrs
import pytest
import torch
from medvlp_mpma.decoders import ImageDecoder, ReportDecoder
from medvlp_mpma.specs import ImageDecoderSpec, ReportDecoderSpec
from torch import Tensor

from medvlp_core.nn.functional import normalise_patches, patchify

SMALL = ImageDecoderSpec(target_size=16, width=16, depth=1, heads=2)


def image_decoder(spec: ImageDecoderSpec = SMALL, side: int = 4, channels: int = 1) -> ImageDecoder:
    torch.manual_seed(0)
    return ImageDecoder(spec, {"GH": side, "GW": side, "Di": 12, "C": channels})


def image_needs(visible: int = 4, prefix: int = 1, channels: int = 1, batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    is_masked = torch.ones(batch, 16, dtype=torch.bool)
    for row in is_masked:
        row[torch.randperm(16)[:visible]] = False
    return {
        "image_tokens": torch.randn(batch, visible, 12),
        "image_prefix": torch.randn(batch, prefix, 12),
        "image_is_masked": is_masked,
        "image_target": torch.randn(batch, channels, 16, 16),
    }


def test_the_target_of_448_pixels_has_cells_of_32_on_a_grid_of_14() -> None:
    torch.manual_seed(0)
    spec = ImageDecoderSpec(target_size=448, width=8, depth=1, heads=2)
    decoder = ImageDecoder(spec, {"GH": 14, "GW": 14, "Di": 12, "C": 3})
    is_masked = torch.rand(1, 196).argsort(dim=1) >= 49
    out = decoder(
        image_tokens=torch.randn(1, 49, 12),
        image_prefix=torch.randn(1, 1, 12),
        image_is_masked=is_masked,
        image_target=torch.randn(1, 3, 448, 448),
    )
    assert out.ports["patch_prediction"].shape == (1, 196, 32 * 32 * 3) == (1, 196, 3072)


def test_only_masked_patches_are_scored() -> None:
    decoder, arguments = image_decoder(), image_needs()
    out = decoder(**arguments)
    target = normalise_patches(patchify(arguments["image_target"], 4, 4))
    masked = arguments["image_is_masked"]
    errors = (out.ports["patch_prediction"] - target).square().mean(dim=-1)
    wanted = sum(errors[b, n] for b in range(2) for n in range(16) if masked[b, n]) / int(masked.sum())
    torch.testing.assert_close(out.losses["reconstruction"], wanted)

    grid = arguments["image_is_masked"].reshape(2, 1, 4, 4)
    is_visible = ~grid.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    other = {**arguments, "image_target": arguments["image_target"].masked_fill(is_visible, 9.0)}
    torch.testing.assert_close(decoder(**other).losses["reconstruction"], out.losses["reconstruction"])
    other = {**arguments, "image_target": arguments["image_target"].masked_fill(~is_visible, 9.0)}
    assert not torch.isclose(decoder(**other).losses["reconstruction"], out.losses["reconstruction"])


def test_raw_pixels_can_be_the_target() -> None:
    decoder, arguments = image_decoder(attrs.evolve(SMALL, normalise_patches=False)), image_needs()
    torch.nn.init.zeros_(decoder.to_pixels.weight)
    torch.nn.init.zeros_(decoder.to_pixels.bias)
    masked = patchify(arguments["image_target"], 4, 4)[arguments["image_is_masked"]]
    torch.testing.assert_close(decoder(**arguments).losses["reconstruction"], masked.square().mean())


def test_the_prefix_takes_part_and_may_be_missing() -> None:
    decoder, arguments = image_decoder(), image_needs()
    before = decoder(**arguments).ports["patch_prediction"]
    other = {**arguments, "image_prefix": arguments["image_prefix"] + 1.0}
    assert not torch.allclose(decoder(**other).ports["patch_prediction"], before)
    assert decoder(**image_needs(prefix=0)).ports["patch_prediction"].shape == before.shape


def test_tokens_of_a_replacing_encoder_are_kept_and_the_masked_ones_marked() -> None:
    decoder, arguments = image_decoder(), image_needs()
    arguments["image_tokens"] = torch.randn(2, 16, 12)
    joint: list[Tensor] = []
    handle = decoder.blocks[0].register_forward_pre_hook(lambda _, args: joint.append(args[0]))
    decoder(**arguments).losses["reconstruction"].backward()
    handle.remove()
    marked = joint[0][:, 1:] - decoder.positions - decoder.embed(arguments["image_tokens"])
    wanted = arguments["image_is_masked"].unsqueeze(-1) * decoder.mask_token
    torch.testing.assert_close(marked, wanted, atol=1e-6, rtol=0)
    dead = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in dead if not name.endswith("key.bias")] == []  # softmax does not see a shift of all keys


def test_losses_of_float64_parts_stay_float64() -> None:
    arguments = {name: value.double() if value.is_floating_point() else value for name, value in image_needs().items()}
    assert image_decoder().double()(**arguments).losses["reconstruction"].dtype is torch.float64


def test_nothing_masked_gives_zero_and_finite_gradients() -> None:
    decoder, arguments = image_decoder(), image_needs(visible=16)
    loss = decoder(**arguments).losses["reconstruction"]
    assert loss.item() == 0.0
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())


def test_heads_and_positions_must_share_out_the_width() -> None:
    assert [field for field, _, _ in ImageDecoderSpec(width=18, heads=4).problems()] == ["heads", "width"]
    assert list(ImageDecoderSpec().problems()) == []


# ------------------------------------------------------------------------------------------------------------------ report

VALID = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
MASKED = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()


def report_decoder(spec: ReportDecoderSpec) -> ReportDecoder:
    torch.manual_seed(0)
    return ReportDecoder(spec, {"Df": 8, "V": 11, "Mask": 3}).double()


def report_needs(is_masked: Tensor = MASKED) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "fused_text_tokens": torch.randn(3, 4, 8).double(),
        "token_ids": torch.randint(0, 11, (3, 4)),
        "text_is_masked": is_masked,
        "text_is_valid": VALID,
    }


@pytest.mark.parametrize(("positions", "scored"), [("masked", MASKED), ("nonpad", VALID), ("all", torch.ones(3, 4).bool())])
@pytest.mark.parametrize("head", ["linear", "transform"])
def test_the_loss_is_the_mean_over_the_scored_positions(positions: str, scored: Tensor, head: str) -> None:
    decoder, arguments = report_decoder(ReportDecoderSpec(positions=positions, head=head)), report_needs()
    out = decoder(**arguments)
    logits = decoder.to_words(decoder.transform(arguments["fused_text_tokens"]))
    losses = -logits.log_softmax(dim=-1).gather(-1, arguments["token_ids"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(out.losses["mlm"], losses[scored].mean())
    torch.testing.assert_close(out.ports["word_logits"], logits[MASKED])


def test_logits_are_computed_only_where_they_are_needed() -> None:
    decoder = report_decoder(ReportDecoderSpec())
    rows: list[int] = []
    decoder.to_words.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    decoder(**report_needs())
    assert rows == [3]


@pytest.mark.parametrize("positions", ["masked", "nonpad"])
def test_padding_has_no_say(positions: str) -> None:
    decoder, arguments = report_decoder(ReportDecoderSpec(positions=positions)), report_needs()
    changed = {
        **arguments,
        "fused_text_tokens": arguments["fused_text_tokens"].masked_fill(~VALID.unsqueeze(-1), float("nan")),
        "token_ids": arguments["token_ids"].masked_fill(~VALID, 5),
    }
    torch.testing.assert_close(decoder(**changed).losses["mlm"], decoder(**arguments).losses["mlm"])


def test_no_masked_word_gives_zero_and_finite_gradients() -> None:
    decoder = report_decoder(ReportDecoderSpec())
    out = decoder(**report_needs(torch.zeros(3, 4).bool()))
    assert out.ports["word_logits"].shape == (0, 11)
    assert out.losses["mlm"].item() == 0.0
    out.losses["mlm"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in decoder.parameters())
