"""The shipped sample set is complete, openly licensed, patient-disjoint and small."""

from __future__ import annotations

import csv
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from medvlp_open_cxr.manifest import DATA, SOURCES, SPLITS, TEXT_ORIGINS, describe, read_rows
from medvlp_open_cxr.source import OpenCxrPairs
from medvlp_open_cxr.specs import OpenCxrPairsSpec
from PIL import Image

from medvlp_core.data.records import DataSource
from medvlp_core.errors import DataError

BUNDLE = Path(__file__).parents[2] / "plugins" / "open_cxr"

OPEN_LICENCES = {"NIH-unrestricted", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY", "CC-BY-SA"}


def build(**parameters: Any) -> OpenCxrPairs:
    return OpenCxrPairs(OpenCxrPairsSpec(**parameters), {})


def test_counts_of_each_source_and_split() -> None:
    assert Counter((row["source"], row["split"]) for row in read_rows()) == {
        ("nih", "train"): 695,
        ("nih", "val"): 101,
        ("nih", "test"): 204,
        ("covid", "train"): 6,
        ("covid", "val"): 3,
        ("vqarad", "train"): 74,
        ("vqarad", "val"): 11,
        ("vqarad", "test"): 22,
        ("hannover", "train"): 175,
        ("hannover", "val"): 27,
        ("hannover", "test"): 51,
    }


@pytest.mark.parametrize("field", ["patient_id", "group_id", "sha256"])
def test_no_patient_and_no_image_is_in_two_splits(field: str) -> None:
    splits = defaultdict(set)
    for row in read_rows():
        splits[row[field]].add(row["split"])
    assert [name for name, found in splits.items() if len(found) > 1] == []


def test_everything_is_openly_licensed() -> None:
    rows = read_rows()
    assert {row["license_tier"] for row in rows} == {"open"}
    assert {row["license"] for row in rows} == OPEN_LICENCES
    assert all(row["license_url"].startswith("https://") and row["source_url"] and row["attribution"] for row in rows)
    with (DATA / "LICENSES.csv").open(encoding="utf-8", newline="") as file:
        table = {line["license"]: line for line in csv.DictReader(file)}
    assert set(table) == OPEN_LICENCES
    assert {(line["tier"], line["commercial_use"], line["changes_allowed"]) for line in table.values()} == {("open", "yes", "yes")}


def test_nothing_of_the_non_commercial_part_is_shipped() -> None:
    assert all(row["image"].startswith("images/") for row in read_rows())
    # 92 of the 101 images of this source are non-commercial; nine are not
    assert sum(row["source"] == "covid" for row in read_rows()) == 9
    assert not any("nc" in path.relative_to(DATA).parts for path in DATA.rglob("*"))


def test_folder_and_manifest_hold_the_same_files() -> None:
    files = {str(path.relative_to(DATA)) for path in (DATA / "images").rglob("*") if path.is_file()}
    assert files == {row["image"] for row in read_rows()}
    assert len({row["id"] for row in read_rows()}) == len(read_rows()) == 1369


def test_the_data_stay_under_25_megabytes() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 25e6


def test_images_are_small_8_bit_gray_and_unchanged() -> None:
    for row in read_rows():
        path = DATA / row["image"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"], row["id"]
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "L")
            assert max(image.size) <= 352
            assert not image.getexif()
    for row in read_rows()[::50]:
        with Image.open(DATA / row["image"]) as image:
            low, high = image.getextrema()
            assert high - low > 100


def test_labels_and_texts_have_their_declared_form() -> None:
    for row in read_rows():
        assert set(row["labels"].values()) <= {0, 1}
        assert row["source"] in SOURCES
        assert row["split"] in SPLITS
        assert (row["text_kind"] == "none") == (row["text"].strip() == "")
    kinds = {source: {row["text_kind"] for row in read_rows() if row["source"] == source} for source in SOURCES}
    assert kinds == {"nih": {"template"}, "covid": {"clinical_note"}, "vqarad": {"qa"}, "hannover": {"none"}}
    assert set(TEXT_ORIGINS) == {"template", "clinical_note", "qa", "none"}


def test_source_gives_the_chosen_collections() -> None:
    source = build()
    assert isinstance(source, DataSource)
    assert source.splits() == ("train", "val", "test")
    assert [len(source.records(split)) for split in SPLITS] == [775, 115, 226]
    assert [len(build(sources=("hannover",)).records(split)) for split in SPLITS] == [175, 27, 51]
    record = build(sources=("nih",)).records("train")[0]
    assert record.id == "nih_00000061_012"
    assert record.labels["Edema"] == 1
    assert record.labels["Mass"] == 0
    assert record.patient_id == "nih_00061"
    assert record.text_kind == "template"
    assert record.image_path.is_file()


def test_sections_cut_template_texts_only() -> None:
    whole, findings, impression = (build(sections=name).records("val") for name in ("all", "findings", "impression"))
    for one, two, three in zip(whole, findings, impression, strict=True):
        if one.text_kind == "template":
            assert one.text == f"FINDINGS: {two.text} IMPRESSION: {three.text}"
        else:
            assert one.text == two.text == three.text


def test_unknown_split() -> None:
    with pytest.raises(DataError) as caught:
        build(sources=("covid",)).records("dev")
    assert str(caught.value) == "[MV503] there is no split 'dev'\n    hint: splits that exist: train (6), val (3), test (0)"


def test_fingerprint_follows_the_texts_and_is_repeatable() -> None:
    assert build().fingerprint() == build().fingerprint()
    prints = {build().fingerprint(), build(sections="findings").fingerprint(), build(sources=("nih",)).fingerprint()}
    assert len(prints) == 3


def test_spec_refuses_no_source_and_twice_the_same() -> None:
    assert [field for field, _, _ in OpenCxrPairsSpec(sources=()).problems()] == ["sources"]
    assert [field for field, _, _ in OpenCxrPairsSpec(sources=("nih", "nih")).problems()] == ["sources"]
    with pytest.raises(ValueError, match="must be one of"):
        OpenCxrPairsSpec(sources=("mimic",))


def test_about_names_texts_licences_and_warnings_without_torch() -> None:
    code = "import sys, medvlp_open_cxr.plugin as p; print(p.SPECS[0].about()); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for part in (
        "1,369 images of 872 patients",
        "train            950 images,   775 with text",
        "template       1,000 made from labels",
        "qa               107 written by clinicians",
        "clinical_note      9 written by clinicians",
        "NIH-unrestricted   1,000 https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "CC-BY-SA               1 ",
        "NIH Clinical Center; Wang et al.",
        "Not for diagnosis",
        "The test split holds no clinical note.",
    ):
        assert part in result.stdout
    assert not any(row["text_kind"] == "clinical_note" and row["split"] == "test" for row in read_rows())


def test_the_guide_shows_the_counts_of_the_command() -> None:
    guide = (BUNDLE.parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    assert f"```text\n{describe().partition(chr(10) + chr(10) + 'warnings:')[0]}\n```" in guide


def test_a_wheel_holds_the_data(tmp_path: Path) -> None:
    copy = tmp_path / "open_cxr"
    # without *.egg-info: a file list of an earlier build would shadow a glob that is missing
    shutil.copytree(BUNDLE, copy, ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    code = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (wheel,) = copy.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("medvlp_open_cxr/")}
    shipped = {f"medvlp_open_cxr/data/{path.relative_to(DATA)}" for path in DATA.rglob("*") if path.is_file()}
    assert shipped <= names
    assert {"medvlp_open_cxr/plugin.py", "medvlp_open_cxr/py.typed", "medvlp_open_cxr/data/DATA.md"} <= names
    assert wheel.stat().st_size < 25e6
