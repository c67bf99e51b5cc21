"""Gray values to normalised tensors: a random crop for training, a centre crop for evaluation, at one or two resolutions.

All random numbers come from torch's global generator: the same seed gives the same crops.
"""

from __future__ import annotations

import math

import attrs
from torch import Tensor

from medvlp_core.data.geometry import MIN_RATIO, apply_to_images, draw
from medvlp_core.data.images import GrayArray
from medvlp_core.spec.blocks import InputSpec


@attrs.frozen(kw_only=True)
class InputGeometry:
    """Sizes that the model asks for, in pixels; the target sizes are None if nothing reconstructs images."""

    channels: int
    height: int
    width: int
    target_height: int | None = None
    target_width: int | None = None


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
        wanted = self.geometry
        sizes = [(wanted.height, wanted.width)]
        if wanted.target_height is not None and wanted.target_width is not None:
            sizes.append((wanted.target_height, wanted.target_width))
        height, width = values.shape
        geometry = draw(height, width, sizes[0], self.inputs, is_training=self.is_training)
        image, *targets = apply_to_images(values, geometry, sizes, self.inputs, wanted.channels)
        return image, targets[0] if targets else None
