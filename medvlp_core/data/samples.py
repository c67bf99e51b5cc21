"""One record as tensors: its fields read, and cut by one geometry for each image and view. Then many as a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from medvlp_core.data.fields import collate_field, cut_field, draw_field, pixel_size, ragged_lengths, read_field
from medvlp_core.data.geometry import MIN_RATIO, Geometry, Size, apply_to_images
from medvlp_core.data.images import Pixels, reduce_to
from medvlp_core.data.order import seed_of
from medvlp_core.data.records import Record
from medvlp_core.data.tokenizer import Tokenizer
from medvlp_core.nn.batch import Batch
from medvlp_core.planning.fields import CROP, LABELS, InputPlan
from medvlp_core.planning.wiring import PortKey
from medvlp_core.spec.blocks import InputSpec
from medvlp_core.spec.contract import CLEAN

#: What each of the encoders' inputs is called, whoever takes it: tensors that evaluators may look at too.
ALWAYS = ("image", "token_ids", "text_is_valid", "word_ids")


class Sample(NamedTuple):
    """One record before it is stacked: what its fields are in each view that cuts them. ``row`` is its place in the split."""

    row: int
    record_id: str
    values: dict[tuple[str, str], Any]
    extra: dict[str, Tensor]


def value_of(record: Record, name: str, labels: Sequence[str] | None = None) -> Any:
    """What a record has in a field; None if it lacks it. ``labels``: those that the field ``labels`` holds (``inputs.labels``)."""
    if name == LABELS and labels is not None:
        found = [record.labels.get(label) for label in labels]
        return None if all(one is None for one in found) else found
    if name == "image" and name not in record.fields:
        return record.image_path
    if name == "text" and name not in record.fields:
        return record.text if record.text.strip() else None
    return record.fields.get(name)


class SampleReader:
    """Reads records and cuts what lies on an image as the image is cut.

    The crop of the image in the clean view is drawn from torch's global random state. Every other one, of another image or for
    another view, is drawn from a seed of its own, so that it changes none of the others.
    """

    def __init__(self, inputs: InputSpec, plan: InputPlan, *, is_training: bool) -> None:
        self.inputs, self.plan, self.is_training = inputs, plan, is_training
        self.views = {CLEAN: tuple(plan.fields)} | {
            view: tuple(name for name, field in plan.fields.items() if name in cut or field.on in cut)
            for view, cut in plan.views.items()
        }

    def size(self, name: str) -> Size:
        """What an image, map or mask is scaled to, (H, W) or (D, H, W); of boxes that of their image; () of other kinds."""
        field = self.plan.fields[name]
        on = self.plan.fields.get(field.on or "")
        if field.kind == "boxes":
            return self.size(str(field.on))
        if field.kind == "image" and not self._is_sized(name):  # only what lies on it is wanted
            others = [one for one, other in self.plan.fields.items() if other.on == name and other.kind in ("map", "mask")]
            return self.size(others[0]) if others else (1, 1)
        return pixel_size(field, self.plan.sizes[name], on=on) if field.kind in ("image", "map", "mask") else ()

    def least_side(self, name: str) -> int | None:
        """Pixels that the shorter side of an image needs, so that the smallest crop is not smaller than what is made of it."""
        if self.plan.fields[name].kind != "image":
            return None
        largest = max(*self.size(name)[-2:], *((self.plan.target or ()) if name == "image" else ()))
        scale = min([self.inputs.crop_scale, *(self._inputs(view).crop_scale for view in self.plan.views)])
        return largest if not self.is_training or scale == 1 else math.ceil(largest / math.sqrt(scale * MIN_RATIO))

    def read(self, record: Record, kept: Pixels | None = None) -> dict[str, Any]:
        """The fields of a record as they lie on disk; ``kept`` is its image, if it was read before.

        Raises:
            DataError: a file cannot be read (MV501), or a value is not one of its field (MV512).
        """
        found = {}
        for name, field in self.plan.fields.items():
            if name == "image" and kept is not None:
                found[name] = kept
            else:
                found[name] = read_field(
                    name, field, value_of(record, name, self.inputs.labels), record_id=record.id, at_least=self.least_side(name)
                )
        return found

    def cut(self, row: int, record: Record, values: Mapping[str, Any], seed: int | None) -> Sample:
        """Draw the crops, and cut. ``seed`` is that of the record in this epoch; None in evaluation."""
        cut: dict[tuple[str, str], Any] = {}
        extra: dict[str, Tensor] = {}
        for view, names in self.views.items():
            geometries = {
                name: self._draw(name, values[name], view, seed)
                for name in names
                if self.plan.fields[name].kind == "image" and values[name] is not None
            }
            for name in names:
                field, value = self.plan.fields[name], values[name]
                geometry = geometries.get(name) or geometries.get(field.on or "")
                if name == "image" and view == CLEAN and isinstance(geometry, Geometry) and self._is_sized(name):
                    cut[name, view] = self._cut_image(value, geometry, extra)
                else:
                    # what lies on an image that is absent is absent too
                    is_there = geometry is not None or field.kind in ("vector", "spans", "text")
                    if field.kind != "image" or self._is_sized(name):
                        cut[name, view] = self._cut(name, value, geometry) if is_there else None
        return Sample(row, record.id, cut, extra)

    def _cut(self, name: str, value: Any, geometry: Geometry | list[Geometry] | None) -> Any:
        field = self.plan.fields[name]
        return cut_field(field, value, geometry, self.size(name), inputs=self.inputs, channels=self._channels(name))

    def _is_sized(self, name: str) -> bool:
        """Whether somebody says how large an image field is to be: else nobody takes it."""
        field = self.plan.fields[name]
        return all(not isinstance(axis, str) or axis in self.plan.sizes[name] for axis in field.pixel_axes())

    def _inputs(self, view: str) -> InputSpec:
        views = self.inputs.views or {}
        return attrs.evolve(self.inputs, crop_scale=views[view].crop_scale) if view in views else self.inputs

    def _channels(self, name: str) -> int:
        field = self.plan.fields[name]
        if field.kind != "image":
            return 1
        channels = field.axes[field.channel_axis]
        return channels if isinstance(channels, int) else self.plan.sizes[name].get(channels, 1)

    def _draw(self, name: str, value: Any, view: str, seed: int | None) -> Geometry | list[Geometry]:
        if name == "image" and view == CLEAN:
            return draw_field(value, self.size(name), self.inputs, is_training=self.is_training)
        is_training = self.is_training or view != CLEAN  # a second crop is another one in evaluation too, always the same
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(f"crop of {name} for {view}", seed or 0))
            return draw_field(value, self.size(name), self._inputs(view), is_training=is_training)

    def _cut_image(self, value: Pixels, geometry: Geometry, extra: dict[str, Tensor]) -> Tensor:
        sizes = [self.size("image"), *([self.plan.target] if self.plan.target is not None else [])]
        image, *targets = apply_to_images(value.values, geometry, sizes, self.inputs, self._channels("image"))
        if targets:
            extra["image_target"] = targets[0]
        if self.plan.has(CROP):
            extra[CROP] = geometry.crop
        return image


def reduced(pixels: Pixels, least_side: int) -> Pixels:
    """An image scaled down to what its crops need; volumes stay as they are."""
    is_volume = pixels.values.ndim == 3 and pixels.values.shape[-1] != 3
    return pixels if is_volume else pixels._replace(values=reduce_to(pixels.values, least_side))


class Collate:
    """Stacks samples and tokenises texts. A class, not a closure, so that it can be sent to data loader processes."""

    def __init__(self, plan: InputPlan, tokenizer: Tokenizer | None) -> None:
        self.plan, self.tokenizer = plan, tokenizer

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Make one batch.

        Raises:
            DataError: a record lacks a field, or has another size than was solved (MV512).
        """
        batch: Batch = {}
        ids = [sample.record_id for sample in samples]
        keys = dict.fromkeys(key for sample in samples for key in sample.values)
        columns = {key: [sample.values.get(key) for sample in samples] for key in keys}
        lengths: dict[str, int] = {}
        for (name, _), values in columns.items():
            for axis, length in ragged_lengths(self.plan.fields[name], values, self.plan.sizes[name]).items():
                lengths[axis] = max(length, lengths.get(axis, 1))
        for name, view in sorted(keys, key=lambda key: self.plan.may_lack.get(key[0]) is not None):
            found = self._collate(name, view, columns[name, view], ids, batch, lengths)
            wanted = {port: tensor for port, tensor in found.items() if self._is_wanted(port, view)}
            batch |= {str(PortKey(port, view)): tensor for port, tensor in wanted.items()}
        for port in samples[0].extra:
            batch[port] = torch.stack([sample.extra[port] for sample in samples])
        if "text" in self.plan.may_lack:
            batch["text_is_known"] = torch.tensor([sample.values["text", CLEAN] is not None for sample in samples])
        batch["record_index"] = torch.tensor([sample.row for sample in samples])
        return batch

    def _collate(
        self, name: str, view: str, values: Sequence[Any], ids: Sequence[str], batch: Batch, lengths: Mapping[str, int]
    ) -> dict[str, Tensor]:
        field, lacks = self.plan.fields[name], name in self.plan.may_lack
        instead = self.plan.may_lack.get(name)
        stand_in = batch.get(str(PortKey(instead, view)), batch.get(instead)) if instead is not None else None
        if field.is_constant:
            values = values[:1]
        return collate_field(
            name,
            field,
            values,
            self.plan.sizes[name],
            may_lack=lacks,
            instead=stand_in,
            tokenizer=self.tokenizer,
            record_ids=ids[: len(values)],
            lengths=lengths,
        )

    def _is_wanted(self, port: str, view: str) -> bool:
        return str(PortKey(port, view)) in self.plan.ports or (view == CLEAN and port in ALWAYS)
