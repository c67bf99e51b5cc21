"""The main job, end to end, with a micro model on the real images and texts that medvlp ships."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from medvlp_open_cxr.manifest import DATA, read_rows
from medvlp_standard.evaluators.common import batches, reconstruct
from rich.console import Console
from running import EXAMPLE, run_example

import medvlp_core
from medvlp_core.cli import main
from medvlp_core.errors import DataError
from medvlp_core.model.build import build_run
from medvlp_core.runtime.device import to_device
from medvlp_core.training.checkpoint import load_run, save_checkpoint
from medvlp_core.training.held_out import evaluation_run
from medvlp_core.training.metrics_file import read_metrics
from medvlp_core.training.state import TrainState
from medvlp_core.training.trainer import RunResult, pretrain

EVALUATORS = """\
inputs: {cache_images: true}
evaluators:
  words: {use: standard.masked_words, draws: 1, max_pairs: 32}
  patches: {use: standard.patch_reconstruction, draws: 1, max_pairs: 32}
  retrieval: {use: standard.retrieval}
  zero_shot: {use: standard.zero_shot}
  probe: {use: standard.linear_probe, strengths: [0.01]}
  curves: {use: standard.loss_curves}
  reconstructed: {use: standard.reconstruction_pictures, images: 1}
  reports: {use: standard.masked_report_pictures, reports: 1}
  attention: {use: standard.attention_pictures, images: 1, words: 2}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, micro: str) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "micro.yaml"
    path.write_text(micro.replace("batch_size: 4}", "batch_size: 8, log_every_steps: 2, checkpoint_every_steps: 2}") + EVALUATORS)
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, str]:
    """One complete run, and what it printed."""
    console = Console(file=io.StringIO(), width=180)
    out = tmp_path_factory.mktemp("runs") / "run"
    result = pretrain(medvlp_core.plan(recipe), out=out, device="cpu", console=console)
    return result, console.file.getvalue()  # type: ignore[attr-defined]


def test_the_run_folder_is_complete(finished: tuple[RunResult, str]) -> None:
    folder = finished[0].folder
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    checkpoint = "checkpoints/step-0000004"
    assert {
        "resolved.yaml",
        "metrics.jsonl",
        "evaluation.json",
        f"{checkpoint}/model.safetensors",
        f"{checkpoint}/checkpoint.json",
        f"{checkpoint}/resolved.yaml",
        "pictures/loss_curves.png",
        "pictures/reconstruction.png",
        "pictures/masked_reports.png",
        "pictures/masked_reports.txt",
        "pictures/attention.png",
    } <= files
    assert any(name.startswith(f"{checkpoint}/tokenizer/") for name in files)
    assert (folder / "checkpoints/step-0000002").is_dir()
    assert not [name for name in files if "partial" in name or "outdated" in name]


def test_metrics_hold_every_term(finished: tuple[RunResult, str]) -> None:
    result = finished[0]
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4]
    assert set(lines[0]["losses"]) == set(result.built.plan.losses)
    assert all(line["total"] > 0 and line["pairs_per_second"] > 0 for line in lines)


def test_every_number_stands_beside_its_baselines(finished: tuple[RunResult, str]) -> None:
    result, printed = finished
    document = json.loads((result.folder / "evaluation.json").read_text())
    assert document["split"] == "test"
    assert not result.problems
    cards = {card["evaluator"]: card for card in document["results"]}
    assert list(cards) == ["words", "patches", "retrieval", "zero_shot", "probe", "curves", "reconstructed", "reports", "attention"]
    for name in ("words", "patches", "retrieval", "zero_shot", "probe"):
        for row in cards[name]["rows"]:
            assert row["value"] is not None
            assert row["count"] > 0
            assert row["baselines"]
            assert set(row["verdicts"]) == set(row["baselines"])
            assert row["interval"][0] <= row["value"] <= row["interval"][1]
            assert row["metric"] in printed
    assert set(cards["words"]["rows"][0]["baselines"]) == {"wrong image", "blank image", "word frequency"}
    assert cards["patches"]["rows"][0]["baselines"]["patch mean"] == pytest.approx(1.0, abs=0.05)
    assert set(cards["probe"]["rows"][0]["baselines"]) == {"raw pixels", "random encoder"}
    assert "run folder:" in printed


