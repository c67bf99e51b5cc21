"""A user's own manifest: what is accepted, and the exact messages for what is not. Images are real radiographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medvlp_open_cxr.manifest import DATA, read_rows
from medvlp_standard.manifest import SHOWN_PROBLEMS, ManifestSource
from medvlp_standard.specs.data import ManifestSpec
from PIL import Image

from medvlp_core.data.images import as_float, read_gray
from medvlp_core.errors import DataError

RADIOGRAPH = DATA / read_rows()[0]["image"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one radiograph as JPEG, 8-bit PNG and 16-bit PNG."""
    (tmp_path / "films").mkdir()
    gray = read_gray(RADIOGRAPH)
    (tmp_path / "films" / "a.jpg").write_bytes(RADIOGRAPH.read_bytes())
    Image.fromarray(gray).save(tmp_path / "films" / "b.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "films" / "c.png")
    return tmp_path


def load(path: Path, content: str | list[dict[str, Any]], **parameters: Any) -> ManifestSource:
    if not isinstance(content, str):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode("utf-8"))
    return ManifestSource(ManifestSpec(path=str(path), **parameters), {})


def complaint(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


CSV = """\
image,text,split,id,patient_id,label_Pneumonia,label_Edema
films/a.jpg,"Clear lungs, no ""acute"" finding.",train,s1,p1,0,
films/b.png,"Edema.
Small effusion.",val,s2,p2,,1
films/c.png,Pneumonia.,train,s3,p1,1.0,0
"""


def test_csv_with_every_column(folder: Path) -> None:
    source = load(folder / "studies.csv", CSV)
    assert source.splits() == ("train", "val")
    first, third = source.records("train")
    (second,) = source.records("val")
    assert (first.id, first.text, first.patient_id) == ("s1", 'Clear lungs, no "acute" finding.', "p1")
    assert second.text == "Edema.\nSmall effusion."
    assert [record.labels for record in (first, second, third)] == [{"Pneumonia": 0}, {"Edema": 1}, {"Pneumonia": 1, "Edema": 0}]
    assert first.text_kind == "report"


def test_jpeg_8_bit_and_16_bit_png_show_the_same_radiograph(folder: Path) -> None:
    source = load(folder / "studies.csv", CSV)
    jpeg, png16 = (as_float(read_gray(record.image_path)) for record in source.records("train"))
    png8 = as_float(read_gray(source.records("val")[0].image_path))
    np.testing.assert_array_equal(jpeg, png8)
    np.testing.assert_allclose(png8, png16, atol=1e-6)


def test_jsonl_gives_the_same_records_as_csv(folder: Path) -> None:
    rows = [
        {
            "image": "films/a.jpg",
            "text": 'Clear lungs, no "acute" finding.',
            "split": "train",
            "id": "s1",
            "patient_id": "p1",
            "labels": {"Pneumonia": 0, "Edema": None},
        },
        {
            "image": "films/b.png",
            "text": "Edema.\nSmall effusion.",
            "split": "val",
            "id": "s2",
            "patient_id": "p2",
            "label_Edema": True,
        },
        {
            "image": "films/c.png",
            "text": "Pneumonia.",
            "split": "train",
            "id": "s3",
            "patient_id": "p1",
            "labels": {"Pneumonia": 1, "Edema": 0},
        },
    ]
    table, lines = load(folder / "studies.csv", CSV), load(folder / "studies.jsonl", rows)
    for split in ("train", "val"):
        assert table.records(split) == lines.records(split)
    assert table.fingerprint() == lines.fingerprint()
    rows[0]["labels"]["Edema"] = 1
    assert load(folder / "studies.jsonl", rows).fingerprint() != table.fingerprint()


def test_spreadsheet_habits_do_no_harm(folder: Path) -> None:
    content = "\ufeff" + CSV.replace("\n", "\r\n").replace("Pneumonia.,", " Pneumonia. \u2028,") + "\r\n\r\n"
    source = load(folder / "studies.csv", content)
    assert source.records("train")[1].text == "Pneumonia."
    assert len(source.records("train")) == 2


def test_findings_and_impression_are_joined(folder: Path) -> None:
    content = "image,findings,impression,split\nfilms/a.jpg,Opacity.,Pneumonia.,train\nfilms/b.png,,Normal.,train\n"
    source = load(folder / "studies.csv", content)
    assert [record.text for record in source.records("train")] == ["Opacity. Pneumonia.", "Normal."]
    assert [record.id for record in source.records("train")] == ["films/a.jpg", "films/b.png"]
    parts = {"findings_column": "impression", "impression_column": "findings"}
    assert load(folder / "studies.csv", content, **parts).records("train")[0].text == "Pneumonia. Opacity."
    with_text = content.replace("impression,split", "text,split")
    assert load(folder / "studies.csv", with_text).records("train")[0].text == "Pneumonia."


def test_columns_of_other_names(folder: Path) -> None:
    content = "dicom,film,report,part,Pneumonia,Edema,subject\n1,films/a.jpg,Clear.,development,0,1,9\n"
    source = load(
        folder / "studies.csv",
        content,
        image_column="film",
        text_column="report",
        split_column="part",
        id_column="dicom",
        patient_column="subject",
        label_columns=("Pneumonia",),
        text_kind="clinical_note",
    )
    (record,) = source.records("development")
    assert (record.id, record.patient_id, record.labels, record.text_kind) == ("1", "9", {"Pneumonia": 0}, "clinical_note")


def test_relative_and_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other_folder = tmp_path_factory.mktemp("other_folder") / "studies.csv"
    content = "image,text,split\na.jpg,Clear.,train\n"
    assert load(other_folder, content, image_root=str(folder / "films")).records("train")[0].image_path.is_file()
    absolute = f"image,text,split\n{folder / 'films' / 'a.jpg'},Clear.,train\n"
    assert load(other_folder, absolute, image_root="ignored").records("train")[0].image_path.is_file()
    load(folder / "studies.csv", CSV)
    monkeypatch.chdir(folder.parent)
    relative = ManifestSpec(path=f"{folder.name}/studies.csv")
    assert ManifestSource(relative, {}).records("train")[0].image_path.is_file()


def test_images_without_texts(folder: Path) -> None:
    source = load(folder / "studies.csv", "image,split\nfilms/a.jpg,train\n", text_kind="none")
    assert source.records("train")[0].text == ""
    assert source.records("train")[0].text_kind == "none"


def test_usual_splits_come_first_and_unknown_ones_are_named(folder: Path) -> None:
    rows = [{"image": "films/a.jpg", "text": "Clear.", "split": split, "id": split} for split in ("outside", "test", "train")]
    source = load(folder / "studies.jsonl", rows)
    assert source.splits() == ("train", "test", "outside")
    assert complaint(lambda: source.records("val")) == (
        "[MV503] there is no split 'val'\n    hint: splits that exist: train (1), test (1), outside (1)"
    )


def test_all_problems_of_a_csv_at_once(folder: Path) -> None:
    path = folder / "studies.csv"
    content = """\
image,text,split,id,patient_id,label_Pneumonia
films/a.jpg,Clear.,train,s1,p1,yes
films/absent.png,Clear.,train,s2,p2,-1
films/b.png,"
",train,s1,p3,
films/c.png,Clear.,test,s4,p1,
,Clear.,,s5,,0
films/a.jpg,Clear, lungs.,train,s6,,0
films/a.jpg,Clear.,train,,,0
"""
    label_hint = "    hint: write 0 or 1, and leave unknown or uncertain ones blank"
    assert complaint(lambda: load(path, content)).splitlines() == [
        f"{path}:2:1 [MV502] label 'Pneumonia' is 'yes'",
        label_hint,
        f"{path}:3:1 [MV501] there is no image {folder}/films/absent.png",
        f"    hint: relative paths start from the manifest: {folder}",
        f"{path}:3:1 [MV502] label 'Pneumonia' is '-1'",
        label_hint,
        f"{path}:4:1 [MV504] the text is empty (column 'text')",
        "    hint: leave the row out, or set text_kind: none if there are only images",
        f"{path}:4:1 [MV502] id 's1' is already used in line 2",
        "    hint: ids must be unique",
        f"{path}:6:1 [MV502] patient 'p1' is in split 'test' here and in 'train' in line 2",
        "    hint: keep a patient in one split: held-out results would be too good otherwise",
        f"{path}:7:1 [MV502] column 'image' is blank",
        "    hint: every row needs an image",
        f"{path}:7:1 [MV502] column 'split' is blank",
        "    hint: write train, val or test",
        f"{path}:8:1 [MV502] expected 6 fields as in the header, found 7",
        "    hint: texts with commas or line breaks need quotes",
        f"{path}:9:1 [MV502] column 'id' is blank",
        "    hint: every row needs an id of its own",
    ]


def test_all_problems_of_a_jsonl_at_once(folder: Path) -> None:
    path = folder / "studies.jsonl"
    content = """\
{"image": "films/a.jpg", "text": "Clear.", "split": "train"}
{"image": "films/b.png", "text": "Clear." "split": "train"}

["films/c.png", "Clear."]
{"image": "films/a.jpg", "text": ["Clear."], "split": "train", "labels": ["Edema"]}
{"image": "films/c.png", "split": "train", "labels": {"Edema": 2}}
"""
    assert complaint(lambda: load(path, content)).splitlines() == [
        f"{path}:2:43 [MV502] this line is not JSON: Expecting ',' delimiter",
        "    hint: one object a line",
        f"{path}:4:1 [MV502] expected a JSON object, found list",
        '    hint: one object a line: {"image": ..., "text": ...}',
        f"{path}:5:1 [MV502] column 'text' is ['Clear.']",
        "    hint: write a string",
        f"{path}:5:1 [MV504] the text is empty (column 'text')",
        "    hint: leave the row out, or set text_kind: none if there are only images",
        f"{path}:5:1 [MV502] 'labels' is ['Edema']",
        '    hint: write an object: {"Pneumonia": 1, "Edema": 0}',
        f"{path}:5:1 [MV502] id 'films/a.jpg' is already used in line 1",
        "    hint: images with several texts need a column `id`",
        f"{path}:6:1 [MV504] the text is empty (column 'text')",
        "    hint: leave the row out, or set text_kind: none if there are only images",
        f"{path}:6:1 [MV502] label 'Edema' is 2",
        "    hint: write 0 or 1, and leave unknown or uncertain ones blank",
    ]


def test_files_that_do_not_start_like_an_image(folder: Path) -> None:
    path = folder / "studies.csv"
    (folder / "films" / "empty.png").touch()
    (folder / "films" / "one.dcm").write_bytes(bytes(128) + b"DICM")
    (folder / "films" / "two.dcm").write_bytes(bytes(128) + b"DICM")
    (folder / "films" / "cut.jpg").write_bytes(RADIOGRAPH.read_bytes()[:100])  # only noticed when it is read
    names = ("empty.png", "one.dcm", "cut.jpg", "two.dcm", "a.jpg")
    content = "image,text,split\n" + "".join(f"films/{name},Clear.,train\n" for name in names)
    start = "is neither PNG nor JPEG; it starts with b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'"
    assert complaint(lambda: load(path, content)).splitlines() == [
        f"{path}:2:1 [MV501] image {folder}/films/empty.png is empty (0 bytes)",
        "    hint: copy or download it again",
        f"{path}:3:1 [MV501] image {folder}/films/one.dcm {start}",
        "    hint: convert DICOM and other formats to PNG first",
        f"{path}:5:1 [MV501] image {folder}/films/two.dcm {start}",
    ]


def test_where_paths_start_is_said_once_and_in_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    text = complaint(lambda: load(Path("studies.csv"), "image,text,split\nx.png,Clear.,train\ny.png,Clear.,train\n"))
    assert text.count("there is no image") == 2
    assert text.count("hint:") == 1
    assert f"hint: relative paths start from the manifest: {folder}\n" in text
    rooted = complaint(lambda: load(Path("studies.csv"), "image,text,split\nx.png,Clear.,train\n", image_root="films"))
    assert rooted.endswith(f"hint: relative paths start from image_root: {folder / 'films'}")


def test_many_problems_are_counted(folder: Path) -> None:
    path = folder / "studies.csv"
    content = "image,text,split\n" + "".join(f"absent{i}.png,Clear.,train\n" for i in range(SHOWN_PROBLEMS + 5))
    text = complaint(lambda: load(path, content))
    assert text.count("[MV501]") == SHOWN_PROBLEMS
    assert text.splitlines()[-1] == f"{path} [MV502] and 5 more problems"
    exactly = "image,text,split\n" + "".join(f"absent{i}.png,Clear.,train\n" for i in range(SHOWN_PROBLEMS))
    assert "more problem" not in complaint(lambda: load(path, exactly))


def test_missing_columns_name_the_nearest(folder: Path) -> None:
    path = folder / "studies.csv"
    content = "imgae,report,Split\nfilms/a.jpg,Clear.,train\n"
    assert complaint(lambda: load(path, content, label_columns=("Edema",))).splitlines() == [
        f"{path}:1:1 [MV502] there is no column 'image' (image_column)",
        "    hint: did you mean 'imgae'? other columns: Split, report",
        f"{path}:1:1 [MV502] there is no column 'text' (text_column)",
        "    hint: columns: Split, imgae, report; nor is there 'findings' or 'impression'",
        f"{path}:1:1 [MV502] there is no column 'split' (split_column)",
        "    hint: did you mean 'Split'? other columns: imgae, report",
        f"{path}:1:1 [MV502] there is no column 'Edema' (label_columns)",
        "    hint: columns: Split, imgae, report",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "{path} [MV502] the manifest is empty\n    hint: the first line names the columns"),
        ("image,text,split\n", "{path} [MV502] the manifest has no rows\n    hint: one image-text pair a row"),
        (
            "image,text,text\nfilms/a.jpg,Clear.,train\n",
            "{path}:1:1 [MV502] column 'text' stands twice in the header\n    hint: rename one of the two",
        ),
        (
            "image;text;split\nfilms/a.jpg;Clear, no finding.;train\n",
            "{path}:1:1 [MV502] the header is a single column, 'image;text;split'\n    hint: it is separated by ';', use commas",
        ),
        (
            'image,text,split\nfilms/a.jpg,Clear.,train\nfilms/b.png,"Clear.,train\n',
            '{path}:3:1 [MV502] this is not CSV: unexpected end of data\n    hint: inside quotes a quote is written twice: ""',
        ),
    ],
    ids=["empty", "header only", "column twice", "semicolons", "quote left open"],
)
def test_files_that_are_no_table(folder: Path, content: str, expected: str) -> None:
    path = folder / "studies.csv"
    assert complaint(lambda: load(path, content)) == expected.format(path=path)


