"""One crop for everything that lies on an image: drawn once, then applied to pixels, maps, masks and boxes alike.

All random numbers come from torch's global generator: the same seed gives the same crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import attrs
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from medvlp_core.data.images import as_float
from medvlp_core.errors import DataError, Problem
from medvlp_core.spec.blocks import InputSpec

#: Aspect ratios of a training crop, relative to that of the input.
MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3

#: (H, W) in pixels, or (D, H, W) of a volume.
Size = tuple[int, ...]


class Box(NamedTuple):
    """A crop, in pixels of the image it is taken from. Fractions, so that it does not depend on the image's resolution."""

    left: float
    top: float
    right: float
    bottom: float


@attrs.frozen(kw_only=True)
class Geometry:
    """What is cut out of one image, and how its gray values change.

    ``box`` is in pixels of an image of ``height`` x ``width``, the one that was at hand when it was drawn. Boxes of a record and
    :attr:`crop` are in pixels of the file, ``original_height`` x ``original_width``, which may be larger. ``centre`` is the gray
    value that ``contrast`` turns around; None: the mean of what is cut out.
    """

    box: Box
    height: int
    width: int
    original_height: int
    original_width: int
    is_mirrored: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    centre: float | None = None

    @property
    def crop(self) -> Tensor:
        """The port ``crop``: left, top, right, bottom in pixels of the original image, and 1 if mirrored. Shape: (5,), float32."""
        box = self.box_on(self.original_height, self.original_width)
        return torch.tensor([*box, float(self.is_mirrored)], dtype=torch.float32)

    def box_on(self, height: int, width: int) -> Box:
        """The same crop in pixels of a map or image of another resolution."""
        if (height, width) == (self.height, self.width):
            return self.box
        left, right = (x * width / self.width for x in (self.box.left, self.box.right))
        top, bottom = (y * height / self.height for y in (self.box.top, self.box.bottom))
        return Box(max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))


def draw(
    height: int, width: int, size: Size, inputs: InputSpec, *, is_training: bool, original: tuple[int, int] | None = None
) -> Geometry:
    """Draw a crop of an image of ``height`` x ``width`` that will be scaled to ``size`` = (H, W).

    Training: ``inputs.crop_scale``..1 of the area, aspect ratio 3/4..4/3 (log-uniform, relative to that of ``size``), maybe
    mirrored, brightness and contrast changed. Evaluation: the largest centred crop, nothing random. ``original``: height and width
    of the file, where the image was decoded smaller.
    """
    aspect = size[-1] / size[-2]
    is_random = is_training and inputs.crop_scale < 1
    box = random_box(height, width, aspect, inputs.crop_scale) if is_random else centre_box(height, width, aspect)
    is_mirrored = is_training and inputs.horizontal_flip and torch.rand(()).item() < 0.5
    brightness, contrast = 1.0, 1.0
    if is_training and inputs.brightness > 0:
        brightness, contrast = (1 + inputs.brightness * (2 * torch.rand(2) - 1)).tolist()
    original_height, original_width = original or (height, width)
    return Geometry(
        box=box,
        height=height,
        width=width,
        original_height=original_height,
        original_width=original_width,
        is_mirrored=is_mirrored,
        brightness=brightness,
        contrast=contrast,
    )


