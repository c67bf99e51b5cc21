"""The packages: ranges with lower bounds, one tested set of versions, and wheels that hold all that they need."""

from __future__ import annotations

import email
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
PROJECTS: dict[Path, dict[str, Any]] = {
    folder: tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")) for folder in FOLDERS
}
BY_NAME = {project["project"]["name"]: folder for folder, project in PROJECTS.items()}
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if not line.startswith("#")]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = ("linux", "darwin")


def requirements(folder: Path) -> Iterator[Requirement]:
    """All that a package asks for, extras and its build too."""
    project = PROJECTS[folder]
    extras = project["project"].get("optional-dependencies", {}).values()
    for texts in (project["build-system"]["requires"], project["project"].get("dependencies", []), *extras):
        yield from map(Requirement, texts)


def pinned(python: str, platform: str) -> dict[str, list[str]]:
    """The versions that constraints.txt gives to every package on one Python and system."""
    system = {"linux": "Linux", "darwin": "Darwin"}[platform]
    where = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": platform,
        "platform_system": system,
        "platform_machine": "x86_64" if platform == "linux" else "arm64",
    }
    found: dict[str, list[str]] = {}
    for pin in PINS:
        if pin.marker is None or pin.marker.evaluate(where):
            [specifier] = pin.specifier
            found.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    return found


# ------------------------------------------------------------------------------------------------------------------ versions


def test_constraints_are_plain_pins() -> None:
    for line, pin in zip(LINES[1:], PINS, strict=True):
        assert [specifier.operator for specifier in pin.specifier] == ["=="], line
        assert not pin.url, f"{line}: a constraint names no host"
        assert not pin.extras, line
        [specifier] = pin.specifier
        assert Version(specifier.version).local is None, f"{line}: a local version is on no public index"
        assert not pin.name.startswith("medvlp"), line


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_everything_once_within_the_ranges(python: str, platform: str) -> None:
    pins = pinned(python, platform)
    assert not {name: versions for name, versions in pins.items() if len(versions) > 1}
    for folder in FOLDERS:
        for requirement in requirements(folder):
            if requirement.name not in BY_NAME and not requirement.name.startswith("medvlp-"):
                [version] = pins[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version), f"{folder.name}: {requirement}, constraints.txt has {version}"


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_ranges_have_a_lower_bound_and_no_upper_one(name: str) -> None:
    for requirement in requirements(BY_NAME[name]):
        assert [specifier.operator for specifier in requirement.specifier] == [">="], f"{name}: {requirement}"


def test_the_suite_brings_every_package() -> None:
    wanted = {requirement.name for requirement in requirements(BY_NAME["medvlp-suite"])} - {"setuptools"}
    assert wanted >= BY_NAME.keys() - {"medvlp-suite"}


def test_bundles_name_the_bundles_that_their_presets_need() -> None:
    presets = (ROOT / "plugins" / "mpma" / "medvlp_mpma" / "presets" / "base.yaml").read_text(encoding="utf-8")
    assert "use: standard." in presets
    assert "medvlp-standard" in {requirement.name for requirement in requirements(BY_NAME["medvlp-mpma"])}


# -------------------------------------------------------------------------------------------------------------------- wheels


def packages(folder: Path) -> list[Path]:
    """The package that a distribution installs; the suite has none."""
    return sorted(path.parent for path in folder.glob("medvlp_*/__init__.py"))


def build_wheel(folder: Path, scratch: Path) -> ZipFile:
    """A wheel, built beside links to its sources: a build leaves files there, and takes in what an earlier one left."""
    source, out = scratch / "source", scratch / "wheels"
    source.mkdir()
    for path in [folder / "pyproject.toml", folder / "README.md", folder / "LICENSE", *packages(folder)]:
        (source / path.name).symlink_to(path)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\nhint: pip install 'medvlp-core[tests]' brings a setuptools that can build it"
    [path] = out.glob("*.whl")
    return ZipFile(path)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_a_wheel_is_complete(name: str, tmp_path: Path) -> None:
    folder = BY_NAME[name]
    archive = build_wheel(folder, tmp_path)
    holds_the_whole_package_and_nothing_else(folder, archive)
    says_what_it_is(folder, archive)
    has_its_licences(folder, archive)
    has_its_entry_points(folder, archive)


def holds_the_whole_package_and_nothing_else(folder: Path, archive: ZipFile) -> None:
    files = [path for package in packages(folder) for path in package.rglob("*") if path.is_file()]
    expected = {path.relative_to(folder).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected
    assert all(f"{package.name}/py.typed" in expected for package in packages(folder))


def says_what_it_is(folder: Path, archive: ZipFile) -> None:
    [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    fields = email.message_from_bytes(archive.read(name))
    assert fields["License-Expression"] == PROJECTS[folder]["project"]["license"]
    assert fields.get_payload() == (folder / "README.md").read_text(encoding="utf-8")
    assert fields["Requires-Python"] == ">=3.10"
    assert len(fields["Summary"]) > 20
    assert {f"Programming Language :: Python :: {python}" for python in PYTHONS} <= set(fields.get_all("Classifier"))


def has_its_licences(folder: Path, archive: ZipFile) -> None:
    licences = {name.partition(".dist-info/licenses/")[2]: name for name in archive.namelist() if ".dist-info/licenses/" in name}
    assert licences.keys() == set(PROJECTS[folder]["project"]["license-files"])
    assert archive.read(licences["LICENSE"]) == (ROOT / "LICENSE").read_bytes()


def has_its_entry_points(folder: Path, archive: ZipFile) -> None:
    project = PROJECTS[folder]["project"]
    wanted = {"console_scripts": project.get("scripts", {})} | project.get("entry-points", {})
    lines = {f"{name} = {target}" for group in wanted.values() for name, target in group.items()}
    found = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/entry_points.txt")]
    assert {line for text in found for line in text.splitlines() if " = " in line} == lines
    assert bool(lines) == bool(packages(folder))


def test_the_data_name_their_licences() -> None:
    folder = BY_NAME["medvlp-open-cxr"]
    rows = (folder / "medvlp_open_cxr" / "data" / "LICENSES.csv").read_text(encoding="utf-8").splitlines()[1:]
    names = {re.sub(r"^LicenseRef-", "", name) for name in PROJECTS[folder]["project"]["license"].split(" AND ")}
    assert names == {row.partition(",")[0] for row in rows} | {"Apache-2.0"}
