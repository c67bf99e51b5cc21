"""Recipe to plan: names, parameters, wiring and losses, with all problems at once and without torch. Light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from packaging.requirements import InvalidRequirement, Requirement

from medvlp_core.errors import Diagnostics, did_you_mean
from medvlp_core.planning.components import read_components
from medvlp_core.planning.connect import connect
from medvlp_core.planning.contrast import check_contrast
from medvlp_core.planning.losses import read_losses
from medvlp_core.planning.missing import why_missing
from medvlp_core.planning.parameter_names import check_names
from medvlp_core.planning.parameters import B, describe, read_block
from medvlp_core.planning.plan import FORMAT_VERSION, ModelPlan, SkippedEvaluator
from medvlp_core.planning.wiring import Call, Missing, PlannedComponent, Wiring
from medvlp_core.recipe.load import Change, Node, Override, load_recipe, parse_overrides
from medvlp_core.spec.blocks import InitSpec, InputSpec, TrainSpec
from medvlp_core.spec.contract import CLEAN
from medvlp_core.spec.host import Host
from medvlp_core.spec.roles import HEADS, Role

BLOCKS = ("medvlp", "requires", "data", "tokenizer", "inputs", "model", "losses", "init_from", "train", "evaluators")


def plan_recipe(source: str | Path, overrides: Sequence[Change] = (), *, host: Host) -> ModelPlan:
    """Load and plan a recipe. An override that is a text is what ``--set`` takes.

    Raises:
        SpecError: with every problem of the recipe.

    Example:
        >>> plan_recipe("mpma:small").one(Role.FUSION).name  # doctest: +SKIP
        'mpma.memory_fusion'
    """
    diagnostics = Diagnostics()
    plan = load_and_compose(source, parse_overrides(overrides, diagnostics), host, diagnostics)
    diagnostics.raise_errors()
    assert plan is not None
    return plan


def load_and_compose(source: str | Path, overrides: Sequence[Override], host: Host, diagnostics: Diagnostics) -> ModelPlan | None:
    """Load and check a recipe; the plan, or None if ``diagnostics``, where all problems and warnings go, has errors."""
    recipe = load_recipe(source, presets=host.presets, overrides=overrides, diagnostics=diagnostics, install_hint=host.install_hint)
    return compose(recipe, host, diagnostics, name=recipe_name(source))


def recipe_name(source: str | Path) -> str:
    """A short name for run folders: ``mpma_small`` of ``examples/configs/mpma_small.yaml``, ``mpma-small`` of a preset."""
    return Path(source).stem if Path(source).suffix else str(source).replace(":", "-")


def compose(recipe: Node, host: Host, diagnostics: Diagnostics, *, name: str = "recipe") -> ModelPlan | None:
    """Check a recipe completely; the plan, or None if ``diagnostics`` has errors."""
    if not isinstance(recipe.value, dict):
        if not diagnostics.has_errors:
            diagnostics.add("MV002", f"a recipe is a mapping, found {describe(recipe)}", at=recipe.position)
        return None
    _check_blocks(recipe, host, diagnostics)
    components, broken = read_components(recipe, host, diagnostics)
    inputs = _core_block(recipe, "inputs", InputSpec, diagnostics)
    init_from = _core_block(recipe, "init_from", InitSpec, diagnostics)
    train = _core_block(recipe, "train", TrainSpec, diagnostics)
    heads = [one for one in components.values() if one.losses]
    wiring, calls = connect(components, broken, inputs, recipe, diagnostics)
    if train is not None and not broken:
        check_names(recipe, train, components, diagnostics)
    if train is not None and train.contrast_over == "step" and not diagnostics.has_errors:
        check_contrast(wiring, calls, diagnostics)
    if not heads and not broken & set(HEADS):
        hint = "add a block under model.alignments or model.decoders"
        diagnostics.add("MV105", "nothing to train: no component of the model emits a loss", at=recipe.position, hint=hint)
    terms = [f"{head.slot}.{term}" for head in heads for term in head.losses]
    losses = read_losses(recipe, terms, diagnostics, is_complete=not broken & set(HEADS))
    skipped = () if diagnostics.has_errors else _skip_evaluators(components, wiring, diagnostics)
    if Role.DATA not in {one.role for one in components.values()} | broken:
        text = "the recipe has no `data` block: it can be checked and explained, and not trained"
        diagnostics.add("MV105", text, at=recipe.position, hint="add `data: {use: standard.manifest, path: ...}`", is_warning=True)
    _warn_unused(components, calls, diagnostics)
    if diagnostics.has_errors or inputs is None or init_from is None or train is None:
        return None
    if init_from.path is not None and not Path(init_from.path).exists():
        # A trained model goes on working without the weights that it began with, so this is no error yet.
        text = f"init_from: there is no {init_from.path}, so that training could not begin"
        diagnostics.add("MV509", text, at=(recipe.get("init_from.path") or recipe).position, is_warning=True)
    plan = ModelPlan(
        name=name,
        components=components,
        inputs=inputs,
        init_from=init_from,
        train=train,
        losses=losses,
        calls=calls,
        skipped=skipped,
        warnings=diagnostics.warnings,
        wiring=wiring,
        recipe=recipe,
        host=host,
    )
    diagnostics.problems += host.call("medvlp_check_plan", plan=plan, diagnostics=diagnostics)
    return None if diagnostics.has_errors else attrs.evolve(plan, warnings=diagnostics.warnings)


# --------------------------------------------------------------------------------------------------------- names and blocks


def _check_blocks(recipe: Node, host: Host, diagnostics: Diagnostics) -> None:
    assert isinstance(recipe.value, dict)
    for key, node in recipe.value.items():
        if key not in BLOCKS:
            hint = did_you_mean(key, BLOCKS, what="blocks")
            diagnostics.add("MV102", f"a recipe has no block {key!r}", at=node.key_position or node.position, hint=hint)
    version = recipe.get("medvlp")
    if version is None:
        diagnostics.add(
            "MV008", "the format version is missing", at=recipe.position, hint=f"add `medvlp: {FORMAT_VERSION}` at the top"
        )
    elif isinstance(version.value, bool) or version.value != FORMAT_VERSION:
        text = f"format version {FORMAT_VERSION} is supported, found {describe(version)}"
        diagnostics.add("MV008", text, at=version.position)
    if (requires := recipe.get("requires")) is not None:
        _check_requires(requires, host, diagnostics)


def _check_requires(node: Node, host: Host, diagnostics: Diagnostics) -> None:
    if not isinstance(node.value, list):
        hint = "write `requires: [mpma]` or `requires: ['mpma>=0.1']`"
        diagnostics.add("MV103", f"requires must be a list of bundles, found {describe(node)}", at=node.position, hint=hint)
        return
    versions = {plugin.namespace: plugin.version for plugin in host.plugins}
    for child in node.value:
        try:
            wanted = Requirement(child.value if isinstance(child.value, str) else "")
        except InvalidRequirement:
            text = f"requires: {describe(child)} is not a bundle name with an optional version"
            diagnostics.add("MV103", text, at=child.position, hint="write 'mpma' or 'mpma>=0.1,<1'")
            continue
        if wanted.name not in versions:
            text = f"this recipe requires the bundle {wanted.name!r}, and it is not loaded"
            diagnostics.add("MV108", text, at=child.position, hint=host.install_hint(wanted.name))
        elif versions[wanted.name] and not wanted.specifier.contains(versions[wanted.name], prereleases=True):
            text = f"this recipe requires {wanted}, and version {versions[wanted.name]} is installed"
            diagnostics.add("MV108", text, at=child.position, hint=host.install_hint(wanted.name))


def _core_block(recipe: Node, path: str, kind: type[B], diagnostics: Diagnostics) -> B | None:
    node = recipe.get(path)
    if node is None or node.value is None:
        node = Node(value={}, position=recipe.position, key_position=None)
    return read_block(kind, node, path=path, diagnostics=diagnostics)


# ---------------------------------------------------------------------------------------------------------------- evaluators


def _skip_evaluators(
    components: Mapping[str, PlannedComponent], wiring: Wiring, diagnostics: Diagnostics
) -> tuple[SkippedEvaluator, ...]:
    """Evaluators whose ports this model does not give: an ablation without alignment has no retrieval, and says so."""
    skipped = []
    for component in components.values():
        if component.role is not Role.EVALUATOR:
            continue
        missing: dict[str, Missing] = {}
        for contract in component.calls.values():
            for argument, need in contract.needs.items():
                found = wiring.source(component, argument, need, CLEAN)
                if isinstance(found, Missing) and (found.candidates or not need.is_optional):
                    missing[argument] = found
        if not missing:
            continue
        several = {argument: one.candidates[0] for argument, one in missing.items() if one.candidates}
        reason = f"needs {why_missing(wiring, missing.values())}" + ("" if several else ", which this model does not give")
        hint = None
        if several:
            hint = f"say which one it means: `needs: {{{', '.join(f'{name}: {port}' for name, port in several.items())}}}`"
        skipped.append(SkippedEvaluator(component.path, component.name, reason))
        text = f"{component.label} is skipped: {reason}"
        diagnostics.add("MV207", text, at=component.position(), hint=hint, is_warning=True)
    return tuple(skipped)


def _warn_unused(components: Mapping[str, PlannedComponent], calls: Sequence[Call], diagnostics: Diagnostics) -> None:
    """Parts that no loss leads to: they would be built and never trained."""
    if diagnostics.has_errors:
        return
    used = {components[call.path].owner for call in calls} | {call.path for call in calls}
    for component in components.values():
        if component.role.info.is_module and component.role not in HEADS and component.path not in used:
            text = f"{component.label} is not used: no loss needs what it gives"
            diagnostics.add("MV208", text, at=component.position(), hint="remove it, or add a head that needs it", is_warning=True)
