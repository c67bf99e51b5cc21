"""One crop for pixels, maps, masks and boxes: they stay on the image, and what is cut out can be found in the original again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_open_cxr.manifest import DATA, read_rows
from PIL import Image

from medvlp_core.data.geometry import Geometry, apply, apply_to_images, boxes_to_original, draw, has_area, to_original
from medvlp_core.data.images import as_float, read_gray
from medvlp_core.data.transforms import ImageTransform, InputGeometry
from medvlp_core.errors import DataError
from medvlp_core.spec.blocks import InputSpec

PLAIN = InputSpec(mean=0.0, std=1.0)
MOVING = InputSpec(mean=0.0, std=1.0, crop_scale=0.3, horizontal_flip=True)


@pytest.fixture(scope="module")
def gray() -> np.ndarray:
    """A real radiograph that is not square, with odd sides."""
    return read_gray(DATA / read_rows()[0]["image"])[:301, :251]


def drawn(seed: int, height: int = 301, width: int = 251, size: tuple[int, int] = (64, 64), inputs: InputSpec = MOVING) -> Geometry:
    torch.manual_seed(seed)
    return draw(height, width, size, inputs, is_training=True)


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()


# --------------------------------------------------------------------------------------------------------------------- images


def before_the_split(
    values: np.ndarray, inputs: InputSpec, wanted: InputGeometry, *, is_training: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The transform as it was when it drew and cut in one function (commit 1487a7b), copied."""

    def boxed(left: float, top: float, crop_width: float, crop_height: float) -> tuple[float, float, float, float]:
        return left, top, min(width, left + crop_width), min(height, top + crop_height)

    def centred() -> tuple[float, float, float, float]:
        crop_width, crop_height = min(width, height * aspect), min(height, width / aspect)
        return boxed((width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height)

    def random() -> tuple[float, float, float, float]:
        for _ in range(10):
            draw_scale, draw_ratio, draw_left, draw_top = torch.rand(4).tolist()
            area = height * width * (inputs.crop_scale + (1 - inputs.crop_scale) * draw_scale)
            ratio = aspect * math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draw_ratio)
            crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if crop_width <= width and crop_height <= height:
                return boxed((width - crop_width) * draw_left, (height - crop_height) * draw_top, crop_width, crop_height)
        return centred()

    def scaled(size: tuple[int, int]) -> torch.Tensor:
        return torch.from_numpy(as_float(np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR, box=box))).copy())

    def jittered(one: torch.Tensor) -> torch.Tensor:
        return (brightness * (centre + contrast * (one - centre))).clamp(0, 1)

    height, width = values.shape
    aspect = wanted.width / wanted.height
    box = random() if is_training and inputs.crop_scale < 1 else centred()
    picture = Image.fromarray(values)
    found = [scaled((wanted.height, wanted.width))]
    if wanted.target_height is not None and wanted.target_width is not None:
        found.append(scaled((wanted.target_height, wanted.target_width)))
    if is_training and inputs.horizontal_flip and torch.rand(()).item() < 0.5:
        found = [one.flip(-1) for one in found]
    if is_training and inputs.brightness > 0:
        centre = found[0].mean().item()
        brightness, contrast = (1 + inputs.brightness * (2 * torch.rand(2) - 1)).tolist()
        found = [jittered(one) for one in found]
    found = [one.sub(inputs.mean).div_(inputs.std).expand(wanted.channels, -1, -1) for one in found]
    return found[0], found[1] if len(found) > 1 else None


@pytest.mark.parametrize("brightness", [0.0, 0.3])
@pytest.mark.parametrize("is_mirroring", [False, True])
@pytest.mark.parametrize(("crop_scale", "is_training"), [(0.2, True), (0.6, True), (1.0, True), (0.6, False)])
def test_the_split_kept_every_bit(
    gray: np.ndarray, crop_scale: float, is_training: bool, is_mirroring: bool, brightness: float
) -> None:
    inputs = InputSpec(crop_scale=crop_scale, horizontal_flip=is_mirroring, brightness=brightness)
    sizes = [
        InputGeometry(channels=3, height=32, width=32, target_height=64, target_width=64),
        InputGeometry(channels=1, height=24, width=40),
    ]
    for seed in range(25):
        for values in (gray, as_float(gray), gray[:, :90]):
            wanted = sizes[seed % 2]
            torch.manual_seed(seed)
            expected, expected_target = before_the_split(values, inputs, wanted, is_training=is_training)
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            image, target = ImageTransform(inputs, wanted, is_training=is_training)(values)
            assert torch.equal(torch.get_rng_state(), state), "as many numbers are drawn"
            assert torch.equal(image, expected)
            assert (target is None) == (expected_target is None)
            assert target is None or torch.equal(target, expected_target)


