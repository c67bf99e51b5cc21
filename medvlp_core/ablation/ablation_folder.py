"""The folder of an ablation: what was asked for, and which runs are done. Light.

::

    OUT/
        ablation.json                                 recipe, grid, seeds, versions
        fusion=standard.cross_attention/seed-0/       a run folder, and outcome.json once the run is over
        table.md, table.csv, ablation.png             written at the end
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from medvlp_core.ablation.grid import Ablation, Run
from medvlp_core.errors import DataError, Problem
from medvlp_core.recipe.diff import differences

MANIFEST, OUTCOME, EVALUATION = "ablation.json", "outcome.json", "evaluation.json"
FORMAT = 1
_SHOWN_DIFFERENCES = 8


@attrs.frozen(kw_only=True)
class Outcome:
    """How a run ended: it ``finished``, it ``diverged`` (and would again), or it ``failed`` for another reason.

    ``reasons``: why it stopped, or what kept evaluators from giving a result.
    """

    status: Literal["finished", "diverged", "failed"]
    reasons: tuple[str, ...] = ()


def manifest(ablation: Ablation, *, device: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """What is asked for, as plain data: two equal ones give the same runs."""
    recipes = {}
    for one in ablation.combinations:
        recipe = next(iter(one.plans.values())).resolved()
        del recipe["train"]["seed"]
        recipes[one.label] = {"folder": one.folder, "recipe": recipe}
    return {
        "format": FORMAT,
        "over": {axis.path: [choice.text for choice in axis.choices] for axis in ablation.axes},
        "seeds": list(ablation.seeds),
        "device": device,
        "versions": dict(versions),
        "combinations": recipes,
    }


def write_manifest(folder: Path, asked: dict[str, Any]) -> None:
    """Write ``ablation.json``."""
    _write_json(folder / MANIFEST, asked)


def is_ablation(folder: Path) -> bool:
    """Whether an ablation was begun there."""
    return (folder / MANIFEST).is_file()


def check_same(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse to resume with another ablation than the one that was begun in ``folder``.

    Raises:
        DataError: recipe, grid, seeds, device or versions differ, or ``ablation.json`` cannot be read (MV508).
    """
    try:
        begun = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = list(_differences(begun, json.loads(json.dumps(asked))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{folder / MANIFEST} cannot be read: {type(error).__name__}: {error}"
        raise DataError(Problem(code="MV508", text=text, hint="choose a new folder with --out")) from error
    if found:
        more = len(found) - _SHOWN_DIFFERENCES
        details = found[:_SHOWN_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])
        text = f"{folder} holds another ablation than this one"
        hint = "repeat the command that began it, or choose a new folder with --out"
        raise DataError(Problem(code="MV508", text=text, details=tuple(details), hint=hint))


def _differences(begun: dict[str, Any], asked: dict[str, Any]) -> Iterator[str]:
    """What differs, one line each: the grid first, and the recipes of the combinations that both have."""
    there, here = begun.pop("combinations"), asked.pop("combinations")
    pairs = [(begun, asked), *((there[label], here[label]) for label in there if label in here)]
    lines = [f"{path}: {old} there, {new} here" for pair in pairs for path, old, new in differences(*pair)]
    if not lines and there != here:
        lines = [f"combinations: {', '.join(there)} there, {', '.join(here)} here"]
    yield from dict.fromkeys(lines)


# --------------------------------------------------------------------------------------------------------------------- runs


def read_outcome(folder: Path) -> Outcome | None:
    """How the run in ``folder`` ended; None if it did not begin, or did not end."""
    try:
        read = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Outcome(status=read["status"], reasons=tuple(read["reasons"]))


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Note how a run ended. It is there completely or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / OUTCOME, attrs.asdict(outcome))


def is_done(folder: Path) -> bool:
    """Whether the run in ``folder`` need not be repeated: it finished, or diverged, which it would do again."""
    outcome = read_outcome(folder)
    if outcome is None or outcome.status == "failed":
        return False
    return outcome.status == "diverged" or (folder / EVALUATION).is_file()


def done(folder: Path, ablation: Ablation) -> tuple[Run, ...]:
    """The runs of an ablation that need not be repeated."""
    return tuple(run for run in ablation.runs() if is_done(folder / run.folder))


def clear(folder: Path) -> None:
    """Remove what a run that did not finish has left."""
    if folder.exists():
        shutil.rmtree(folder)


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
