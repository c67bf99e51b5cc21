"""The kit's own components keep everything that the kit asks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from medvlp_core.plugins.host import PluginHost
from medvlp_core.spec.roles import Role
from medvlp_core.testing.check_modules import CHECKS
from medvlp_core.testing.runner import run_check
from medvlp_core.testing.stub_components import plugin
from medvlp_core.testing.stub_components.specs import SPECS, WordsSpec
from medvlp_core.testing.stub_components.tokenizer import Words
from medvlp_core.testing.subject import Subject

HOST = PluginHost.from_modules({"kit": plugin})


def test_there_is_one_of_every_role() -> None:
    assert not HOST.broken
    roles = {kind.declaration.role for kind in SPECS}
    assert roles == set(Role)


@pytest.mark.parametrize("name", list(HOST.components))
def test_they_pass_every_check(name: str) -> None:
    subject = Subject(HOST, name)
    results = [run_check(subject, one) for one in CHECKS.values() if subject.role in one.roles]
    assert not {one.check: one.text for one in results if one.outcome == "failed"}
    assert sum(one.outcome == "passed" for one in results) >= 10


def test_words_may_end_each_text() -> None:
    tokenizer = Words(WordsSpec(max_length=4, end_of_text=True), {})
    tokenizer.fit(["clear lungs today"])
    found = tokenizer.encode(["clear lungs today", "lungs", ""])
    end = tokenizer.end_id
    assert end == 4
    assert found.token_ids.tolist() == [[2, 5, 6, end], [2, 6, end, 0], [2, end, 0, 0]]
    assert found.word_ids.tolist() == [[-1, 0, 1, -1], [-1, 0, -1, -1], [-1, -1, -1, -1]]
    assert tokenizer.text(found.token_ids[0].tolist()) == "clear lungs"


def test_the_pairs_are_files_that_differ() -> None:
    source = Subject(HOST, "kit.pairs").examples[0].build()
    records = [record for split in source.splits() for record in source.records(split)]
    assert len(records) == 40
    assert len({Image.open(record.image_path).tobytes() for record in records}) == 40
    assert len({record.text for record in records}) > 10
    assert all(set(record.labels) == {"Cardiomegaly", "Effusion", "Pneumonia"} for record in records)


def test_the_folder_goes_with_the_process() -> None:
    code = (
        "from medvlp_core.testing.stub_components.data import Pairs\n"
        "from medvlp_core.testing.stub_components.specs import PairsSpec\n"
        "path = Pairs(PairsSpec(), {}).records('test')[0].image_path\nassert path.is_file()\nprint(path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()
