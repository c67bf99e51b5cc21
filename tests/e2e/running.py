"""How the tests of whole runs start them: in this process, as a command, and in two processes."""

from __future__ import annotations

import contextlib
import json
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import killing
import pytest
from forked import Forked
from medvlp_open_cxr.manifest import DATA, read_rows

from medvlp_core.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain_mpma.py"
LAUNCHER = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TORCHRUN = (*LAUNCHER, "-m", "medvlp_core.cli", "pretrain")


def resume_run(run: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> tuple[int, str]:
    """The exit code of ``medvlp pretrain --resume`` and what it said on stderr."""
    code = main(["pretrain", "--resume", str(run), "--device", "cpu", *changes])
    return code, capsys.readouterr().err


def wait_for_metrics(process: subprocess.Popen[str] | Forked, run: Path, lines: int) -> None:
    """Return when the run has so many lines of metrics."""
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= lines):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def run_example(words: Sequence[str], patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """``examples/pretrain_mpma.py`` in this process, where torch is imported already: exit code, stdout, stderr."""
    capfd.readouterr()
    patch.setattr(sys, "argv", [str(EXAMPLE), *words])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    out, err = capfd.readouterr()
    if isinstance(end.value.code, str):  # Python prints it, without a traceback
        return 1, out, f"{err}{end.value.code}\n"
    return end.value.code or 0, out, err


#: Commands one after another in the same processes, which import torch once: what each says, and its exit code. Each has a
#: store of its own, for in torchrun's the keys of the group before would stand already. The exit code of the last is the process's.
SEVERAL = """\
import contextlib, json, os, sys
from pathlib import Path
from medvlp_core.cli import main

os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
for name, (port, words) in json.loads(sys.argv[2]).items():
    os.environ["MASTER_PORT"] = str(port)
    path = Path(sys.argv[1], f"{name}.{os.environ['RANK']}")
    with open(f"{path}.out", "w") as out, open(f"{path}.err", "w") as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as end:  # how a process ends whose neighbour speaks
                code = end.code
    path.with_name(path.name + ".code").write_text(str(code))
sys.exit(code)
"""


@attrs.frozen
class Done:
    """What a command said in all processes together, and the exit code of each."""

    codes: list[int]
    out: str
    err: str


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def several_under_torchrun(folder: Path, commands: dict[str, list[str]]) -> dict[str, Done]:
    """``medvlp`` commands, one after another, in the same two processes.

    ``launcher`` is what torchrun itself said. It may end a process whose neighbour failed before its exit code is written.
    """
    script = folder / "several.py"
    script.write_text(SEVERAL)
    given = dict(zip(commands, zip(free_ports(len(commands)), commands.values(), strict=True), strict=True))
    words = [sys.executable, "-m", *LAUNCHER, str(script), str(folder), json.dumps(given)]
    done = subprocess.run(words, capture_output=True, text=True)

    def texts(name: str, kind: str) -> list[str]:
        return [path.read_text() for rank in range(2) if (path := folder / f"{name}.{rank}.{kind}").exists()]

    found = {
        name: Done([int(code) for code in texts(name, "code")], "".join(texts(name, "out")), "".join(texts(name, "err")))
        for name in commands
    }
    return {**found, "launcher": Done([done.returncode], done.stdout, done.stderr)}


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
