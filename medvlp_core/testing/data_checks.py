"""Conformance of data sources: records that stay the same, ids, patients that are in one split, images that open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

from medvlp_core.data.fields import read_field
from medvlp_core.data.images import read_gray
from medvlp_core.data.records import DataSource, Record, fingerprint_records
from medvlp_core.errors import DataError
from medvlp_core.planning.fields import BUILT_IN
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import NotApplicable, check, expect
from medvlp_core.testing.other_process import ask_other_process
from medvlp_core.testing.subject import Example, Subject

#: Images that are opened of each split.
OPENED = 3
TEXT_KINDS = ("report", "clinical_note", "qa", "template", "none")
NO_SPLIT = "no_such_split"


def sources(subject: Subject) -> Iterator[tuple[Example, DataSource]]:
    """Every example, built."""
    for example in subject.examples:
        yield example, example.build()


def all_records(source: DataSource) -> Iterator[tuple[str, Record]]:
    """Every record with its split."""
    for split in source.splits():
        for record in source.records(split):
            yield split, record


@check("data", roles=(Role.DATA,))
def repeats_its_records(subject: Subject) -> None:
    """A split has the same records in the same order when it is asked again, and in another instance."""
    for example, source in sources(subject):
        other = example.build()
        splits = tuple(source.splits())
        expect(bool(splits), f"{example}: it has no split")
        expect(splits == tuple(other.splits()), f"{example}: another instance has the splits {other.splits()}, expected {splits}")
        for split in splits:
            first, again, of_other = (list(one.records(split)) for one in (source, source, other))
            expect(bool(first), f"{example}: the split {split!r} has no record")
            expect(
                _facts(first) == _facts(again),
                f"{example}: the split {split!r} has other records, or another order, the second time",
            )
            expect(
                _facts(first) == _facts(of_other),
                f"{example}: the split {split!r} has other records, or another order, in another instance",
            )


def _facts(records: list[Record]) -> list[tuple[Record, str]]:
    """What makes records equal. Arrays among their fields count by what the fingerprint says of them."""
    return [(attrs.evolve(record, fields={}), fingerprint_records({"": [record]})) for record in records]


@check("data", roles=(Role.DATA,))
def gives_the_fields_it_declares(subject: Subject) -> None:
    """Records have the fields that the contract declares, and no others; the first of every split can be read."""
    without = True
    for example, source in sources(subject):
        declared = {name: field for contract in example.contracts.values() for name, field in contract.fields.items()}
        without &= not declared
        readable = {**BUILT_IN, **declared}  # a record may give its image or text among the fields, too
        missing = set(declared)
        for split, record in all_records(source):
            unknown = sorted(set(record.fields) - set(readable))
            expect(
                not unknown,
                f"{example}: record {record.id!r} of {split!r} has {', '.join(unknown)}, which contract() does not declare",
            )
            missing -= {name for name, value in record.fields.items() if value is not None}
        expect(not missing, f"{example}: no record has the field {', '.join(sorted(missing))}")
        for split in source.splits():
            for record in list(source.records(split))[:OPENED]:
                for name, value in record.fields.items():
                    try:
                        read_field(name, readable[name], value, record_id=record.id)
                    except DataError as error:
                        expect(False, f"{example}: record {record.id!r} of {split!r}: {error.problems[0].text}")
    if without:
        raise NotApplicable("its records hold an image and a text alone")


@check("data", roles=(Role.DATA,))
def gives_sound_records(subject: Subject) -> None:
    """Ids and texts are strings, image paths paths, labels 0 or 1, and the kind of text is a known one."""
    for example, source in sources(subject):
        for split, record in all_records(source):
            who = f"{example}: record {record.id!r} of {split!r}"
            expect(isinstance(record.id, str) and bool(record.id), f"{who}: an id is a string that is not empty")
            expect(isinstance(record.text, str), f"{who}: the text is {type(record.text).__name__}, expected str")
            is_path = record.image_path is None or isinstance(record.image_path, Path)
            expect(is_path, f"{who}: image_path is {type(record.image_path).__name__}, expected Path")
            wrong = {name: value for name, value in record.labels.items() if type(value) is not int or value not in (0, 1)}
            expect(not wrong, f"{who}: labels {wrong}, expected the integers 0 and 1; leave an unknown label out")
            is_known = record.text_kind in TEXT_KINDS
            expect(is_known, f"{who}: text_kind is {record.text_kind!r}, expected one of {', '.join(TEXT_KINDS)}")


@check("data", roles=(Role.DATA,))
def has_unique_ids(subject: Subject) -> None:
    """No id stands twice, over all splits."""
    for example, source in sources(subject):
        seen: dict[str, str] = {}
        for split, record in all_records(source):
            is_new = record.id not in seen
            expect(is_new, f"{example}: the id {record.id!r} of {split!r} is already used in {seen.get(record.id)!r}")
            seen[record.id] = split


@check("data", roles=(Role.DATA,))
def keeps_patients_apart(subject: Subject) -> None:
    """No patient is in two splits: held-out results would be too good."""
    for example, source in sources(subject):
        seen: dict[str, str] = {}
        for split, record in all_records(source):
            if record.patient_id is not None:
                first = seen.setdefault(record.patient_id, split)
                expect(first == split, f"{example}: the patient {record.patient_id!r} is in {first!r} and in {split!r}")


@check("data", roles=(Role.DATA,))
def has_images_that_open(subject: Subject) -> None:
    """The first images of every split exist and can be read."""
    for example, source in sources(subject):
        for split in source.splits():
            for record in list(source.records(split))[:OPENED]:
                if record.image_path is None:
                    continue
                try:
                    read_gray(record.image_path)
                except DataError as error:
                    expect(False, f"{example}: record {record.id!r} of {split!r}: {error.problems[0].text}")


@check("data", roles=(Role.DATA,))
def refuses_an_unknown_split(subject: Subject) -> None:
    """Asked for a split that it does not have, it raises a DataError (MV503)."""
    for example, source in sources(subject):
        wanted = "expected a DataError (MV503)"
        try:
            found = source.records(NO_SPLIT)
        except DataError as error:
            codes = [problem.code for problem in error.problems]
            expect(codes == ["MV503"], f"{example}: for an unknown split it raised {', '.join(codes) or 'no code'}, {wanted}")
        except Exception as error:
            expect(False, f"{example}: for an unknown split it raised {type(error).__name__}: {error}; {wanted}")
        else:
            expect(False, f"{example}: for an unknown split it gave {len(found)} records, {wanted}")


@check("data", roles=(Role.DATA,))
def has_a_stable_fingerprint(subject: Subject) -> None:
    """The fingerprint is the same in another instance and in another process, and differs where the records do."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for example, source in sources(subject):
        first, second = source.fingerprint(), example.build().fingerprint()
        expect(isinstance(first, str) and bool(first), f"{example}: the fingerprint is {first!r}, expected a hash as a string")
        expect(first == second, f"{example}: two instances have the fingerprints {first} and {second}")
        other = ask_other_process("fingerprint", example)
        expect(first == other, f"{example}: another process has the fingerprint {other}, expected {first}")
        rows = [(split, record.id, record.text) for split, record in all_records(source)]
        expect(found.setdefault(first, rows) == rows, f"{example}: another example has other records and the same fingerprint")