def test_one_size_is_what_both_give(gray: np.ndarray) -> None:
    inputs = InputSpec(crop_scale=0.4, horizontal_flip=True, brightness=0.3)
    geometry = drawn(3, inputs=inputs)
    image, _ = apply_to_images(gray, geometry, [(32, 32), (64, 64)], inputs, 3)
    assert torch.equal(apply("image", gray, geometry, (32, 32), inputs=inputs, channels=3), image)
    assert image.shape == (3, 32, 32)


def test_colours_are_cut_channel_by_channel(gray: np.ndarray) -> None:
    colour = np.stack([gray, 255 - gray, gray // 2], axis=-1)
    geometry = drawn(1)
    found = apply("image", colour, geometry, (40, 40), channels=3)
    assert found.shape == (3, 40, 40)
    for channel in range(3):
        wanted = apply("image", np.ascontiguousarray(colour[..., channel]), geometry, (40, 40))[0]
        assert (found[channel] - wanted).abs().max() < 0.01
    jittered = InputSpec(mean=0.2, std=0.5, brightness=0.5)
    assert apply("image", colour, drawn(1, inputs=jittered), (8, 8), inputs=jittered).shape == (3, 8, 8)


def test_slices_of_a_volume_share_the_crop(gray: np.ndarray) -> None:
    volume = np.stack([gray, gray // 2, gray // 4, gray // 8])
    geometry = drawn(5)
    found = apply("image", volume, geometry, (4, 32, 32), channels=2)
    assert found.shape == (2, 4, 32, 32)
    for depth in range(4):
        assert torch.equal(found[0, depth], apply("image", volume[depth], geometry, (32, 32))[0])
    half = apply("image", volume, geometry, (2, 32, 32))[0]
    assert correlation(half[0], found[0, 0] * 0.6 + found[0, 1] * 0.4) > 0.99
    assert half[0].mean() > half[1].mean() * 2
    labels = np.repeat(np.arange(4)[:, None, None], 20, axis=1).repeat(20, axis=2)
    assert apply("mask", labels, geometry, (8, 5, 5))[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    smooth = apply("map", labels, geometry, (8, 5, 5))[:, 0, 0]
    assert (smooth.diff() >= 0).all()
    assert smooth.diff().max() < 1
    stripes = np.tile(np.array([0.0, 1.0, 0.0]).reshape(3, 1, 1), (3, 20, 20))
    few = apply("map", stripes, geometry, (3, 5, 5))[:, 0, 0]
    assert (few - 1 / 3).abs().max() < 0.15, "no slice is picked and no one passed over"


# ----------------------------------------------------------------------------------------------------------------------- maps


@settings(deadline=None, max_examples=80, derandomize=True)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([0.25, 0.5, 1.0, 1.7]), side=st.sampled_from([14, 24]))
def test_a_map_of_the_image_stays_on_it(gray: np.ndarray, seed: int, factor: float, side: int) -> None:
    sides = round(251 * factor), round(301 * factor)
    heat = as_float(np.asarray(Image.fromarray(gray).resize(sides, Image.Resampling.BILINEAR)))
    geometry = drawn(seed)
    image = apply("image", gray, geometry, (side, side))[0]
    found = apply("map", heat, geometry, (side, side))
    assert correlation(image, found) > 0.99
    assert correlation(image.flip(-1), found) < 0.99


def test_maps_keep_their_numbers_and_are_not_jittered(gray: np.ndarray) -> None:
    geometry = drawn(0, inputs=InputSpec(brightness=0.5, crop_scale=0.5))
    assert geometry.brightness != 1
    flat = apply("map", np.full((30, 25), -7.5), geometry, (5, 5))
    assert torch.equal(flat, torch.full((5, 5), -7.5))


def test_a_stack_is_cut_plane_by_plane(gray: np.ndarray) -> None:
    geometry = drawn(9)
    stack = np.stack([as_float(gray) * k for k in (0.2, 0.5, 1.0)])
    found = apply("map", stack, geometry, (14, 10))
    assert found.shape == (3, 14, 10)
    for plane, wanted in zip(stack, found, strict=True):
        assert torch.equal(apply("map", plane, geometry, (14, 10)), wanted)
    assert apply("map", stack[:0], geometry, (14, 10)).shape == (0, 14, 10), "a report without a sentence"
    assert apply("mask", stack[:0] > 0, geometry, (14, 10)).dtype == torch.bool
    deep = apply("map", stack[None].repeat(2, axis=0), geometry, (3, 14, 10))
    assert deep.shape == (2, 3, 14, 10)
    torch.testing.assert_close(deep[1], found)


def test_maps_of_a_few_cells_reach_the_border() -> None:
    for seed in range(50):
        found = apply("map", np.arange(4.0).reshape(2, 2), drawn(seed), (7, 7))
        assert bool(found.isfinite().all())
        assert found.min() >= 0
        assert found.max() <= 3


def test_too_few_axes_are_named() -> None:
    with pytest.raises(DataError) as caught:
        apply("mask", np.zeros((4, 4), dtype=bool), drawn(0), (2, 4, 4))
    assert str(caught.value) == (
        "[MV505] a mask of shape (4, 4) cannot be scaled to 2 x 4 x 4 pixels\n    hint: give it at least 3 axes"
    )


# -------------------------------------------------------------------------------------------------------------- masks and boxes


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64])
def test_masks_keep_their_values_and_dtype(dtype: type) -> None:
    labels = (np.indices((301, 251)).sum(axis=0) // 50 * 40 % 127).astype(dtype)
    found = apply("mask", labels, drawn(2), (32, 32))
    assert found.dtype == torch.from_numpy(labels).dtype
    assert set(found.unique().tolist()) <= set(np.unique(labels).tolist())


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    left=st.integers(0, 200),
    top=st.integers(0, 250),
    width=st.integers(8, 120),
    height=st.integers(8, 120),
    factor=st.sampled_from([1, 2, 3]),
)
def test_boxes_bound_their_masks(seed: int, left: int, top: int, width: int, height: int, factor: int) -> None:
    """Boxes are in pixels of the file, of which the image at hand is ``factor`` times smaller."""
    right, bottom = min(251, left + width), min(301, top + height)
    mask = np.zeros((301, 251), dtype=bool)
    mask[top:bottom, left:right] = True
    torch.manual_seed(seed)
    geometry = draw(301, 251, (64, 64), MOVING, is_training=True, original=(301 * factor, 251 * factor))
    cut = apply("mask", mask, geometry, (64, 64))
    [box] = apply("boxes", [[left * factor, top * factor, right * factor, bottom * factor]], geometry, (64, 64))
    rows, columns = cut.nonzero(as_tuple=True)
    if len(rows) == 0:  # cropped away, or a sliver between the centres of two pixels
        assert not has_area(box) or min(box[2] - box[0], box[3] - box[1]) < 1
        return
    assert bool(has_area(box))
    bounds = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert (box - bounds).abs().max() <= 0.501  # the nearest pixel is the one below the centre


def test_boxes_that_are_cropped_away_stay_in_place_without_area() -> None:
    torch.manual_seed(0)
    geometry = draw(100, 200, (50, 50), PLAIN, is_training=False)  # the middle 100 columns
    boxes = apply("boxes", [[0, 0, 40, 40], [60, 10, 120, 50], [0, 0, 200, 100], [170, 0, 200, 9]], geometry, (50, 50))
    assert boxes.tolist() == [[0, 0, 0, 0], [5, 5, 35, 25], [0, 0, 50, 50], [0, 0, 0, 0]]
    assert has_area(boxes).tolist() == [False, True, True, False]
    assert apply("boxes", [], geometry, (50, 50)).shape == (0, 4)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([1, 4]), data=st.data())
def test_mapping_back_inverts(seed: int, factor: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    geometry = draw(301, 251, (32, 48), MOVING, is_training=True, original=(301 * factor, 251 * factor))
    left, top, right, bottom, mirrored = geometry.crop.tolist()
    assert mirrored == geometry.is_mirrored
    share = st.floats(0.05, 0.45)
    x0, y0 = left + data.draw(share) * (right - left), top + data.draw(share) * (bottom - top)
    box = [x0, y0, right - data.draw(share) * (right - left), bottom - data.draw(share) * (bottom - top)]
    cut = apply("boxes", [box], geometry, (32, 48))
    torch.testing.assert_close(boxes_to_original(cut, geometry.crop, (32, 48)), torch.tensor([box]), atol=0.01, rtol=0)
    corners = torch.tensor([[0.0, 0.0], [48.0, 32.0]])
    found = to_original(corners, geometry.crop, (32, 48))
    edges = torch.tensor([[right, top], [left, bottom]] if mirrored else [[left, top], [right, bottom]])
    torch.testing.assert_close(found, edges, atol=0.01, rtol=0)


def test_mapping_back_takes_batches() -> None:
    geometries = [drawn(seed) for seed in range(6)]
    boxes = torch.stack([apply("boxes", [[20, 30, 200, 260], [100, 100, 150, 150]], one, (64, 64)) for one in geometries])
    crop = torch.stack([one.crop for one in geometries])
    found = boxes_to_original(boxes, crop, (64, 64))
    assert found.shape == (6, 2, 4)
    for row in range(6):
        torch.testing.assert_close(found[row], boxes_to_original(boxes[row], crop[row], (64, 64)))
