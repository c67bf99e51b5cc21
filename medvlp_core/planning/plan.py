"""A checked recipe: every component with its parameters, the solved dimensions, the calls and the weighted losses. Light."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from medvlp_core.display import Displayed, DisplayRow
from medvlp_core.errors import Position, Problem, SpecError
from medvlp_core.planning.after import Rows, rows_by_component
from medvlp_core.planning.contrast import StepContrast, step_contrast
from medvlp_core.planning.fields import InputPlan, input_plan
from medvlp_core.planning.losses import Weight, weight_data, weight_text
from medvlp_core.planning.wiring import INPUTS, Call, PlannedComponent, Wiring
from medvlp_core.recipe.load import Node, dump_yaml, escape_references
from medvlp_core.spec.blocks import InitSpec, InputSpec, TrainSpec
from medvlp_core.spec.component import SpecBlock, params_of
from medvlp_core.spec.contract import CLEAN, Symbol
from medvlp_core.spec.host import Host
from medvlp_core.spec.roles import Role

FORMAT_VERSION = 1
#: The sizes of images, which the model asks for.
INPUT_SIZES = ("C", "H", "W", "Ht", "Wt")


class SolvedDims(dict[str, int]):
    """Sizes of one component and their numbers; asking for one that is free or not declared is an error that names it."""

    def __init__(self, owner: str, values: Mapping[str, int], declared: Iterable[str]) -> None:
        super().__init__(values)
        self.owner = owner
        self.declared = tuple(declared)

    def __missing__(self, name: str) -> int:
        text = f"{self.owner} needs dimension {name} to be built, and nothing fixes it"
        hint = "the component that gives this dimension must declare it as a number, or report it with dims()"
        if name not in self.declared:
            text = f"{self.owner} asks for dimension {name}, which its contract does not list: sizes={self.declared}"
            hint = f"add {name!r} to the sizes of a call that names it: weights depend on it, so it is one number in all views"
        raise SpecError(Problem(code="MV206", text=text, hint=hint))


@attrs.frozen
class SkippedEvaluator:
    """An evaluator that does not apply to this model, and why. It is shown, never dropped silently."""

    path: str
    name: str
    reason: str


@attrs.frozen(kw_only=True, repr=False)
class ModelPlan(Displayed):
    """What :func:`medvlp_core.planning.compose.compose` makes of a recipe without a problem.

    ``components`` is keyed by path (``model.fusion``), ``losses`` (numbers and ramps) by full term name (``gla.global``), both
    in the order in which they run. ``calls`` are the calls of a training step, ``warnings`` what a user should see before it
    starts.
    """

    name: str
    components: dict[str, PlannedComponent]
    inputs: InputSpec
    init_from: InitSpec
    train: TrainSpec
    losses: dict[str, Weight]
    calls: tuple[Call, ...]
    skipped: tuple[SkippedEvaluator, ...]
    warnings: tuple[Problem, ...]
    wiring: Wiring = attrs.field(eq=False)
    recipe: Node = attrs.field(eq=False)
    host: Host = attrs.field(eq=False)

    def display(self) -> tuple[str, list[DisplayRow]]:
        """The components, the losses with their weights, the length of the training, and what to look at."""
        parts = [one for one in self.components.values() if one.role is not Role.EVALUATOR]
        rows = [(one.path.removeprefix("model."), one.name) for one in parts]
        if self.losses:
            weighted = (name if weight == 1 else f"{weight_text(weight)} x {name}" for name, weight in self.losses.items())
            rows.append(("losses", ", ".join(weighted)))
        train = self.train
        length = f"{train.steps:,} steps" if train.steps is not None else f"{train.epochs:g} epochs"
        rows.append(("train", f"{length} of batch size {train.batch_size}, {train.precision}"))
        if self.evaluators:
            rows.append(("evaluators", ", ".join(self.evaluators)))
        if self.skipped:
            rows.append(("skipped", ", ".join(one.path.rpartition(".")[2] for one in self.skipped)))
        if self.warnings:
            rows.append(("warnings", ", ".join(one.code for one in self.warnings)))
        return f"ModelPlan {self.name}", rows

    def of_role(self, role: Role) -> dict[str, PlannedComponent]:
        """The components of one role by slot name, in the order of the recipe."""
        return {one.slot: one for one in self.components.values() if one.role is role}

    def one(self, role: Role) -> PlannedComponent | None:
        """The component of a role that has a single slot, or None."""
        return next(iter(self.of_role(role).values()), None)

    @property
    def evaluators(self) -> dict[str, PlannedComponent]:
        """The evaluators that apply to this model, by slot name."""
        skipped = {one.path for one in self.skipped}
        return {slot: one for slot, one in self.of_role(Role.EVALUATOR).items() if one.path not in skipped}

    def dims(self, path: str) -> SolvedDims:
        """The solved sizes of a component (or of ``inputs``), as builders get them."""
        names: Iterable[str] = INPUT_SIZES if path == INPUTS else self.components[path].sizes
        like = path if path == INPUTS else self.components[path].like
        found = {name: self.wiring.table.value(Symbol(like, name)) for name in sorted(names)}
        return SolvedDims(path, {name: number for name, number in found.items() if number is not None}, names)

    def input_plan(self, calls: Iterable[Call] | None = None) -> InputPlan:
        """What batches must hold for some calls, by default those of a training step."""
        taken = (key for call in (self.calls if calls is None else calls) for _, key in call.takes)
        return input_plan(self.wiring, taken)

    def port_size(self, port: str, axis: int) -> int | None:
        """The number along an axis of a port, whichever view it is given in; None if the plan does not know it."""
        key = self.wiring.key(port)
        return None if key is None else self.wiring.sizes(key)[axis]

    def free_symbols(self, path: str) -> tuple[str, ...]:
        """The sizes of a component that no number is known for: facts that are known once something is built or fitted."""
        named = {name for contract in self.components[path].calls.values() for name in contract.symbols()}
        return tuple(sorted(named & set(self.components[path].sizes) - set(self.dims(path))))

    @property
    def after(self) -> dict[str, Rows]:
        """What components are handed after a step, by path: arguments of ``after_step``, and the ports that they come from."""
        return rows_by_component(self.wiring, self.calls)

    @property
    def trained_calls(self) -> frozenset[Call]:
        """The calls that get a gradient: those that losses need; but no follower, and nothing that only followers need."""
        found: set[Call] = set()
        pending = [call for call in self.calls if self.components[call.path].calls[call.name].losses]
        while pending:
            call = pending.pop()
            if call not in found and self.components[call.path].follows is None:
                found.add(call)
                pending += [source for _, key in call.takes if (source := self.wiring.call_of(key)) is not None]
        return frozenset(found)

    @property
    def contrast(self) -> StepContrast | None:
        """How the calls of a step are divided where contrasts are over the whole step; None if they are not, or there are none."""
        return step_contrast(self.wiring, self.calls, self.trained_calls) if self.train.contrast_over == "step" else None

    @property
    def unused(self) -> frozenset[str]:
        """Parts of the model that no loss leads to."""
        used = {self.components[call.path].owner for call in self.trained_calls}
        return frozenset(path for path in self.components if path.startswith("model.") and path not in used)

    def source(self, path: str) -> Position | None:
        """Where the value at ``path`` (``model.fusion.heads``) was written; None = it is the default."""
        node = self.recipe.get(path)
        return node.position if node is not None else None

    def resolved(self) -> dict[str, Any]:
        """The whole recipe as plain data: every default written out, every bundle pinned."""
        document: dict[str, Any] = {"medvlp": FORMAT_VERSION, "requires": self._requirements()}
        for path, component in self.components.items():
            block = document
            *parents, slot = path.split(".")
            for parent in parents:
                block = block.setdefault(parent, {})
            block[slot] = _resolved_block(component)
        for term, weight in self.losses.items():
            slot, _, name = term.partition(".")
            document.setdefault("losses", {}).setdefault(slot, {})[name] = weight_data(weight)
        document["inputs"] = plain(self.inputs)
        if self.init_from.path is not None:
            document["init_from"] = plain(self.init_from, has_absolute_paths=True)
        document["train"] = plain(self.train)
        return document

    def resolved_yaml(self) -> str:
        """:meth:`resolved` as YAML; planning it again gives an equal plan."""
        return dump_yaml(self.resolved())

    def _requirements(self) -> list[str]:
        spaces = sorted({component.name.partition(".")[0] for component in self.components.values()})
        versions = {plugin.namespace: plugin.version for plugin in self.host.plugins}
        return [f"{space}=={versions[space]}" if versions.get(space) else space for space in spaces]


def _resolved_block(component: PlannedComponent) -> dict[str, Any]:
    tied: dict[str, Any] = {name: dict(value) for name in ("needs", "views") if (value := getattr(component, name))}
    if component.opens is not None and component.of != CLEAN:
        tied["of"] = component.of
    if component.each is not None:
        tied["each"] = component.each
    if component.shares is not None:
        return {"share": component.shares, **tied}
    if component.follows is not None:
        return {"follow": component.follows, "decay": component.decay, **tied}
    return {"use": component.name, **tied, **plain(component.spec, has_absolute_paths=True)}


def plain(block: SpecBlock, *, has_absolute_paths: bool = False) -> dict[str, Any]:
    """The parameters of a block as plain data (lists instead of tuples), paths made absolute if wanted.

    Example:
        >>> plain(TrainSpec(steps=5))["betas"]
        [0.9, 0.95]
    """
    params = params_of(type(block))
    values = {param.name: getattr(block, param.name) for param in params}
    if has_absolute_paths:
        values |= {
            param.name: os.path.abspath(values[param.name]) for param in params if param.rules.is_path and values[param.name]
        }
    return {name: plain_value(value) for name, value in values.items()}


def plain_value(value: Any) -> Any:
    """The value of a parameter as plain data: texts as a recipe has to write them, lists instead of tuples, mappings of blocks."""
    if isinstance(value, SpecBlock):
        return plain(value)
    if isinstance(value, str):
        return escape_references(value)
    if isinstance(value, tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_value(item) for key, item in value.items()}
    return value
