"""A bundle whose records have fields of every kind, on real radiographs, and a head that keeps what it is given."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import torch
from medvlp_open_cxr.source import OpenCxrPairs
from medvlp_open_cxr.specs import OpenCxrPairsSpec
from torch import Tensor, nn

from medvlp_core import ComponentSpec, Contract, Field, Role, component, param
from medvlp_core.data import Record, RecordsBySplit
from medvlp_core.data.images import read_gray
from medvlp_core.nn import Decoder, Output
from medvlp_core.plugins.host import PluginHost, load_plugins

SPLITS = {"train": 12, "val": 6}

FIELDS = {
    "heat": Field("B Hh Wh", kind="map", on="image"),
    "lung": Field("B Hm Wm", kind="mask", on="image"),
    "found": Field("B K 4", kind="boxes", on="image"),
    "labels": Field("B 3", kind="vector"),
    "prior": Field("B C H W", kind="image"),
    "findings": Field("B Lf", kind="text"),
    "terms": Field("B S 2", kind="spans", on="text"),
    "prompts": Field("4 6", kind="vector"),
}


@component("toy.fields", role=Role.DATA, build="toy_fields:ToyFields")
@attrs.frozen(kw_only=True)
class ToyFieldsSpec(ComponentSpec):
    """Radiographs with everything; every third one lacks what ``lacking`` names."""

    lacking: tuple[str, ...] = param((), help="fields that every third record lacks; image and text too")

    def contract(self) -> Contract:
        """Fields of every kind."""
        return Contract(fields=FIELDS)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One."""
        return (cls(), cls())


class ToyFields(RecordsBySplit):
    """Heat maps are the images themselves, masks their bright pixels, boxes bound these."""

    def __init__(self, spec: ToyFieldsSpec, dims: Any) -> None:
        source = OpenCxrPairs(OpenCxrPairsSpec(), {})
        records = [record for record in source.records("train") if record.text.strip()]
        self.spec, self._records, start = spec, {}, 0
        for split, count in SPLITS.items():
            self._records[split] = [self.record(number, one) for number, one in enumerate(records[start : start + count])]
            start += count

    def record(self, number: int, record: Record) -> Record:
        values = read_gray(record.image_path).astype(np.float32)
        gray = values / (255.0 if values.max() > 1 else 1.0)
        bright = gray > np.quantile(gray, 0.9)
        rows, columns = np.nonzero(bright)
        box = [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]
        fields: dict[str, Any] = {
            "heat": gray,
            "lung": bright,
            "found": [box] * (1 + number % 3),
            "labels": [1.0, 0.0, None if number % 2 else 1.0] if "label" in self.spec.lacking else [1.0, 0.0, number % 2],
            "prior": record.image_path,
            "findings": record.text[: 40 + number],
            "terms": [[0, 5]] * (1 + number % 2),
            "prompts": np.arange(24, dtype=np.float32).reshape(4, 6),
        }
        lacks = self.spec.lacking if number % 3 == 2 else ()
        fields = {name: None if name in lacks else value for name, value in fields.items()}
        return attrs.evolve(
            record,
            fields=fields,
            image_path=None if "image" in lacks else record.image_path,
            text="" if "text" in lacks else record.text,
        )


#: What the last head was given.
SEEN: dict[str, Tensor] = {}


@component("toy.keeper", role=Role.DECODER, build="toy_fields:Keeper")
@attrs.frozen(kw_only=True)
class KeeperSpec(ComponentSpec):
    """Needs the ports that it is told, in short form (``heat: B 16 16``), and keeps what it is given."""

    takes: dict[str, str] = param(help="ports and their shapes")

    def contract(self) -> Contract:
        """What it is told."""
        return Contract(needs=dict(self.takes), losses=("sum",))

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One."""
        return (cls(takes={"image": "B 1 16 16"}), cls(takes={"image": "B 1 16 16"}))


class Keeper(Decoder):
    """The mean of all that it is given, times a weight."""

    def __init__(self, spec: KeeperSpec, dims: Any) -> None:
        super().__init__(spec, dims)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, **given: Tensor) -> Output:
        SEEN.clear()
        SEEN.update(given)
        return Output(losses={"sum": self.scale * sum(value.float().mean() for value in given.values())})


def toy_host() -> PluginHost:
    """The bundles here with these two."""
    host = load_plugins()
    for kind in (ToyFieldsSpec, ToyStudiesSpec, KeeperSpec):
        if kind.declaration.name not in host.components:
            host.components.add(kind)
    return host


@component("toy.studies", role=Role.DATA, build="toy_fields:ToyStudies")
@attrs.frozen(kw_only=True)
class ToyStudiesSpec(ComponentSpec):
    """Studies of one to three radiographs, and their sentences."""

    def contract(self) -> Contract:
        """Images and sentences, as many as there are."""
        return Contract(fields={"images": Field("B V C H W", kind="image"), "sentences": Field("B S L", kind="text")})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One."""
        return (cls(), cls())


class ToyStudies(ToyFields):
    """The images of neighbouring records, and the parts of a report between full stops."""

    def __init__(self, spec: ToyStudiesSpec, dims: Any) -> None:
        super().__init__(ToyFieldsSpec(), dims)

    def record(self, number: int, record: Record) -> Record:
        sentences = [one.strip() for one in record.text.split(".") if one.strip()][: 1 + number % 4]
        return attrs.evolve(record, fields={"images": [record.image_path] * (1 + number % 3), "sentences": sentences})