def apply(
    kind: Literal["image", "map", "mask", "boxes"],
    value: ArrayLike,
    geometry: Geometry,
    size: Size,
    *,
    inputs: InputSpec | None = None,
    channels: int = 1,
) -> Tensor:
    """Cut a value that lies on an image, and scale it to ``size``: (H, W), or (D, H, W) of volumes.

    image: antialiased, brightness and contrast changed, ``(x - mean) / std`` by ``inputs``. map: antialiased. mask: the value of
    the nearest pixel. boxes: moved and scaled, clipped to the crop; one that is cropped away has no area (four zeros). Maps and
    masks may have another resolution than the image.

    Shape:
        image: (h, w) gray or (h, w, 3) colour to (channels, H, W); (d, h, w) to (channels, D, H, W). map, mask: (..., h, w) to
        (..., H, W), plane by plane; (..., d, h, w) to (..., D, H, W). boxes: (K, 4) to (K, 4). float32, masks keep their dtype.

    Raises:
        DataError: the value has too few axes (MV505).
    """
    values = np.asarray(value)
    if kind == "boxes":
        return _cut_boxes(torch.as_tensor(values, dtype=torch.float32).reshape(-1, 4), geometry, size)
    if values.ndim < len(size):
        text = f"a {kind} of shape {values.shape} cannot be scaled to {_times(size)} pixels"
        raise DataError(Problem(code="MV505", text=text, hint=f"give it at least {len(size)} axes"))
    if kind == "image":
        return apply_to_images(values, geometry, [size], inputs or InputSpec(mean=0.0, std=1.0), channels)[0]
    planes = values.reshape(math.prod(values.shape[:-2]), *values.shape[-2:])
    if kind == "mask":
        cut = [torch.from_numpy(_nearest(plane, geometry, size)) for plane in planes]
    else:
        cut = [_mirrored(resize(plane, geometry, size[-2], size[-1]), geometry) for plane in planes]
    return _to_depth(_stacked(cut, values, size), size, is_nearest=kind == "mask")


def apply_to_images(
    values: NDArray[Any], geometry: Geometry, sizes: Sequence[Size], inputs: InputSpec, channels: int
) -> list[Tensor]:
    """The same crop of one image at several sizes. All have their contrast changed around the mean of the first.

    Shape:
        values: (h, w), (h, w, 3) or, if sizes have three numbers, (d, h, w). Returns (channels, *size) for each, float32.
    """
    found, centre = [], geometry.centre
    for size in sizes:
        image = _mirrored(_cut_pixels(values, geometry, size), geometry)
        if (geometry.brightness, geometry.contrast) != (1.0, 1.0):
            centre = image.mean().item() if centre is None else centre
            image = jitter(image, centre, geometry.brightness, geometry.contrast)
        image = image.sub(inputs.mean).div_(inputs.std)
        is_colour = image.ndim > len(size)
        found.append(image if is_colour else image.expand(channels, *size))
    return found


def to_original(points: Tensor, crop: Tensor, size: Size) -> Tensor:
    """Points of a crop that was scaled to ``size``, in pixels of the original image: the inverse of what boxes go through.

    Shape:
        points (..., K, 2) as x, y; crop (..., 5), the port; result (..., K, 2).
    """
    left, top, right, bottom, mirrored = crop.to(torch.float32).unsqueeze(-2).unbind(-1)
    x, y = points[..., 0] / size[-1], points[..., 1] / size[-2]
    x = torch.where(mirrored > 0.5, 1 - x, x)
    return torch.stack([left + x * (right - left), top + y * (bottom - top)], dim=-1)


def boxes_to_original(boxes: Tensor, crop: Tensor, size: Size) -> Tensor:
    """Boxes of a crop that was scaled to ``size``, in pixels of the original image.

    Shape:
        boxes (..., K, 4) as left, top, right, bottom; crop (..., 5), the port; result (..., K, 4).
    """
    first, second = (to_original(corner, crop, size) for corner in (boxes[..., :2], boxes[..., 2:]))
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes are real: neither padding nor cropped away. (..., K, 4) to (..., K) bool."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


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


def resize(plane: NDArray[Any], geometry: Geometry, height: int, width: int) -> Tensor:
    """Scale the crop of a plane to (height, width), antialiased (triangle filter).

    Shape:
        plane: (h, w) or (h, w, 3), uint8 in 0..255 (then the result is in 0..1) or numbers. Returns (height, width[, 3]), float32.
    """
    picture = Image.fromarray(plane if plane.dtype == np.uint8 else plane.astype(np.float32, copy=False))
    scaled = picture.resize((width, height), Image.Resampling.BILINEAR, box=geometry.box_on(*plane.shape[:2]))
    values = as_float(np.asarray(scaled))
    return torch.from_numpy(values if values.flags.writeable else values.copy())  # Pillow's own memory may not be written