def test_files_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "studies.csv"
    path.write_bytes("image,text,split\nfilms/a.jpg,Größe normal.,train\n".encode("latin-1"))
    spec = ManifestSpec(path=str(path))
    assert complaint(lambda: ManifestSource(spec, {})) == (
        f"{path}:2:1 [MV502] the manifest is not UTF-8\n    hint: save it as 'CSV UTF-8'"
    )
    assert complaint(lambda: ManifestSource(ManifestSpec(path=str(folder / "none.csv")), {})) == (
        f"{folder / 'none.csv'} [MV502] there is no such manifest\n    hint: check `data.path`"
    )
    monkeypatch.chdir(folder)
    assert complaint(lambda: ManifestSource(ManifestSpec(path="none.csv"), {})) == (
        f"none.csv [MV502] there is no such manifest\n    hint: relative paths start from the working folder, {folder}"
    )
    (folder / "dir.csv").mkdir()
    assert "the manifest cannot be opened (" in complaint(lambda: ManifestSource(ManifestSpec(path="dir.csv"), {}))


def test_the_spec_knows_the_kind_of_file_by_its_ending() -> None:
    (problem,) = ManifestSpec(path="studies.xlsx").problems()
    assert problem == ("path", "path='studies.xlsx' is neither .csv nor .jsonl", "save the manifest as CSV, or as JSON lines")
    assert not list(ManifestSpec(path="STUDIES.CSV").problems())
    with pytest.raises(ValueError, match="must be one of"):
        ManifestSpec(path="studies.csv", text_kind="reports")


def test_the_example_of_the_guide(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    content = guide.partition("```csv\n")[2].partition("```")[0]
    monkeypatch.chdir(folder)
    source = load(Path("studies.csv"), content)
    assert [len(source.records(split)) for split in source.splits()] == [2, 1]
    Path("films/b.png").unlink()
    broken = content.replace("Interstitial edema.", "")
    assert f"```text\n{complaint(lambda: load(Path('studies.csv'), broken))}\n```".replace(str(folder), "/data/study") in guide
