"""Crops and resolutions: what the model sees, and that the target shows the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_open_cxr.manifest import DATA, read_rows
from PIL import Image

from medvlp_core.data.geometry import MAX_RATIO, MIN_RATIO, Geometry, centre_box, random_box, resize
from medvlp_core.data.images import as_float, read_gray
from medvlp_core.data.transforms import ImageTransform, InputGeometry
from medvlp_core.spec.blocks import InputSpec

PLAIN = InputSpec(mean=0.0, std=1.0)


@pytest.fixture(scope="module")
def gray() -> np.ndarray:
    """A real radiograph that is not square, with odd sides."""
    return read_gray(DATA / read_rows()[0]["image"])[:301, :251]


def geometry(side: int = 32, target: int | None = 64, channels: int = 1) -> InputGeometry:
    return InputGeometry(channels=channels, height=side, width=side, target_height=target, target_width=target)


def halve(image: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(image.unsqueeze(0), 2).squeeze(0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("is_training", [True, False])
def test_shapes_of_image_and_target(gray: np.ndarray, channels: int, is_training: bool) -> None:
    wide = InputGeometry(channels=channels, height=24, width=40, target_height=48, target_width=80)
    image, target = ImageTransform(PLAIN, wide, is_training=is_training)(gray)
    assert image.shape == (channels, 24, 40)
    assert target is not None
    assert target.shape == (channels, 48, 80)
    assert image.dtype == target.dtype == torch.float32
    assert all(torch.equal(image[0], channel) for channel in image)


def test_no_target_unless_it_is_asked_for(gray: np.ndarray) -> None:
    assert ImageTransform(PLAIN, geometry(target=None), is_training=True)(gray)[1] is None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("is_training", [True, False])
def test_the_target_shows_what_the_image_shows(gray: np.ndarray, is_training: bool, seed: int) -> None:
    inputs = InputSpec(mean=0.0, std=1.0, crop_scale=0.2, horizontal_flip=True, brightness=0.3)
    torch.manual_seed(seed)
    image, target = ImageTransform(inputs, geometry(), is_training=is_training)(gray)
    assert target is not None
    same = (image - halve(target)).abs().mean()
    assert same < 0.02
    assert (image.flip(-1) - halve(target)).abs().mean() > 2 * same


def test_resizing_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (256, 128))
    image, _ = ImageTransform(PLAIN, geometry(side=32, target=None), is_training=False)(stripes)
    assert (image - 0.5).abs().max() < 0.05


def test_normalised_with_mean_and_std(gray: np.ndarray) -> None:
    plain, _ = ImageTransform(PLAIN, geometry(), is_training=False)(gray)
    scaled, _ = ImageTransform(InputSpec(mean=0.25, std=0.5), geometry(), is_training=False)(gray)
    torch.testing.assert_close(scaled, (plain - 0.25) / 0.5)
    assert plain.min() >= 0
    assert plain.max() <= 1


def test_evaluation_is_the_resized_centre(gray: np.ndarray) -> None:
    image, _ = ImageTransform(PLAIN, geometry(), is_training=False)(gray)
    expected = Image.fromarray(gray[25:276]).resize((32, 32), Image.Resampling.BILINEAR)
    # pixels at the border of the crop are filtered with their true neighbours, which a cut-out copy does not have
    torch.testing.assert_close(image[0, 1:-1], torch.from_numpy(as_float(np.asarray(expected)))[1:-1])


def test_8_and_16_bit_give_the_same_tensor(gray: np.ndarray) -> None:
    transform = ImageTransform(PLAIN, geometry(), is_training=False)
    eight, sixteen = transform(gray)[0], transform(as_float(gray))[0]
    assert (eight - sixteen).abs().max() <= 1.01 / 255


def test_random_numbers_come_from_torch_alone(gray: np.ndarray) -> None:
    inputs = InputSpec(horizontal_flip=True, brightness=0.2)
    transform = ImageTransform(inputs, geometry(), is_training=True)

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(gray)[0]

    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))
    state = torch.get_rng_state()
    ImageTransform(inputs, geometry(), is_training=False)(gray)
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_is_random_when_everything_is_off(gray: np.ndarray) -> None:
    inputs = InputSpec(crop_scale=1.0)
    torch.manual_seed(0)
    training = ImageTransform(inputs, geometry(), is_training=True)(gray)[0]
    torch.manual_seed(1)
    assert torch.equal(training, ImageTransform(inputs, geometry(), is_training=True)(gray)[0])
    assert torch.equal(training, ImageTransform(inputs, geometry(), is_training=False)(gray)[0])


def test_flips_half_of_the_images(gray: np.ndarray) -> None:
    transform = ImageTransform(InputSpec(crop_scale=1.0, horizontal_flip=True), geometry(), is_training=True)
    torch.manual_seed(0)
    still = ImageTransform(InputSpec(crop_scale=1.0), geometry(), is_training=False)(gray)[0]
    flipped = 0
    for _ in range(100):
        image = transform(gray)[0]
        is_flipped = torch.equal(image, still.flip(-1))
        assert is_flipped or torch.equal(image, still)
        flipped += is_flipped
    assert 30 < flipped < 70


def test_brightness_and_contrast_stay_within_their_share(gray: np.ndarray) -> None:
    inputs = InputSpec(mean=0.0, std=1.0, crop_scale=1.0, brightness=0.2)
    transform = ImageTransform(inputs, geometry(), is_training=True)
    still = ImageTransform(inputs, geometry(), is_training=False)(gray)[0]
    torch.manual_seed(0)
    means = torch.stack([transform(gray)[0].mean() for _ in range(100)]) / still.mean()
    assert means.min() >= 0.8 - 0.01
    assert means.max() <= 1.2 + 0.01
    assert means.std() > 0.05


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    aspect=st.sampled_from([0.5, 1.0, 1.7]),
    scale=st.sampled_from([0.05, 0.6, 0.99]),
    seed=st.integers(0, 1000),
)
def test_crops_lie_inside_the_image(height: int, width: int, aspect: float, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    plane, sizes = np.zeros((height, width), dtype=np.uint8), {"height": height, "width": width}
    for box in (random_box(height, width, aspect, scale), centre_box(height, width, aspect)):
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height
        geometry = Geometry(box=box, **sizes, original_height=height, original_width=width)
        assert resize(plane, geometry, 8, 8).shape == (8, 8)


def test_crop_sizes_follow_scale_and_ratio() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([random_box(1000, 1000, 1.0, 0.5) for _ in range(300)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, ratios = widths * heights / 1e6, widths / heights
    assert areas.min() > 0.5 - 1e-3
    assert areas.max() > 0.85
    assert ratios.min() > MIN_RATIO - 1e-3
    assert ratios.max() < MAX_RATIO + 1e-3
    assert boxes[:, :2].std(dim=0).min() > 20


@settings(deadline=None, max_examples=50, derandomize=True)
@given(scale=st.sampled_from([0.2, 0.6, 1.0]), target=st.sampled_from([None, 64, 100]), seed=st.integers(0, 100))
def test_least_side_is_enough_for_the_smallest_crop(scale: float, target: int | None, seed: int) -> None:
    transform = ImageTransform(InputSpec(crop_scale=scale), geometry(side=32, target=target), is_training=True)
    side = transform.least_side
    torch.manual_seed(seed)
    box = random_box(side, side, 1.0, scale) if scale < 1 else centre_box(side, side, 1.0)
    assert min(box.right - box.left, box.bottom - box.top) >= (target or 32) - 1e-3
