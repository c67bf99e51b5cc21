"""``medvlp explain RECIPE``: what a recipe amounts to, and where every value comes from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from medvlp_core.cli.common import add_recipe_arguments, columns, number, plan_or_complain
from medvlp_core.cli.explain_json import explanation_data
from medvlp_core.cli.folding import print_folded
from medvlp_core.cli.json_output import add_json_argument, print_json
from medvlp_core.cli.plan_parts import beneficiaries, blocks_of, losses_of
from medvlp_core.describe.code import forward_source
from medvlp_core.describe.wording import yaml_value
from medvlp_core.planning.contrast import mixes_rows
from medvlp_core.planning.losses import weight_text
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import INPUTS, Call, PlannedComponent, PortKey
from medvlp_core.spec.component import params_of
from medvlp_core.spec.contract import CLEAN, Symbol
from medvlp_core.spec.roles import Role

#: A value with more characters than this stands outside the columns.
LONG_VALUE = 32


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, and whether to build it."""
    add_recipe_arguments(parser)
    parser.add_argument("--build", action="store_true", help="also build the model (imports torch) and count its parameters")
    parser.add_argument("--code", action="store_true", help="print the forward pass as plain Python")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan section by section."""
    plan = plan_or_complain(arguments)
    if plan is None:
        return 1
    if arguments.json:
        trainable = count_parameters(plan) if arguments.build else None
        content = {**explanation_data(plan), "trainable_parameters": trainable}
        print_json("explain", problems=plan.warnings, recipe=arguments.recipe, **content)
        return 0
    if arguments.code:
        print(forward_source(plan), end="")
        return 0
    print_folded(explanation(plan))
    counts = parameter_lines(plan) if arguments.build else ["  not counted; --build builds the model and counts them"]
    print_folded(["", "trainable parameters", *counts])
    return 0


def explanation(plan: ModelPlan) -> Iterator[str]:
    """All sections that need no torch."""
    yield f"recipe {plan.name}"
    yield ""
    yield "components"
    for component in plan.components.values():
        if component.role is not Role.EVALUATOR:
            yield from component_lines(plan, component)
            if dims := dimension_text(plan, component.path):
                yield f"      dimensions: {dims}"
    for path, block in blocks_of(plan).items():
        yield f"  {path}"
        yield from value_lines(plan, path, block)
    yield ""
    yield "one training step"
    yield from call_lines(plan)
    yield ""
    yield "losses"
    rows = [(term, f"weight {weight_text(weight)}", origin(plan, f"losses.{term}")) for term, weight in plan.losses.items()]
    yield from columns(rows)
    if plan.evaluators or plan.skipped:
        yield ""
        yield "evaluators"
        reasons = {one.path: one.reason for one in plan.skipped}
        for component in plan.of_role(Role.EVALUATOR).values():
            yield from component_lines(plan, component)
            if component.path in reasons:
                yield f"      skipped: {reasons[component.path]}"


def origin(plan: ModelPlan, path: str) -> str:
    """Where a value was written, or ``default``."""
    position = plan.source(path)
    return str(position) if position is not None else "default"


def value_lines(plan: ModelPlan, path: str, block: object) -> list[str]:
    """Every parameter of a block: name, value, origin. A long value does not push the other origins aside."""
    names = [param.name for param in params_of(type(block))]
    values = {name: yaml_value(getattr(block, name)) for name in names}
    widest = max((len(value) for value in values.values() if len(value) <= LONG_VALUE), default=0)
    return columns([(name, f"{values[name]:<{widest}}  {origin(plan, f'{path}.{name}')}") for name in names], indent="      ")


def component_lines(plan: ModelPlan, component: PlannedComponent) -> Iterator[str]:
    """A component, where it comes from, and its parameters."""
    distribution = plan.host.components.distribution(component.name)
    brought = f"  (from {distribution})" if distribution else ""
    yield f"  {component.path}: {component.name}{brought}"
    yield from value_lines(plan, component.path, component.spec)


def dimension_text(plan: ModelPlan, path: str) -> str:
    """``Di=128, Dt=128 (model.text_encoder), free: B, L``: numbers with the component they originate from."""
    parts = []
    for name, value in plan.dims(path).items():
        source = plan.wiring.table.source(Symbol(path, name))
        parts.append(f"{name}={value}" + (f" ({source})" if source and source != path else ""))
    if free := plan.free_symbols(path):
        parts.append(f"free: {', '.join(free)}")
    return ", ".join(parts)


def call_lines(plan: ModelPlan) -> Iterator[str]:
    """The calls of a training step in the order in which they run, with the tensors that they take and give."""
    after, first_calls = plan.after, {call.path: call for call in reversed(plan.calls)}
    yield f"  inputs give {shape(plan, PortKey('image'))}" + _target(plan)
    for index, call in enumerate(plan.calls, start=1):
        yield f"  {index}. {call}"
        for argument, key in call.takes:
            name = f"{argument} = " if argument != key.name else ""
            yield f"       takes {name}{shape(plan, key)} from {plan.wiring.provider(key).path}"
        yield from (f"       gives {shape(plan, key)}" for key in call.gives)
        for argument, key in after.get(call.path, ()) if call == first_calls[call.path] else ():
            yield f"       after the step: after_step({argument} = {shape(plan, key)}, of all records)"
        if losses := losses_of(plan, call):
            yield f"       losses {', '.join(losses)}"
        if over := contrasted_over(plan, call):
            yield f"       mixes {over}"
        if found := beneficiaries(plan, call):
            yield f"       for {', '.join(found)}"
    yield from view_lines(plan)


def contrasted_over(plan: ModelPlan, call: Call) -> str:
    """Over which rows a call that mixes rows runs; empty for other calls, and where a micro-batch is the whole step."""
    if not mixes_rows(plan.wiring, call):
        return ""
    if plan.contrast is not None:
        return "all rows of a step, of all micro-batches and processes"
    return "the rows of one micro-batch, of all processes" if plan.train.gradient_accumulation_steps > 1 else ""


def view_lines(plan: ModelPlan) -> Iterator[str]:
    """The views, what each was made from, and what it costs: the components that run once more for it."""
    views = dict.fromkeys(call.view for call in plan.calls)
    if set(views) <= {CLEAN}:
        return
    yield "  views"
    for name in views:
        view = plan.wiring.views[name]
        made = "" if view.parent is None else f", of {view.parent}" + (f", opened by {view.opener}" if view.opener else "")
        passes = dict.fromkeys(call.path for call in plan.calls if call.view == name and call.path != view.opener)
        repeated = [path for path in passes if any(call.path == path and call.view != name for call in plan.calls)]
        again = f"; run in another view too: {', '.join(repeated)}" if repeated and name != CLEAN else ""
        yield f"    {name}{made}: {len(passes)} component{'' if len(passes) == 1 else 's'}{again}"


def _target(plan: ModelPlan) -> str:
    return f" and {shape(plan, PortKey('image_target'))}" if "Ht" in plan.dims(INPUTS) else ""


def shape(plan: ModelPlan, key: PortKey) -> str:
    """``image_tokens (B, Nv, Di=128) @masked, masked ones dropped``."""
    spec = plan.wiring.provider(key).spec
    named = zip(spec.dims, plan.wiring.sizes(key), strict=True)
    dims = (str(dim) if size is None or dim == size else f"{dim}={size}" for dim, size in named)
    text = f"{PortKey.parse(plan.wiring.short(key)).port} ({', '.join(dims)})"
    text += f" {spec.dtype}" if spec.dtype != "float" else ""
    text += f" @{key.view}" if key.view != CLEAN else ""
    return text + (f", masked ones {spec.layout}" if spec.layout else "")


def count_parameters(plan: ModelPlan) -> dict[str, int]:
    """Build the model and count, component by component. A vocabulary that must be learned is learned from the data first."""
    from medvlp_core.model.build import build_model, build_run, build_tokenizer

    tokenizer = plan.one(Role.TOKENIZER)
    if tokenizer is not None and "V" in plan.free_symbols(tokenizer.path):
        model = build_run(plan, seed=plan.train.seed).model
    else:
        if tokenizer is not None:
            build_tokenizer(plan)
        model = build_model(plan, seed=plan.train.seed)
    found = {}
    for path, component in plan.components.items():
        if path.startswith("model.") and component.shares is None:
            part = model.part(path)
            found[path] = sum(one.numel() for one in part.parameters() if one.requires_grad)
    return found | {"total": sum(one.numel() for one in model.parameters() if one.requires_grad)}


def parameter_lines(plan: ModelPlan) -> list[str]:
    """:func:`count_parameters` in columns."""
    rows = [(path, number(count)) for path, count in count_parameters(plan).items()]
    width = max(len(count) for _, count in rows)
    return columns([(path, count.rjust(width)) for path, count in rows])