def test_evaluating_again_gives_the_same_numbers(finished: tuple[RunResult, str]) -> None:
    result = finished[0]
    saved = (result.folder / "evaluation.json").read_bytes()
    cards = medvlp_core.evaluate(result.folder, device="cpu")
    assert cards == tuple(attrs.evolve(card, pictures=()) for card in result.cards)
    assert (result.folder / "evaluation.json").read_bytes() == saved


def test_a_result_shows_its_folder_and_its_numbers(finished: tuple[RunResult, str]) -> None:
    result = finished[0]
    lines = repr(result).splitlines()
    assert lines[:2] == ["RunResult micro", f"  folder         {result.folder}"]
    assert [line.split()[0] for line in lines[3:]] == [card.evaluator for card in result.cards]
    assert f"{result.cards[0].rows[0].metric} {result.cards[0].rows[0].value:.3f}" in lines[3]
    assert result._repr_html_().count("<tr>") == len(lines) - 1


def test_resolved_yaml_gives_the_same_plan(finished: tuple[RunResult, str]) -> None:
    result = finished[0]
    again = medvlp_core.plan(result.folder / "resolved.yaml")
    assert again.resolved() == result.built.plan.resolved()


def outputs(model: Any, batch: Any) -> list[torch.Tensor]:
    torch.manual_seed(7)
    with torch.no_grad():
        output = model.eval()(batch)
    return [output.loss, *output.losses.values(), *output.ports.values(), model.embed_image(batch["image"])]


def test_train_save_reload_compare_bit_for_bit(finished: tuple[RunResult, str]) -> None:
    result = finished[0]
    loaded = load_run(result.folder)
    assert loaded.metadata["step"] == 4
    ours, theirs = result.built.model.state_dict(), loaded.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    texts = [record.text for record in result.built.pipeline.records("test")[:5]]
    for one, two in zip(result.built.pipeline.tokenizer.encode(texts), loaded.tokenizer.encode(texts), strict=True):
        assert torch.equal(one, two)
    batch = next(iter(result.built.pipeline.loader("test", batch_size=6)))
    again = next(iter(loaded.pipeline().loader("test", batch_size=6)))
    assert torch.equal(batch["image"], again["image"])
    for one, two in zip(outputs(result.built.model, batch), outputs(loaded.model, again), strict=True):
        assert torch.equal(one, two)


def test_the_same_recipe_gives_the_same_run(recipe: Path, finished: tuple[RunResult, str], tmp_path: Path) -> None:
    plan = medvlp_core.plan(recipe)
    built = build_run(plan, seed=plan.train.seed)
    first = finished[0].folder / "checkpoints/step-0000002/model.safetensors"
    console = Console(file=io.StringIO())
    again = pretrain(without_evaluators(plan), out=tmp_path / "again", device="cpu", console=console)
    second = again.folder / "checkpoints/step-0000002/model.safetensors"
    assert first.read_bytes() == second.read_bytes()
    fresh = built.fresh_model(plan.train.seed)
    assert all(
        torch.equal(one, two) for one, two in zip(fresh.state_dict().values(), built.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(("port", "slot"), [("word_logits", "report"), ("patch_prediction", "image")])
def test_evaluators_see_what_the_training_pass_sees(finished: tuple[RunResult, str], port: str, slot: str) -> None:
    """The short way that evaluators take to a prediction gives the same as the whole training pass."""
    result = finished[0]
    run = evaluation_run(result.built, folder=result.folder, device=torch.device("cpu"))
    batch = next(batches(run, "test", max_pairs=5))
    result.built.model.eval()
    with torch.no_grad():
        prediction, is_masked = reconstruct(run, port, batch, seed=3)
        torch.manual_seed(3)
        output = result.built.model(batch)
    assert torch.equal(prediction, output.ports[f"{slot}.{port}"])
    assert torch.equal(is_masked, output.ports["text_is_masked@masked" if slot == "report" else "image_is_masked@masked"])


def without_evaluators(plan: Any) -> Any:
    import attrs

    parts = {path: part for path, part in plan.components.items() if not path.startswith("evaluators.")}
    return attrs.evolve(plan, components=parts)


def test_no_dead_gradients(recipe: Path) -> None:
    """Every parameter gets a finite gradient that is not zero, in a few steps (a top-k memory leaves some slots out at first)."""
    plan = medvlp_core.plan(recipe)
    built = build_run(plan, seed=0)
    model = built.model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    reached: set[str] = set()
    for batch in built.pipeline.loader("train", batch_size=16):
        optimizer.zero_grad()
        model(to_device(batch, torch.device("cpu"))).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad).all(), name
                if parameter.grad.abs().max() > 0:
                    reached.add(name)
        optimizer.step()
        if len(reached) == len(list(model.parameters())):
            break
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} - reached == set()


