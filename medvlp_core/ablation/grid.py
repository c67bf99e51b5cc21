"""What an ablation varies: the values of ``--over``, and every combination of them planned before anything runs. Light."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import attrs

from medvlp_core.errors import Diagnostics, Position, Problem
from medvlp_core.planning.compose import load_and_compose, recipe_name
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import PluginHost
from medvlp_core.recipe.load import Override, is_path, parse_yaml
from medvlp_core.spec.roles import ROLES

#: The value that stands for what the recipe has.
AS_IN_RECIPE = "..."
EXAMPLE = "--over model.fusion=mpma.memory_fusion,standard.cross_attention"

#: A quoted text (a quote opens one only where a value can begin), a bracket, a comma, or anything else.
_PIECE = re.compile(r"""(?:(?<=[\s,{\[:])|^)(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")|.""", re.DOTALL)
_LONGEST_VALUE, _LONGEST_FOLDER = 40, 120


@attrs.frozen
class Choice:
    """One value of an axis, as typed, and the override that makes it; None = as the recipe has it."""

    text: str
    override: Override | None


@attrs.frozen
class Axis:
    """One ``--over``: a path of the recipe and its values."""

    path: str
    choices: tuple[Choice, ...]


@attrs.frozen(kw_only=True)
class Combination:
    """One value of every axis. ``parts``: its name, an axis each; ``values``: as typed, by path; ``plans``: by seed."""

    parts: tuple[str, ...]
    folder: str
    values: dict[str, str]
    plans: dict[int, ModelPlan]

    @property
    def label(self) -> str:
        """How messages and tables call it."""
        return " ".join(self.parts)


@attrs.frozen(kw_only=True)
class Run:
    """One training: a combination with a seed. ``folder`` lies below the ablation's folder."""

    combination: Combination
    seed: int

    @property
    def plan(self) -> ModelPlan:
        """What is trained."""
        return self.combination.plans[self.seed]

    @property
    def folder(self) -> str:
        """``fusion=standard.cross_attention/seed-0``."""
        return f"{self.combination.folder}/seed-{self.seed}"

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.combination.label}, seed {self.seed}"


@attrs.frozen(kw_only=True)
class Ablation:
    """A checked ablation: all combinations can be planned, and no two are the same."""

    name: str
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    combinations: tuple[Combination, ...]

    def runs(self) -> tuple[Run, ...]:
        """All runs in order: every combination with the first seed, then with the second."""
        return tuple(Run(combination=one, seed=seed) for seed in self.seeds for one in self.combinations)


# --------------------------------------------------------------------------------------------------------------------- axes


def split_values(text: str) -> list[str]:
    """The values of a comma list; commas inside brackets and quotes do not split.

    Example:
        >>> split_values("standard.random, {use: a.b, sizes: [1, 2]}, 'x,y', null")
        ['standard.random', '{use: a.b, sizes: [1, 2]}', "'x,y'", 'null']
    """
    values, depth = [""], 0
    for piece in _PIECE.findall(text):
        if piece == "," and depth == 0:
            values.append("")
            continue
        depth = max(0, depth + (piece in "{[") - (piece in "}]"))
        values[-1] += piece
    return [value.strip() for value in values]


def parse_axes(texts: Sequence[str], diagnostics: Diagnostics) -> tuple[Axis, ...] | None:
    """Read every ``--over``; None if one has not the right form, a value twice, or lies inside another (MV007)."""
    known = len(diagnostics.errors)
    axes = [axis for text in texts if (axis := _parse_axis(text, diagnostics)) is not None]
    for one, other in itertools.permutations(axes, 2):
        if one.path.startswith(f"{other.path}."):
            text = f"{one.path} lies inside {other.path}, which another --over varies"
            hint = f"write whole blocks, e.g. --over {other.path}='{{use: ..., {one.path.rpartition('.')[2]}: ...}}, ...'"
            diagnostics.add("MV007", text, at=Position(f"--over {one.path}"), hint=hint)
    paths = [axis.path for axis in axes]
    for path in {path for path in paths if paths.count(path) > 1}:
        diagnostics.add("MV007", "this path is varied twice", at=Position(f"--over {path}"), hint="put all values into one --over")
    return tuple(axes) if len(diagnostics.errors) == known else None


def _parse_axis(text: str, diagnostics: Diagnostics) -> Axis | None:
    at = Position(f"--over {text}")
    path, _, rest = (part.strip() for part in text.partition("="))
    path = path.removesuffix(".use")
    if not is_path(path) or not rest:
        diagnostics.add("MV007", "this --over has not the right form", at=at, hint=f"write --over PATH=VALUE,VALUE, e.g. {EXAMPLE}")
        return None
    if path == "train.seed":
        diagnostics.add("MV007", "seeds are no values of an --over", at=at, hint="write --seeds 0,1,2")
        return None
    values = split_values(rest)
    if "" in values:
        hint = "null removes a block, '' is an empty text, ... is what the recipe has"
        diagnostics.add("MV007", f"value {values.index('') + 1} of {len(values)} is empty", at=at, hint=hint)
        return None
    choices: dict[str, Choice] = {}
    for value in values:
        meaning, choice = _choice(path, value)
        if meaning in choices:
            same = "" if choices[meaning].text == value else f" (as {choices[meaning].text} and as {value})"
            diagnostics.add("MV007", f"the value {value} stands twice{same}", at=at, hint="leave one of them out")
            return None
        choices[meaning] = choice
    return Axis(path, tuple(choices.values()))


def _choice(path: str, text: str) -> tuple[str, Choice]:
    """What a value means, for comparison, and the choice."""
    if text == AS_IN_RECIPE:
        return text, Choice(text, None)
    typed = f"--over {path}={text}"
    node = parse_yaml(text, file=typed, diagnostics=Diagnostics())  # a fault in it is reported when it is applied
    kind: Literal["set", "use", "unset"] = "set"
    value: str | None = text
    if node is not None and any(
        fnmatchcase(path, slot) and path.count(".") == slot.count(".") for slot in (info.slot for info in ROLES.values())
    ):
        if isinstance(node.value, str):
            kind, value = "use", node.value
        elif node.value is None:
            kind, value = "unset", None
    meaning = repr(node.plain()) if node is not None else text
    return meaning, Choice(text, Override(kind, path, value, typed))


# ------------------------------------------------------------------------------------------------------------- combinations


def plan_ablation(
    source: str,
    axes: Sequence[Axis],
    *,
    overrides: Sequence[Override] = (),
    seeds: Sequence[int] | None = None,
    host: PluginHost,
    diagnostics: Diagnostics,
) -> Ablation | None:
    """Plan all combinations; None if ``diagnostics`` has errors. ``overrides`` come first, then the values of ``axes``.

    ``seeds`` replace ``train.seed``; None = the recipe's.
    """
    grid = list(itertools.product(*(axis.choices for axis in axes)))
    parts = _parts(axes, grid)
    labels = [" ".join(one) for one in parts]
    found: list[Diagnostics] = []
    planned: list[dict[int, ModelPlan]] = []
    for choices in grid:
        own, plans = Diagnostics(), {}
        changes = [*overrides, *(choice.override for choice in choices if choice.override is not None)]
        for seed in (None,) if seeds is None else seeds:
            # each run has a plan of its own: what a built part reports of its sizes is entered there
            more = [] if seed is None else [Override("set", "train.seed", str(seed), f"--seeds {seed}")]
            plan = load_and_compose(source, [*changes, *more], host, own)
            if plan is not None:
                plans[plan.train.seed] = plan
        planned.append(plans)
        found.append(own)
    diagnostics.problems += with_places(labels, found)
    if diagnostics.has_errors:
        return None
    _check_grid(labels, planned, diagnostics)
    if diagnostics.has_errors:
        return None
    combinations = tuple(
        Combination(
            parts=names,
            folder=folder,
            values={axis.path: choice.text for axis, choice in zip(axes, choices, strict=True)},
            plans=plans,
        )
        for names, folder, choices, plans in zip(parts, _folders(parts), grid, planned, strict=True)
    )
    return Ablation(name=recipe_name(source), axes=tuple(axes), seeds=tuple(planned[0]), combinations=combinations)


def with_places(labels: Sequence[str], found: Sequence[Iterable[Problem]]) -> list[Problem]:
    """The problems of all combinations, each once, with the combinations that it was found in."""
    where: dict[Problem, list[str]] = {}
    for label, problems in zip(labels, found, strict=True):
        for problem in problems:
            where.setdefault(problem, []).append(label)
    return [attrs.evolve(one, details=(*one.details, *_where(places, len(labels)))) for one, places in where.items()]


def _where(labels: Sequence[str], total: int) -> Iterator[str]:
    """In which combinations a problem was found."""
    if len(labels) == total:
        yield "in every combination" if total > 1 else f"in the combination {labels[0]}"
        return
    yield f"in {len(labels)} of {total} combinations:"
    yield from (f"  {label}" for label in labels[:6])
    if len(labels) > 6:
        yield f"  and {len(labels) - 6} more"


def _check_grid(labels: Sequence[str], planned: Sequence[dict[int, ModelPlan]], diagnostics: Diagnostics) -> None:
    """No two combinations may be the same, and all must have the same seeds."""
    same: dict[str, str] = {}
    for label, plans in zip(labels, planned, strict=True):
        first = same.setdefault(next(iter(plans.values())).resolved_yaml(), label)
        if first != label:
            text = f"two combinations are the same: {first} and {label}"
            diagnostics.add(
                "MV007", text, at=Position("--over"), hint=f"leave one of them out; {AS_IN_RECIPE} is what the recipe has"
            )
    if len({tuple(plans) for plans in planned}) > 1:
        text = "the combinations have different values of train.seed"
        diagnostics.add("MV007", text, at=Position("--over"), hint="write --seeds 0,1,2: all combinations get the same")


# -------------------------------------------------------------------------------------------------------------------- names


def _parts(axes: Sequence[Axis], grid: Sequence[Sequence[Choice]]) -> list[tuple[str, ...]]:
    """``fusion=standard.cross_attention`` and ``gla=null`` for each combination: short, and no two the same."""
    names = _short_paths([axis.path for axis in axes])
    shown = [_short_values([choice.text for choice in axis.choices]) for axis in axes]
    return [
        tuple(f"{name}={values[choice.text]}" for name, values, choice in zip(names, shown, choices, strict=True))
        for choices in grid
    ]


def _short_paths(paths: Sequence[str]) -> list[str]:
    """The last parts of each path, as many as tell it from the others."""

    def tail(path: str, parts: int) -> str:
        return ".".join(path.split(".")[-parts:])

    def short(path: str) -> str:
        others = [other for other in paths if other != path]
        lengths = range(1, path.count(".") + 2)
        return next((tail(path, one) for one in lengths if tail(path, one) not in [tail(other, one) for other in others]), path)

    return [short(path) for path in paths]


def _short_values(texts: Sequence[str]) -> dict[str, str]:
    """Values by themselves; long ones are cut, and numbered."""
    return {
        text: text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 6]}...#{number}"
        for number, text in enumerate(texts, start=1)
    }


def _folders(parts: Sequence[Sequence[str]]) -> list[str]:
    """Names of folders, safe for every file system and shell, and no two the same."""
    found: list[str] = []
    for names in parts:
        safe = [re.sub(r"[^\w.=+-]+", "_", re.sub(r"=\.\.\.$", "=as_in_recipe", name), flags=re.ASCII).strip("_") for name in names]
        folder = ",".join(safe)[:_LONGEST_FOLDER].rstrip(",._")
        taken = {other.casefold() for other in found}
        numbered = (f"{folder}-{number}" for number in itertools.count(2))
        found.append(next(one for one in itertools.chain([folder], numbered) if one.casefold() not in taken))
    return found
