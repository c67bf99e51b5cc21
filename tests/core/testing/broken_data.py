"""Data sources that are wrong in one way each."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from broken_bundle import broken

from medvlp_core.data.records import Record
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.fields import Field
from medvlp_core.testing.stub_components.data import Pairs
from medvlp_core.testing.stub_components.specs import PairsSpec


class Changed(Pairs):
    """Changes every record in one way."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {}

    def records(self, split: str) -> Sequence[Record]:
        return [attrs.evolve(record, **self.change(record, split)) for record in super().records(split)]


@broken(PairsSpec, caught_by="repeats_its_records", says="'train' has other records, or another order, the second time")
class Shuffled(Pairs):
    """Every second call has another order."""

    calls = 0

    def records(self, split: str) -> Sequence[Record]:
        Shuffled.calls += 1
        return super().records(split)[:: 1 if self.calls % 2 else -1]


@broken(PairsSpec, caught_by="repeats_its_records", says="another order, in another instance")
class ShuffledOnce(Pairs):
    """Every second instance has another order."""

    instances = 0

    def __init__(self, spec: Any, dims: Any) -> None:
        super().__init__(spec, dims)
        ShuffledOnce.instances += 1
        self.step = 1 if self.instances % 2 else -1

    def records(self, split: str) -> Sequence[Record]:
        return super().records(split)[:: self.step]


@broken(PairsSpec, caught_by="gives_sound_records", says="labels {'Pneumonia': True}, expected the integers 0 and 1")
class BoolLabels(Changed):
    """A label is True."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"labels": {"Pneumonia": True}}


@broken(PairsSpec, caught_by="gives_sound_records", says="text_kind is 'novel', expected one of report, clinical_note")
class StrangeTexts(Changed):
    """Texts of a kind that nobody knows."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"text_kind": "novel"}


@broken(PairsSpec, caught_by="gives_sound_records", says="image_path is str, expected Path")
class StringPaths(Changed):
    """Paths are strings."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"image_path": str(record.image_path)}


@broken(PairsSpec, caught_by="has_unique_ids", says="the id '000' of 'val' is already used in 'train'")
class IdsBySplit(Changed):
    """Ids count from 0 in every split."""

    def records(self, split: str) -> Sequence[Record]:
        return [attrs.evolve(one, id=f"{at:03d}") for at, one in enumerate(super().records(split))]


@broken(PairsSpec, caught_by="keeps_patients_apart", says="the patient 'unknown' is in 'train' and in 'val'")
class OnePatient(Changed):
    """All images are of one patient."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"patient_id": "unknown"}


@broken(PairsSpec, caught_by="has_images_that_open", says="it does not exist")
class GoneImages(Changed):
    """Images of the test split are missing."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"image_path": record.image_path.with_suffix(".gone")} if split == "test" else {}


@broken(PairsSpec, caught_by="refuses_an_unknown_split", says="it gave 0 records, expected a DataError (MV503)")
class EmptySplits(Pairs):
    """Any split exists."""

    def records(self, split: str) -> Sequence[Record]:
        return super().records(split) if split in self.splits() else []


@broken(PairsSpec, caught_by="refuses_an_unknown_split", says="it raised KeyError: 'no_such_split'; expected a DataError (MV503)")
class NoSplits(Pairs):
    """An unknown split is an error of Python."""

    def records(self, split: str) -> Sequence[Record]:
        return self._records[split]


@broken(PairsSpec, caught_by="has_a_stable_fingerprint", says="another process has the fingerprint")
class HashedFingerprint(Pairs):
    """The fingerprint hangs on the hash seed."""

    def fingerprint(self) -> str:
        return str(hash("".join(record.text for split in self.splits() for record in self.records(split))))


@broken(PairsSpec, caught_by="has_a_stable_fingerprint", says="two instances have the fingerprints")
class CountedFingerprint(Pairs):
    """The fingerprint is another in every instance."""

    count = 0

    def fingerprint(self) -> str:
        CountedFingerprint.count += 1
        return str(self.count)


@broken(PairsSpec, caught_by="has_a_stable_fingerprint", says="another example has other records and the same fingerprint")
class ConstantFingerprint(Pairs):
    """The fingerprint says nothing."""

    def fingerprint(self) -> str:
        return "data"


@broken(PairsSpec, caught_by="has_a_stable_fingerprint", says="in another process: RuntimeError: only at home")
class HomeBound(Pairs):
    """It cannot be built elsewhere."""

    def fingerprint(self) -> str:
        if "pytest" not in sys.modules:
            raise RuntimeError("only at home")
        return super().fingerprint()


@broken(PairsSpec, caught_by="has_a_stable_fingerprint", says="building it ended another process")
class EndsTheProcess(Pairs):
    """It takes the process with it that builds it."""

    def fingerprint(self) -> str:
        if "pytest" not in sys.modules:
            os._exit(3)
        return super().fingerprint()


@broken(PairsSpec, caught_by="gives_the_fields_it_declares", says="has labels, which contract() does not declare")
class UndeclaredField(Changed):
    """A field that nobody was told of."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"fields": {"labels": [1.0]}}


class WithFieldsSpec(PairsSpec):
    """Declares a map and a vector."""

    def contract(self) -> Contract:
        return Contract(fields={"heat": Field("B Hh Wh", kind="map", on="image"), "labels": Field("B 2", kind="vector")})


class WithFields(Changed):
    """An array and a list."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"fields": {"heat": np.ones((8, 8), dtype=np.float32), "labels": [1.0, None]}}


@broken(WithFieldsSpec, caught_by="gives_the_fields_it_declares", says="no record has the field heat")
class LacksAField(WithFields):
    """Has no map anywhere."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"fields": {"labels": [1.0, None], "heat": None}}


@broken(WithFieldsSpec, caught_by="gives_the_fields_it_declares", says="labels")
class TooLongAVector(WithFields):
    """Three numbers where two are declared."""

    def change(self, record: Record, split: str) -> dict[str, Any]:
        return {"fields": {**super().change(record, split)["fields"], "labels": [1.0, 0.0, 1.0]}}


@broken(WithFieldsSpec)
class FieldsAsDeclared(WithFields):
    """Has both, in every record."""
