"""Gray values to normalised tensors: a random crop for training, a centre crop for evaluation, at one or two resolutions.

All random numbers come from torch's global generator: the same seed gives the same crops.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medvlp_core.data.images import GrayArray, as_float
from medvlp_core.spec.blocks import InputSpec

#: Aspect ratios of a training crop, relative to that of the input.
MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3


@attrs.frozen(kw_only=True)
class InputGeometry:
    """Sizes that the model asks for, in pixels; the target sizes are None if nothing reconstructs images."""

    channels: int
    height: int
    width: int
    target_height: int | None = None
    target_width: int | None = None


class Box(NamedTuple):
    """A crop, in pixels of the image it is taken from. Fractions, so that it does not depend on the image's resolution."""

    left: float
    top: float
    right: float
    bottom: float


class ImageTransform:
    """Cuts one crop out of an image and scales it to the input's and, if there is one, to the target's resolution.

    Both come from the same crop by antialiased (triangle filter) resizing of the original pixels, so that the target shows what the
    input shows. Values are ``(x - mean) / std`` with ``x`` in 0..1; one channel is repeated to ``geometry.channels``.

    Training: a crop of ``crop_scale``..1 of the area, aspect ratio 3/4..4/3 (log-uniform, relative to the input's), maybe
    flipped, brightness and contrast changed alike in both resolutions. Evaluation: the largest centred crop, nothing random.
    """

    def __init__(self, inputs: InputSpec, geometry: InputGeometry, *, is_training: bool) -> None:
        self.inputs = inputs
        self.geometry = geometry
        self.is_training = is_training

    @property
    def least_side(self) -> int:
        """Pixels that the shorter side of an image needs, so that the smallest crop is not smaller than what is made of it."""
        geometry = self.geometry
        largest = max(geometry.height, geometry.width, geometry.target_height or 0, geometry.target_width or 0)
        if not self.is_training or self.inputs.crop_scale == 1:
            return largest
        return math.ceil(largest / math.sqrt(self.inputs.crop_scale * MIN_RATIO))

    def __call__(self, values: GrayArray) -> tuple[Tensor, Tensor | None]:
        """Transform one image.

        Shape:
            values: (height, width), uint8 in 0..255 or float in 0..1. Returns (C, H, W) and (C, Ht, Wt) or None, float32.
        """
        geometry, inputs = self.geometry, self.inputs
        height, width = values.shape
        aspect = geometry.width / geometry.height
        is_random = self.is_training and inputs.crop_scale < 1
        box = random_box(height, width, aspect, inputs.crop_scale) if is_random else centre_box(height, width, aspect)
        picture = Image.fromarray(values)
        image = resize(picture, box, geometry.height, geometry.width)
        target = None
        if geometry.target_height is not None and geometry.target_width is not None:
            target = resize(picture, box, geometry.target_height, geometry.target_width)
        if self.is_training and inputs.horizontal_flip and torch.rand(()).item() < 0.5:
            image = image.flip(-1)
            target = None if target is None else target.flip(-1)
        if self.is_training and inputs.brightness > 0:
            centre = image.mean().item()
            brightness, contrast = (1 + inputs.brightness * (2 * torch.rand(2) - 1)).tolist()
            image = jitter(image, centre, brightness, contrast)
            target = None if target is None else jitter(target, centre, brightness, contrast)
        return self._normalise(image), None if target is None else self._normalise(target)

    def _normalise(self, gray: Tensor) -> Tensor:
        return gray.sub(self.inputs.mean).div_(self.inputs.std).expand(self.geometry.channels, -1, -1)


def centre_box(height: int, width: int, aspect: float) -> Box:
    """The largest centred crop with ``aspect`` = width / height: resizing the short side, then cropping, in one step."""
    crop_width, crop_height = min(width, height * aspect), min(height, width / aspect)
    return _box((width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height, height, width)


def random_box(height: int, width: int, aspect: float, scale: float) -> Box:
    """A crop of ``scale``..1 of the area; after ten draws that do not fit into the image, the centre crop.

    Reference: Szegedy et al. 2015 (Inception crops). The ratio is relative to ``aspect``: a non-square input is not squeezed.
    """
    for _ in range(10):
        draw_scale, draw_ratio, draw_left, draw_top = torch.rand(4).tolist()
        area = height * width * (scale + (1 - scale) * draw_scale)
        ratio = aspect * math.exp(math.log(MIN_RATIO) + (math.log(MAX_RATIO) - math.log(MIN_RATIO)) * draw_ratio)
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop_width <= width and crop_height <= height:
            return _box((width - crop_width) * draw_left, (height - crop_height) * draw_top, crop_width, crop_height, height, width)
    return centre_box(height, width, aspect)


def _box(left: float, top: float, crop_width: float, crop_height: float, height: int, width: int) -> Box:
    # sums of fractions may pass the edge by a rounding error, which Pillow refuses
    return Box(left, top, min(width, left + crop_width), min(height, top + crop_height))


def resize(picture: Image.Image, box: Box, height: int, width: int) -> Tensor:
    """Scale a crop to (height, width), antialiased, as float32 in 0..1."""
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    values = as_float(np.asarray(scaled))
    return torch.from_numpy(values if values.flags.writeable else values.copy())  # Pillow's own memory may not be written


def jitter(gray: Tensor, centre: float, brightness: float, contrast: float) -> Tensor:
    """``brightness * (centre + contrast * (x - centre))``, kept in 0..1."""
    return (brightness * (centre + contrast * (gray - centre))).clamp(0, 1)
