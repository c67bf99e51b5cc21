"""How the tests of whole runs start them: in this process, as a command, and in two processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import killing
import pytest
from medvlp_open_cxr.manifest import DATA, read_rows

from medvlp_core.cli import main

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "medvlp_core.cli", "pretrain")


def resume_run(run: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> tuple[int, str]:
    """The exit code of ``medvlp pretrain --resume`` and what it said on stderr."""
    code = main(["pretrain", "--resume", str(run), "--device", "cpu", *changes])
    return code, capsys.readouterr().err


def start(*command: str, run: Path, lines: int) -> subprocess.Popen[str]:
    """Start a command; returns when the run has so many lines of metrics."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= lines):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def under_torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """``medvlp pretrain`` in two processes."""
    return subprocess.run([sys.executable, "-m", *TORCHRUN, *words, "--device", "cpu"], capture_output=True, text=True)


def write_manifest(folder: Path) -> list[dict[str, Any]]:
    """Sixty of the shipped radiographs as somebody's own data, ``pairs.jsonl``; its rows."""
    folder.mkdir()
    rows = [row for row in read_rows() if row["source"] == "vqarad"][:60]
    found = []
    for number, row in enumerate(rows):
        name = Path(row["image"]).name
        shutil.copy(DATA / row["image"], folder / name)
        found.append({"id": row["id"], "image": name, "text": row["text"], "split": "train" if number > 9 else "test"})
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return found


def recipe_over(folder: Path) -> str:
    """The recipe of these tests over :func:`write_manifest`."""
    data = f"data: {{use: standard.manifest, path: {folder}/pairs.jsonl}}"
    return killing.RECIPE.replace("data: {use: open_cxr.pairs, sources: [vqarad]}", data)
