"""Plan to objects: data source, tokenizer, model. Imports torch and the components' modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from medvlp_core.data.order import seed_of
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.data.records import DataSource
from medvlp_core.data.tokenizer import Tokenizer
from medvlp_core.data.transforms import InputGeometry
from medvlp_core.display import Displayed, DisplayRow
from medvlp_core.errors import Diagnostics, MedvlpError, PluginError, Problem, SpecError, describe_error
from medvlp_core.model.composed import ComposedModel
from medvlp_core.model.freezing import freeze
from medvlp_core.nn.interfaces import HasAfterStep
from medvlp_core.planning.dimensions import check_constraints
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import INPUTS, PlannedComponent
from medvlp_core.plugins.import_string import load_object
from medvlp_core.spec.contract import Symbol
from medvlp_core.spec.pretrained import skip_pretrained_init
from medvlp_core.spec.roles import BUILD_ORDER, Role


@attrs.define(kw_only=True, repr=False)
class BuiltRun(Displayed):
    """Everything that a training run needs."""

    plan: ModelPlan
    pipeline: InputPipeline
    model: ComposedModel

    def display(self) -> tuple[str, list[DisplayRow]]:
        """The components that were built, and how large the model is."""
        parts = (one for one in self.plan.components.values() if one.role is not Role.EVALUATOR)
        rows = [(one.path.removeprefix("model."), one.name) for one in parts]
        rows.append(("parameters", f"{sum(one.numel() for one in self.model.parameters()):,}"))
        return f"BuiltRun {self.plan.name}", rows

    def fresh_model(self, seed: int) -> ComposedModel:
        """The same architecture with new random weights, for baselines. Leaves torch's random state as it was.

        Random also where the recipe begins with pretrained weights.
        """
        with skip_pretrained_init():
            return build_model(self.plan, seed=seed)


def interface_of(role: Role) -> type:
    """The abstract class that components of a role implement."""
    found: type = load_object(role.info.interface, owner=f"role {role}")
    return found


def build_component(plan: ModelPlan, component: PlannedComponent) -> Any:
    """Build one component as ``Class(spec, dims)`` and check it against its role and its declared dimensions.

    Raises:
        SpecError: the build function failed (MV303), or the object's own dimensions differ from the plan (MV206).
        PluginError: the object does not implement its role, or lacks the method of a call that its spec declares (MV302).
    """
    declaration = type(component.spec).declaration
    origin = f"{declaration.build} from {plan.host.components.distribution(component.name) or 'no distribution'}"
    try:
        kind = load_object(declaration.build, owner=component.label, install=declaration.install)
    except PluginError as error:
        raise PluginError(
            *(attrs.evolve(one, position=component.position(), details=(*one.details, origin)) for one in error.problems)
        ) from error
    try:
        built = kind(component.spec, plan.dims(component.path))
    except MedvlpError:
        raise
    except Exception as error:
        problem = Problem(
            code="MV303",
            text=f"{component.label} could not be built: {describe_error(error)}",
            position=component.position(),
            details=(origin,),
        )
        raise SpecError(problem) from error
    interface = interface_of(component.role)
    if not isinstance(built, interface):
        text = f"{component.label}: {declaration.build} does not implement {interface.__name__}"
        hint = f"derive it from {interface.__module__}.{interface.__name__}"
        raise PluginError(Problem(code="MV302", text=text, position=component.position(), details=(origin,), hint=hint))
    if missing := missing_methods(component.role, component.calls, built):
        text = f"{component.label}: {declaration.build} has no method {', '.join(missing)}, which its calls() declares"
        hint = "define it, or leave the call out of calls()"
        raise PluginError(Problem(code="MV302", text=text, position=component.position(), details=(origin,), hint=hint))
    if any(contract.after for contract in component.calls.values()) and not isinstance(built, HasAfterStep):
        text = f"{component.label}: its contract says what it gets after a step, and {declaration.build} has no method after_step"
        raise PluginError(Problem(code="MV302", text=text, position=component.position(), details=(origin,)))
    if component.role is not Role.TOKENIZER:
        adopt_dims(plan, component, built)
    return built


def missing_methods(role: Role, calls: Iterable[str], built: Any) -> tuple[str, ...]:
    """The declared calls that are no methods of a built module, or of its class."""
    names = [name for name in calls if name != "fused"] if role.info.is_module else []
    return tuple(name for name in names if not callable(getattr(built, name, None)))


def adopt_dims(plan: ModelPlan, component: PlannedComponent, built: Any) -> None:
    """Enter the sizes that a built object reports (``dims()``) into the symbol table and check all constraints again.

    Raises:
        SpecError: a reported size differs from the plan (MV206), or a constraint now fails (MV203).
    """
    if not hasattr(built, "dims"):
        return
    diagnostics = Diagnostics()
    for name, number in built.dims().items():
        conflict = plan.wiring.table.bind(Symbol(component.path, name), number, component.path)
        if conflict:
            source = plan.wiring.components.get(str(conflict.first_source))
            text = f"{component.label}: {name} is {number} in the built object, and {conflict.first} in the plan"
            details = (f"{conflict.first} comes from {source.label} ({source.position()})",) if source else ()
            diagnostics.add("MV206", text, at=component.position(), details=details)
    for other in plan.components.values():
        check_constraints(plan.wiring, other, diagnostics)
    diagnostics.raise_errors()


def build_source(plan: ModelPlan) -> DataSource:
    """Build the data source.

    Raises:
        SpecError: the recipe has no data block (MV105).
    """
    component = plan.one(Role.DATA)
    if component is None:
        hint = "add `data: {use: standard.manifest, path: ...}` or another data component"
        raise SpecError(Problem(code="MV105", text="the recipe has no `data` block", hint=hint))
    found: DataSource = build_component(plan, component)
    return found


def build_tokenizer(plan: ModelPlan, *, folder: Path | None = None, texts: list[str] | None = None) -> Tokenizer:
    """Build the tokenizer, then load its vocabulary from a run's ``folder`` or learn it from training ``texts``.

    Raises:
        SpecError: the recipe has no tokenizer block (MV105).
        DataError: the saved vocabulary is missing or broken (MV506).
    """
    component = plan.one(Role.TOKENIZER)
    if component is None:
        hint = "add `tokenizer: {use: standard.wordpiece}`"
        raise SpecError(Problem(code="MV105", text="the recipe has no `tokenizer` block", hint=hint))
    tokenizer = build_component(plan, component)
    if folder is not None:
        tokenizer.load(folder)
    elif texts is not None:
        tokenizer.fit(texts)
    adopt_dims(plan, component, tokenizer)
    found: Tokenizer = tokenizer
    return found


def build_model(plan: ModelPlan, *, seed: int) -> ComposedModel:
    """Build the model with weights drawn from ``seed``. The tokenizer must be built before, for the vocabulary's size.

    Each component draws from a seed of its own, which ``seed`` and its path give: adding a part does not change how another one
    begins. Torch's random state stays as it was. Parts that no loss leads to are frozen: they get no gradient, for which several
    processes would wait. What ``train.freeze`` names is frozen too.

    Raises:
        SpecError: a component cannot be built (MV303), or ``train`` names parameters that there are not (MV102).
    """
    parts: dict[str, nn.Module] = {}
    for role in BUILD_ORDER:
        for component in plan.of_role(role).values():
            if component.shares is None:
                # what follows another component gets the weights of that one
                with _own_seed(seed, component.path), skip_pretrained_init() if component.follows else nullcontext():
                    parts[component.path] = build_component(plan, component)
    fixed = {id(one) for part in parts.values() for one in part.parameters() if not one.requires_grad}
    for path in plan.unused & set(parts):
        parts[path].requires_grad_(False)
    model = ComposedModel(plan, parts)
    model.fixed_parameters = frozenset(name for name, one in model.named_parameters() if id(one) in fixed)
    model.frozen_modules = freeze(model, plan)
    with _own_seed(seed, "hooks"):
        plan.host.observe("medvlp_model_built", plan=plan, model=model)
    return model


@contextmanager
def _own_seed(seed: int, owner: str) -> Iterator[None]:
    """Draws inside depend on a seed and an owner alone; afterwards torch's random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("weights", seed, owner))  # not torch.manual_seed, which would seed GPUs too
        yield