def test_a_loaded_run_reads_images_without_the_training_data(
    finished: tuple[RunResult, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = finished[0]
    monkeypatch.setattr("medvlp_core.training.checkpoint.build_source", None)
    loaded = load_run(result.folder)
    record = result.built.pipeline.records("test")[3]
    expected = result.built.pipeline.dataset("test", is_training=False)[3].values["image", "clean"]
    image = loaded.read_image(str(record.image_path))
    assert image.shape == (1, 1, 32, 32)
    assert (image[0] - expected).abs().mean() < 0.06  # that one was kept in memory, scaled down
    geometry, sizes = loaded.image_transform().geometry, result.built.pipeline.plan.sizes["image"]
    assert (geometry.channels, geometry.height, geometry.width) == (sizes["C"], sizes["H"], sizes["W"])
    assert not loaded.image_transform().is_training
    with pytest.raises(DataError, match="MV501"):
        loaded.read_image("absent.png")


def test_files_of_a_checkpoint_follow_the_umask(finished: tuple[RunResult, str]) -> None:
    folder = finished[0].folder / "checkpoints/step-0000004"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} == {0o666 & ~current_umask()}


def current_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def test_the_start_says_which_texts_are_cut_and_the_end_how_long_it_took(finished: tuple[RunResult, str]) -> None:
    result, printed = finished
    tokenizer, records = result.built.pipeline.tokenizer, result.built.pipeline.records("train")
    full = sum(len(tokenizer.encode([record.text]).token_ids[0]) == 32 for record in records)
    assert 0 < full < len(records)
    assert f"texts: {full} of {len(records)} training texts fill all 32 tokens; what is longer is cut\n" in printed
    assert re.search(r"run folder: .*  \(training and evaluation took \d+ s\)\n", printed)


# -------------------------------------------------------------------------------------------------------------- broken input


def films(folder: Path) -> str:
    """A recipe whose manifest has one broken image among six."""
    lines = ["image,text,split"]
    (folder / "films").mkdir()
    for index, row in enumerate(read_rows()[:6]):
        (folder / f"films/{index}.jpg").write_bytes((DATA / row["image"]).read_bytes())
        lines.append(f"films/{index}.jpg,Heart size is normal. Lungs are clear.,train")
    cut(folder / "films/4.jpg")
    (folder / "films.csv").write_text("\n".join(lines))
    return "{use: standard.manifest, path: films.csv}"


def test_a_broken_image_is_one_message_with_and_without_loader_processes(
    micro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "films.yaml"
    path.write_text(
        micro.replace("{use: open_cxr.pairs, sources: [nih]}", films(tmp_path)).replace("batch_size: 4", "batch_size: 6")
    )
    capfd.readouterr()
    shown = []
    for num_workers in (0, 2):
        code = main(["pretrain", str(path), "--set", f"train.num_workers={num_workers}", "--out", "run", "--device", "cpu"])
        assert code == 1
        shown.append(capfd.readouterr().err)
        assert not (tmp_path / "run").exists(), "it never began: the command can be repeated"
    assert shown[0].startswith("[MV501] cannot read image ")
    assert "films/4.jpg: it is truncated" in shown[0]
    assert shown[0].endswith("    hint: copy or download it again\n")
    assert shown[1] == shown[0]
    words = ["--config", str(path), "--set", "train.num_workers=2", "--out", "run", "--device", "cpu"]
    code, _, err = run_example(words, monkeypatch, capfd)
    assert (code, err) == (1, shown[0])


def test_a_failed_start_leaves_no_folder(
    micro: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "micro.yaml"
    path.write_text(micro)
    for change, code in (("tokenizer.vocab_size=20", "MV506"), ("train.steps=99999999999999999999999", "MV104")):
        for out in (("--out", "run"), ()):
            assert main(["pretrain", str(path), "--set", change, *out]) == 1
            assert f"[{code}]" in capsys.readouterr().err
            assert [one.name for one in tmp_path.iterdir()] == ["micro.yaml"]


def test_a_bad_run_folder_is_refused_before_anything_is_built(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medvlp_core.training.trainer.build_run", None)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="MV508"):
        pretrain(medvlp_core.plan(recipe), out=tmp_path, device="cpu")


def test_a_run_that_breaks_later_keeps_what_it_has(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise DataError("the disk is full")

    monkeypatch.setattr("medvlp_core.training.trainer.save_checkpoint", fail)
    console = Console(file=io.StringIO())
    with pytest.raises(DataError, match="the disk is full"):
        pretrain(without_evaluators(medvlp_core.plan(recipe)), out=tmp_path / "run", device="cpu", console=console)
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 2
    assert (tmp_path / "run/resolved.yaml").is_file()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def saved(finished: tuple[RunResult, str], tmp_path: Path) -> Path:
    """A fresh copy of a checkpoint."""
    built = finished[0].built
    folder = tmp_path / "checkpoint"
    state = TrainState.fresh(built.model, built.plan.train, torch.device("cpu"))
    for state.step in (1, 2):  # the second replaces the first
        save_checkpoint(folder, plan=built.plan, state=state, tokenizer=built.pipeline.tokenizer, metadata={}, progress={})
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    return folder


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut, r"model.safetensors: the file has [\d,]+ bytes, and [\d,]+ were written"),
        ("model.safetensors", Path.unlink, r"model.safetensors: the file is missing"),
        ("checkpoint.json", cut, r"checkpoint.json: the file cannot be read"),
        ("resolved.yaml", Path.unlink, r"resolved.yaml: the file is missing"),
    ],
)
def test_a_damaged_checkpoint_is_an_error_with_a_hint(saved: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(saved / name)
    with pytest.raises(DataError, match=message) as caught:
        load_run(saved)
    assert [problem.code for problem in caught.value.problems] == ["MV507"]
    assert "hint:" in str(caught.value)


def test_weights_of_another_architecture_are_refused(saved: Path) -> None:
    recipe = saved / "resolved.yaml"
    recipe.write_text(recipe.read_text().replace("slots: 8", "slots: 9"))
    with pytest.raises(DataError, match="the weights do not fit the recipe") as caught:
        load_run(saved)
    assert "size mismatch" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------- the script


def example(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(EXAMPLE), *arguments], capture_output=True, text=True, cwd=folder, timeout=120)


def test_the_example_says_how_it_is_used_without_torch(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 50
    code = f"import runpy, sys; sys.argv = ['x', '--config', 'none.yaml']; runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    watched = f"try:\n    {code}\nexcept SystemExit as end:\n    print(end)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"
    assert "[MV001]" in done.stdout
    shown = example("--help", folder=tmp_path).stdout
    assert all(option in shown for option in ("--config", "--set", "--use", "--unset", "--out", "--resume", "--device"))


def test_the_example_prints_problems_without_a_traceback(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = example("--config", str(recipe), "--set", "train.stepz=3", "--use", "model.fusion=standard.cros", folder=tmp_path)
    assert wrong.returncode == 1
    assert "did you mean 'steps'?" in wrong.stderr
    assert "unknown fusion 'standard.cros'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    monkeypatch.chdir(tmp_path)
    code, _, err = run_example(["--config", str(recipe), "--out", "full"], monkeypatch, capfd)
    assert code == 1
    assert "[MV508] full: the run folder is not empty" in err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_the_example_applies_changes_in_order_and_reports_what_is_skipped(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = ["--set", "train.steps=1", "--unset", "model.alignments.gla", "--use", "model.fusion=standard.cross_attention"]
    changes += ["--set", "model.fusion.heads=2", "--unset", "evaluators.probe", "--set", "train.checkpoint_every_steps=null"]
    monkeypatch.chdir(tmp_path)
    code, out, err = run_example(["--config", str(recipe), *changes, "--device", "cpu"], monkeypatch, capfd)
    assert code == 0, err
    assert "skipped evaluators.retrieval: needs image_embedding" in out
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("micro-")
    document = json.loads((folder / "evaluation.json").read_text())
    assert [one["evaluator"] for one in document["skipped"]] == ["evaluators.retrieval", "evaluators.zero_shot"]