def jitter(gray: Tensor, centre: float, brightness: float, contrast: float) -> Tensor:
    """``brightness * (centre + contrast * (x - centre))``, kept in 0..1."""
    return (brightness * (centre + contrast * (gray - centre))).clamp(0, 1)


def _cut_pixels(values: NDArray[Any], geometry: Geometry, size: Size) -> Tensor:
    """(h, w) to (H, W), (h, w, 3) to (3, H, W), (d, h, w) to (D, H, W)."""
    if len(size) == 3:
        slices = torch.stack([resize(plane, geometry, size[1], size[2]) for plane in values])
        return _to_depth(slices, size, is_nearest=False)
    image = resize(values, geometry, size[0], size[1])
    return image if image.ndim == 2 else image.permute(2, 0, 1).contiguous()


def _mirrored(cut: Tensor, geometry: Geometry) -> Tensor:
    return cut.flip(-1) if geometry.is_mirrored else cut


def _nearest(plane: NDArray[Any], geometry: Geometry, size: Size) -> NDArray[Any]:
    """The pixels under the centres of the crop's pixels. Not Pillow's: it has no 64-bit integers and no truth values."""
    height, width = plane.shape
    box = geometry.box_on(height, width)
    rows = _centres(box.top, box.bottom, size[-2], height)
    columns = _centres(box.left, box.right, size[-1], width)
    return plane[np.ix_(rows, columns[::-1] if geometry.is_mirrored else columns)]


def _centres(start: float, stop: float, count: int, limit: int) -> NDArray[np.int64]:
    places = np.floor(start + (np.arange(count) + 0.5) * (stop - start) / count).astype(np.int64)
    return places.clip(0, limit - 1)


def _stacked(planes: list[Tensor], values: NDArray[Any], size: Size) -> Tensor:
    """Planes with the leading axes that they had; there may be none (a report of no sentence)."""
    none = torch.zeros(0, *size[-2:], dtype=torch.from_numpy(np.zeros(0, values.dtype)).dtype)
    return (torch.stack(planes) if planes else none).reshape(*values.shape[:-2], *size[-2:])


def _to_depth(cut: Tensor, size: Size, *, is_nearest: bool) -> Tensor:
    """(..., d, H, W) to (..., D, H, W): the nearest slice, or antialiased along the depth alone. As it is without a depth."""
    depth = size[0]
    if len(size) == 2 or cut.shape[-3] == depth:
        return cut
    if is_nearest:
        return cut[..., torch.from_numpy(_centres(0, cut.shape[-3], depth, cut.shape[-3])), :, :]
    *lead, count, height, width = cut.shape
    flat = cut.reshape(-1, 1, count, height * width)
    scaled = torch.nn.functional.interpolate(flat, size=(depth, height * width), mode="bilinear", antialias=True)
    return scaled.reshape(*lead, depth, height, width)


def _cut_boxes(boxes: Tensor, geometry: Geometry, size: Size) -> Tensor:
    """Left, top, right, bottom in pixels of the original image, to pixels of the crop."""
    box = geometry.box_on(geometry.original_height, geometry.original_width)
    height, width = size[-2:]
    x = (boxes[:, 0::2] - box.left) / (box.right - box.left) * width
    y = (boxes[:, 1::2] - box.top) / (box.bottom - box.top) * height
    x = (width - x.flip(-1) if geometry.is_mirrored else x).clamp(0, width)
    y = y.clamp(0, height)
    cut = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=-1)
    return cut * has_area(cut)[:, None]


def _times(size: Size) -> str:
    return " x ".join(map(str, size))