def image_geometry(plan: ModelPlan) -> InputGeometry:
    """The image sizes that the model asks for, as the composer solved them. Needs no data."""
    dims = plan.dims(INPUTS)
    return InputGeometry(
        channels=dims["C"],
        height=dims["H"],
        width=dims["W"],
        target_height=dims.get("Ht"),
        target_width=dims.get("Wt"),
    )


def build_pipeline(plan: ModelPlan, source: DataSource, tokenizer: Tokenizer | None) -> InputPipeline:
    """The input pipeline of a training step, with all sizes solved from the model."""
    return InputPipeline(source, tokenizer, plan.inputs, plan.input_plan(), num_workers=plan.train.num_workers)


def build_run(plan: ModelPlan, *, seed: int, tokenizer_folder: Path | None = None) -> BuiltRun:
    """Build data, tokenizer and model; the tokenizer learns from the training texts unless a saved one is given."""
    source = build_source(plan)
    component = plan.one(Role.TOKENIZER)
    tokenizer = build_tokenizer(plan, folder=tokenizer_folder) if component is not None else None
    pipeline = build_pipeline(plan, source, tokenizer)
    if tokenizer_folder is None and component is not None:
        pipeline.fit_tokenizer()
        adopt_dims(plan, component, tokenizer)
    return BuiltRun(plan=plan, pipeline=pipeline, model=build_model(plan, seed=seed))
