"""Every recipe of the gallery is checked, prints as code that computes the same, and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import medvlp_gallery.plugin
import pytest
import torch
from gallery_runs import batch_of, run_of, step
from medvlp_gallery.data import Phantoms
from medvlp_gallery.specs.data import PhantomSpec
from medvlp_open_cxr.manifest import DATA
from rich.console import Console

from medvlp_core import plan, pretrain
from medvlp_core.cli import main
from medvlp_core.describe import forward_source

NAMES = sorted(path.stem for path in medvlp_gallery.plugin.PRESETS.glob("*.yaml"))


def test_there_are_nine_systems() -> None:
    assert NAMES == [
        "albef", "biovil_t", "coca", "code_and_pixels", "eclip", "egma", "mae_hd", "mean_teacher", "medclip"
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_is_checked(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"gallery:{name}"]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_two_steps(name: str, tmp_path: Path) -> None:
    recipe = plan(f"gallery:{name}", ["train.steps=2"])
    result = pretrain(recipe, out=tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert result is not None
    assert all(bool(value.isfinite().all()) for value in result.built.model.state_dict().values() if value.is_floating_point())


@pytest.mark.parametrize("name", NAMES)
def test_its_pass_written_out_computes_the_same(name: str) -> None:
    run = run_of(name)
    batch = batch_of(run, progress=0.4)
    space: dict[str, Any] = {}
    exec(forward_source(run.plan), space)
    torch.manual_seed(0)
    expected = run.model(batch).loss
    torch.manual_seed(0)
    assert torch.equal(space["forward"](run.model, batch)[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    run = run_of(name)
    frozen = ("text_encoder.",) if name == "mean_teacher" else ()
    trained = {
        key: value
        for key, value in run.model.named_parameters()
        if not key.startswith(("parts.teacher", "alignments.teacher", *frozen))
    }
    for value in trained.values():
        value.requires_grad_()
    torch.manual_seed(0)
    run.model(batch_of(run, range(9), progress=0.4)).loss.backward()
    lacking = [key for key, value in trained.items() if value.grad is None or not value.grad.any()]
    # a softmax forgets what is the same for all keys, and a kind of cell may be in no batch
    assert [key for key in lacking if not key.endswith(("key.bias", "k.bias", "cells.bias"))] == []


def test_phantoms_are_drawn_on_real_radiographs_too() -> None:
    folder = DATA / "images" / "nih"
    source = Phantoms(PhantomSpec(folder=str(folder), records=6, size=48), {})
    drawn = Phantoms(PhantomSpec(records=6, size=48), {})
    pictures = [record.fields["image"] for record in source.records("train")]
    assert all(one.shape == (48, 48) for one in pictures)
    assert len({one.tobytes() for one in pictures}) == 6
    assert source.fingerprint() != drawn.fingerprint()
    run = run_of("biovil_t", f"data.folder={folder}")
    assert all(bool(one.isfinite()) for one in step(run.model, batch_of(run))[0].values())
