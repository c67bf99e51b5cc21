"""``medvlp ablate`` at work, on the micro recipe: runs, resuming, the table and the picture."""

from __future__ import annotations

import csv
import io
import json
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from forked import Forked
from rich.console import Console

from medvlp_core.ablation import run_all as ablate_run
from medvlp_core.ablation.ablation_folder import read_outcome
from medvlp_core.ablation.grid import Ablation, parse_axes, plan_ablation
from medvlp_core.ablation.results import Metric, choose_metrics, read_results
from medvlp_core.cli import main
from medvlp_core.cli.ablate import print_results
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.errors import Diagnostics, SpecError
from medvlp_core.evaluation.protocol import Card
from medvlp_core.plugins.host import PluginHost, load_plugins
from medvlp_core.training.checkpoint import list_checkpoints
from medvlp_core.training.metrics_file import read_metrics

Output = Any
OVER = ("--over", "model.fusion=...,standard.cross_attention", "--over", "model.alignments.gla=...,null")
FOLDERS = [
    f"fusion={fusion},gla={gla}" for fusion in ("as_in_recipe", "standard.cross_attention") for gla in ("as_in_recipe", "null")
]


def write_recipe(folder: Path, micro: str) -> Path:
    path = folder / "micro.yaml"
    words = "evaluators: {words: {use: standard.masked_words, draws: 1, max_pairs: 6}}\n"
    path.write_text(micro.replace("steps: 4, batch_size: 4}", "steps: 3, batch_size: 4, log_every_steps: 2}") + words)
    return path


@pytest.fixture(scope="module")
def orders() -> dict[int, list[list[int]]]:
    """Records of every training batch, by number of the run."""
    return {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, micro: str, orders: dict[int, list[list[int]]]) -> tuple[Path, int]:
    """A complete ablation of 2 x 2 combinations and two seeds, and its exit code."""
    folder = tmp_path_factory.mktemp("ablation")
    recipe = write_recipe(folder, micro)
    training_batches = InputPipeline.training_batches

    def watched(*arguments: Any, **named: Any) -> Any:
        seen = orders.setdefault(len(orders), [])
        for batch in training_batches(*arguments, **named):
            seen.append(batch["record_index"].tolist())
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InputPipeline, "training_batches", watched)
        code = main(["ablate", str(recipe), *OVER, "--seeds", "0,3", "--out", str(folder / "out"), "--device", "cpu"])
    return folder / "out", code


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def plan(recipe: Path, host: PluginHost, *over: str, seeds: tuple[int, ...] = (0, 3)) -> Ablation:
    diagnostics = Diagnostics()
    axes = parse_axes(over, diagnostics)
    assert axes is not None
    ablation = plan_ablation(str(recipe), axes, seeds=seeds, host=host, diagnostics=diagnostics)
    assert ablation is not None
    return ablation


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["ablate", *arguments, "--device", "cpu"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --------------------------------------------------------------------------------------------------------------------- runs


def test_every_run_has_a_folder_and_the_results_a_table(finished: tuple[Path, int]) -> None:
    folder, code = finished
    assert code == 0
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*") if path.is_dir()) == sorted(
        f"{name}/seed-{seed}" for name in FOLDERS for seed in (0, 3)
    )
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "ablation.json",
        "ablation.png",
        "table.csv",
        "table.md",
    ]


def test_equal_seeds_see_the_same_records_in_the_same_order(finished: tuple[Path, int], orders: Any) -> None:
    by_run = [steps[:3] for steps in orders.values()]  # the loop may have fetched one batch more
    assert len(by_run) == 8
    assert all(len(step) == 4 for steps in by_run for step in steps)
    assert by_run[:4] == [by_run[0]] * 4
    assert by_run[4:] == [by_run[4]] * 4
    assert by_run[0] != by_run[4]


def test_a_run_is_what_pretrain_does(finished: tuple[Path, int], capsys: Output, tmp_path: Path) -> None:
    folder, _ = finished
    changes = ["--use", "model.fusion=standard.cross_attention", "--unset", "model.alignments.gla", "--set", "train.seed=3"]
    recipe = str(folder.parent / "micro.yaml")
    assert main(["pretrain", recipe, *changes, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    ours, theirs = folder / FOLDERS[3] / "seed-3", tmp_path / "run"
    assert (ours / "resolved.yaml").read_text() == (theirs / "resolved.yaml").read_text()
    assert (ours / "evaluation.json").read_text() == (theirs / "evaluation.json").read_text()
    keys = ("step", "total", "losses", "grad_norm")
    assert [[line[key] for key in keys] for line in read_metrics(ours / "metrics.jsonl")] == [
        [line[key] for key in keys] for line in read_metrics(theirs / "metrics.jsonl")
    ]


# ------------------------------------------------------------------------------------------------------------------ results


def test_the_csv_holds_every_number(finished: tuple[Path, int]) -> None:
    folder, _ = finished
    rows = lines(folder)
    assert len(rows) == 2 * (2 * (2 + 5) + 2 * (2 + 3))
    for row in rows:
        assert {"...": "as_in_recipe"}.get(row["model.fusion"], row["model.fusion"]) in row["combination"].replace(
            "...", "as_in_recipe"
        )
        name = FOLDERS[2 * (row["model.fusion"] != "...") + (row["model.alignments.gla"] == "null")]
        source = folder / name / f"seed-{row['seed']}"
        if row["evaluator"] == "final losses":
            last = read_metrics(source / "metrics.jsonl")[-1]
            found = {**last["losses"], "total": last["total"]}[row["metric"]]
            assert row["is_higher_better"] == "false"
        else:
            [card] = json.loads((source / "evaluation.json").read_text())["results"]
            [entry] = [one for one in card["rows"] if one["metric"] == row["metric"]]
            found = entry["value"]
            assert (row["evaluator"], row["is_higher_better"]) == ("words", str(entry["is_higher_better"]).lower())
        assert float(row["value"]) == found


def test_the_table_has_means_spreads_and_paired_differences(finished: tuple[Path, int]) -> None:
    folder, _ = finished
    rows = [row for row in lines(folder) if row["metric"] == "report.mlm"]
    values = {(row["combination"], row["seed"]): float(row["value"]) for row in rows}
    first, last = "fusion=... gla=...", "fusion=standard.cross_attention gla=null"
    own = [values[last, seed] for seed in ("0", "3")]
    differences = [values[last, seed] - values[first, seed] for seed in ("0", "3")]
    text = (folder / "table.md").read_text(encoding="utf-8")
    losses = text.partition("## final losses")[2].splitlines()
    header = [cell.strip() for cell in losses[2].split("|")]
    cells = [[cell.strip() for cell in line.split("|")] for line in losses[4:11]]
    assert header[1:] == [
        "combination",
        "n",
        "gla.global ↓",
        "gla.local ↓",
        "image.reconstruction ↓",
        "report.mlm ↓",
        "total ↓",
        "",
    ]
    assert [row[1] for row in cells] == [
        first,
        "fusion=... gla=null",
        "&nbsp;&nbsp;minus the first",
        "fusion=standard.cross_attention gla=...",
        "&nbsp;&nbsp;minus the first",
        last,
        "&nbsp;&nbsp;minus the first",
    ]
    column = header.index("report.mlm ↓")
    assert cells[5][2:4] == ["2", "-"]
    assert cells[5][column] == f"{statistics.fmean(own):.3f} ± {statistics.stdev(own):.3f}"
    assert cells[6][column] == f"{statistics.fmean(differences):+.3f} ± {statistics.stdev(differences):.3f}"
    assert "2 x 2 combinations x 2 seeds (0, 3) = 8 runs." in text
    assert "* `model.fusion`: `...`, `standard.cross_attention`" in text


def test_a_narrow_terminal_gets_narrow_tables(finished: tuple[Path, int], capsys: Output) -> None:
    folder, _ = finished
    ablation = plan(folder.parent / "micro.yaml", load_plugins(), *OVER[1::2])
    results = read_results(folder, ablation)
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    print_results(results, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, printed.splitlines())) <= 80
    assert " final losses " in printed.replace("\n", " ")
    for metric in results.metrics:
        assert all(word in printed for word in metric.name.split())
    print_results(results, Console(file=io.StringIO()))
    plain = capsys.readouterr().out
    assert "  combination " in plain
    assert plain.count("minus the first ") == 3 * 2
    assert "minus the first: the difference to the first combination" in plain


def test_metrics_are_chosen_by_name(finished: tuple[Path, int]) -> None:
    folder, _ = finished
    results = read_results(folder, plan(folder.parent / "micro.yaml", load_plugins(), *OVER[1::2]))
    accuracy, entropy = results.metrics[:2]
    assert choose_metrics((), results) == (accuracy,)
    assert choose_metrics(("report.mlm", "words", "masked words: accuracy"), results) == (
        Metric(group="final losses", name="report.mlm", is_higher_better=False),
        accuracy,
        entropy,
    )
    with pytest.raises(SpecError) as caught:
        choose_metrics(("words", "masked word: acuracy", "probe"), results)
    known = "final losses, gla.global, gla.local, image.reconstruction"
    kept = "the table and the runs are kept: repeat the command with another --metrics"
    assert str(caught.value) == (
        "[MV602] no run of the ablation gave the metric 'masked word: acuracy'\n"
        f"    hint: did you mean 'masked words: accuracy'? other metrics: {known}, masked words: cross-entropy, report.mlm, total, "
        f"words; {kept}\n"
        "[MV602] no run of the ablation gave the metric 'probe'\n"
        f"    hint: metrics: {known}, masked words: accuracy, masked words: cross-entropy, report.mlm, total, words; {kept}"
    )


# --------------------------------------------------------------------------------------------------------- again, otherwise


def test_the_same_command_keeps_what_is_done(finished: tuple[Path, int], capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = finished
    before = (folder / "table.md").read_text(encoding="utf-8")
    unfinished = folder / FOLDERS[1] / "seed-0"
    (unfinished / "outcome.json").unlink()
    (unfinished / "evaluation.json").write_text("{", encoding="utf-8")
    (folder / "table.md").unlink()
    done = []
    pretrain = ablate_run.pretrain
    monkeypatch.setattr(ablate_run, "pretrain", lambda plan, **rest: done.append(rest["out"]) or pretrain(plan, **rest))
    recipe = str(folder.parent / "micro.yaml")
    code, out, _ = run(capsys, recipe, *OVER, "--seeds", "0,3", "--out", str(folder), "--metrics", "words")
    assert (code, done) == (0, [unfinished])
    assert out.count(": done before") == 7
    assert (folder / "table.md").read_text(encoding="utf-8") == before


def test_another_ablation_is_refused(finished: tuple[Path, int], capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = finished
    recipe = str(folder.parent / "micro.yaml")
    monkeypatch.setattr("medvlp_core.__version__", "9.9")
    over = ("--over", "model.fusion=...", OVER[2], OVER[3], "--set", "train.steps=5", "--unset", "evaluators")
    code, _, err = run(capsys, recipe, *over, "--seeds", "0", "--out", str(folder))
    assert code == 1
    begun = json.loads((folder / "ablation.json").read_text(encoding="utf-8"))
    assert err == (
        f"[MV508] {folder} holds another ablation than this one\n"
        '    over.model.fusion: ["...", "standard.cross_attention"] there, ["..."] here\n'
        "    seeds: [0, 3] there, [0] here\n"
        f'    versions.medvlp: "{begun["versions"]["medvlp"]}" there, "9.9" here\n'
        '    recipe.evaluators.words.use: "standard.masked_words" there, nothing here\n'
        "    recipe.evaluators.words.draws: 1 there, nothing here\n"
        "    recipe.evaluators.words.max_pairs: 6 there, nothing here\n"
        "    recipe.train.steps: 3 there, 5 here\n"
        "    hint: repeat the command that began it, or choose a new folder with --out\n"
    )


def test_a_folder_with_something_else_is_refused(tmp_path: Path, micro: str, capsys: Output) -> None:
    recipe = str(write_recipe(tmp_path, micro))
    code, _, err = run(capsys, recipe, "--over", "train.steps=1,2", "--out", str(tmp_path))
    assert (code, "the run folder is not empty" in err) == (1, True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ablation.json").write_text("[]")
    code, _, err = run(capsys, recipe, "--over", "train.steps=1,2", "--out", str(tmp_path / "broken"))
    assert (code, "ablation.json cannot be read" in err) == (1, True)


def test_what_no_run_could_start_with_is_found_before_anything_is_written(tmp_path: Path, micro: str, capsys: Output) -> None:
    recipe = str(write_recipe(tmp_path, micro))
    over = ("--over", "train.precision=fp32,fp16", "--over", "data=open_cxr.pairs,{use: standard.manifest, path: gone.csv}")
    code, _, err = run(capsys, recipe, *over, "--out", str(tmp_path / "out"))
    assert code == 1
    assert "[MV104] train.precision: fp16 needs a GPU, and the run is on cpu\n    in 2 of 4 combinations:" in err
    assert "gone.csv" in err
    assert err.count("in 2 of 4 combinations:") == 3  # no GPU, the warning that the file does not exist, the error when it is read
    assert not (tmp_path / "out").exists()


def test_a_run_that_diverges_stops_no_other(tmp_path: Path, micro: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = str(write_recipe(tmp_path, micro)), tmp_path / "out"
    command = (recipe, "--over", "train.learning_rate=1e30,1e-3", "--set", "evaluators=null", "--out", str(out))
    command += ("--set", "train.max_bad_steps=0")
    code, printed, _ = run(capsys, *command)
    assert code == 1
    complaint = "learning_rate=1e30, seed 0: diverged: [MV601] training stopped at step 2: "
    assert complaint in printed
    text = (out / "table.md").read_text(encoding="utf-8")
    assert f"## Runs without all results\n\n* {complaint}" in text
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    assert [row[1:4] for row in rows[2:4]] == [["learning_rate=1e30", "0", "-"], ["learning_rate=1e-3", "1", rows[3][3]]]
    assert [row[1:4] for row in rows[4:]] == [["&nbsp;&nbsp;minus the first", "0", "-"]]
    assert float(rows[3][3]) > 0
    # it would diverge again, so it is kept, and the command still fails
    monkeypatch.setattr(ablate_run, "pretrain", None)
    code, printed, _ = run(capsys, *command)
    assert (code, printed.count(": done before"), complaint in printed) == (1, 2, True)


def test_another_failure_is_noted_and_tried_again(tmp_path: Path, micro: str, capsys: Output) -> None:
    recipe, out = str(write_recipe(tmp_path, micro)), tmp_path / "out"
    command = (recipe, "--over", "train.steps=1,2", "--set", "evaluators=null", "--out", str(out))
    with pytest.MonkeyPatch.context() as patch:

        def fails(plan: Any, **rest: Any) -> None:
            raise RuntimeError("out of memory")

        patch.setattr(ablate_run, "pretrain", fails)
        code, printed, err = run(capsys, *command)
    assert code == 1
    assert "steps=2, seed 0: failed: RuntimeError: out of memory (test_ablation_run_all.py:" in printed
    assert err == (
        f"the same command with --out {out} tries the failed runs again\nablation.png is skipped: no run gave a number\n"
    )
    code, printed, _ = run(capsys, *command)
    assert (code, "failed" in printed, (out / "ablation.png").exists()) == (0, False, True)


def test_an_evaluator_without_a_result_is_said(tmp_path: Path, micro: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = str(write_recipe(tmp_path, micro)), tmp_path / "out"
    pretrain = ablate_run.pretrain

    def half_fails(plan: Any, **rest: Any) -> Any:
        return attrs.evolve(pretrain(plan, **rest), cards=(Card(evaluator="words", problem="it broke"),))

    monkeypatch.setattr(ablate_run, "pretrain", half_fails)
    code, printed, _ = run(capsys, recipe, "--over", "train.steps=1", "--set", "evaluators=null", "--out", str(out))
    assert code == 1
    complaint = "steps=1, seed 0: an evaluator gave no result: words: it broke"
    assert complaint in printed
    assert f"* {complaint}\n" in (out / "table.md").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- interrupted


def test_ctrl_c_leaves_what_is_done(tmp_path: Path, micro: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = str(write_recipe(tmp_path, micro)), tmp_path / "out"
    command = (recipe, "--over", "train.steps=1,2", "--set", "evaluators=null", "--out", str(out))
    pretrain = ablate_run.pretrain

    def interrupted(plan: Any, **rest: Any) -> Any:
        if plan.train.steps == 2:
            raise KeyboardInterrupt
        return pretrain(plan, **rest)

    monkeypatch.setattr(ablate_run, "pretrain", interrupted)
    code, _, err = run(capsys, *command)
    assert code == 130
    assert err == f"\n1 of 2 runs are done; the same command with --out {out} resumes\ninterrupted\n"
    monkeypatch.setattr(ablate_run, "pretrain", pretrain)
    code, printed, _ = run(capsys, *command)
    assert (code, printed.count("done before")) == (0, 1)


@pytest.mark.parametrize("every", [None, 10])
def test_a_killed_run_resumes_or_is_done_anew(tmp_path: Path, micro: str, capsys: Output, every: int | None) -> None:
    recipe = write_recipe(tmp_path, micro)
    changes = ["--set", "evaluators=null", "--set", "train.log_every_steps=1", "--device", "cpu"]
    changes += ["--set", f"train.checkpoint_every_steps={'null' if every is None else every}"]
    command = ["ablate", str(recipe), "--over", "train.steps=2,30", *changes, "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = Forked("medvlp_core.cli", *command, str(killed), environment={"OMP_NUM_THREADS": "1"})
    metrics = killed / "steps=30" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    is_begun = read_metrics if every is None else lambda path: list_checkpoints(path.parent)
    while not is_begun(metrics) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(read_metrics(metrics)) < 30
    first = killed / "steps=2" / "seed-0" / "outcome.json"
    written = first.stat().st_mtime_ns
    assert read_outcome(metrics.parent) is None
    assert main([*command, str(killed)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("done before") == 1
    assert printed.count("resumed after step ") == (every is not None)
    assert first.stat().st_mtime_ns == written
    assert main([*command, str(whole)]) == 0
    assert (killed / "table.csv").read_text() == (whole / "table.csv").read_text()
