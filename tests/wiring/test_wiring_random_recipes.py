"""Check means runs: random recipes of random components, judged by the check, by running them, and by a slow solver.

In the usual suite some hundreds of recipes; with ``-m long`` more than 5,000.
"""

from __future__ import annotations

import inspect
import random
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml
from random_recipes import random_recipe, stub_host, tree
from slow_solver import Refused, Solver

from medvlp_core.describe import forward_source
from medvlp_core.errors import Diagnostics
from medvlp_core.model.build import build_model, build_tokenizer
from medvlp_core.planning import dimensions, fields, wiring
from medvlp_core.planning.compose import compose
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.plugins.host import PluginHost


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return stub_host()


def planned(recipe: dict[str, Any], host: PluginHost) -> tuple[ModelPlan | None, Diagnostics]:
    diagnostics = Diagnostics()
    return compose(tree(recipe), host, diagnostics), diagnostics


def verdict(recipe: dict[str, Any], host: PluginHost) -> tuple[str | None, set[tuple[str, str, str]]]:
    """What the slow solver says: why it refuses, or the calls of a training step."""
    contracts = {name: host.components[name].CALLS for name in host.components if name.startswith("rnd.")}  # type: ignore[attr-defined]
    solver = Solver(recipe, contracts)
    try:
        solver.judge()
    except Refused as refused:
        return str(refused), set()
    return None, solver.training


def batch(plan: ModelPlan, rows: int, length: int) -> dict[str, torch.Tensor]:
    """What the input pipeline would make: images and texts, and the fields that somebody takes."""
    ids = torch.ones(rows, length, dtype=torch.int64)
    found = {"image": torch.randn(rows, 1, 8, 8), "token_ids": ids, "text_is_valid": ids.bool(), "word_ids": ids - 1}
    for port in plan.input_plan().ports - {*found, "progress"}:
        provider = plan.wiring.batch[wiring.PortKey(port)]
        sizes = [rows, *(2 if size is None else size for size in plan.wiring.sizes(wiring.PortKey(port))[1:])]
        found[port] = torch.ones(sizes, dtype=torch.bool if provider.spec.dtype == "bool" else torch.float32)
    return found


def run(plan: ModelPlan) -> None:
    """Build the plan and make one step of it, as the model does it and as ``explain --code`` writes it."""
    build_tokenizer(plan)
    model = build_model(plan, seed=0).train()
    given = batch(plan, 3, 7)
    output = model(given)
    assert torch.isfinite(output.loss)
    output.loss.backward()
    space: dict[str, Any] = {}
    exec(forward_source(plan), space)
    loss, losses = space["forward"](model, given)
    assert torch.equal(loss, output.loss)
    assert losses.keys() == output.losses.keys()


def openings(recipe: dict[str, Any]) -> set[str]:
    """What the recipe uses of what a fixed table of stages could not do."""
    model = recipe["model"]
    parts = list(model.get("parts", {}).values())
    blocks = [*parts, *(one for key in ("alignments", "decoders", "maskings") for one in model.get(key, {}).values())]
    found = {"field"} if recipe["data"]["use"] == "rnd.data_0" else set()
    found |= {"part"} if any("use" in one for one in parts) else set()
    found |= {key for key in ("share", "follow") if any(key in one for one in parts)}
    found |= {"view"} if "maskings" in model or any("views" in one for one in blocks) else set()
    return found | ({"call"} if any(one.get("needs") for one in blocks) else set())


def judge(seeds: range, host: PluginHost, *, is_built: bool) -> tuple[Counter[bool], Counter[tuple[str, bool]]]:
    """Check every recipe and compare with the solver and with a run."""
    halves: Counter[bool] = Counter()
    used: Counter[tuple[str, bool]] = Counter()
    for seed in seeds:
        recipe = random_recipe(random.Random(seed), host)
        plan, diagnostics = planned(recipe, host)
        refusal, calls = verdict(recipe, host)
        text = yaml.safe_dump(recipe, sort_keys=False)
        assert (plan is not None) == (refusal is None), f"seed {seed}: {diagnostics.errors} against {refusal!r}\n{text}"
        assert plan is not None or diagnostics.errors, f"seed {seed}: refused without a code\n{text}"
        assert all(problem.position is not None for problem in diagnostics.errors)
        assert plan is None or {(plan.components[one.path].slot, one.name, one.view) for one in plan.calls} == calls, text
        if plan is not None and is_built:
            run(plan)
        halves[plan is not None] += 1
        used.update((opening, plan is not None) for opening in openings(recipe))
    return halves, used


def test_what_check_accepts_runs_and_what_it_refuses_has_a_code(host: PluginHost) -> None:
    judge(range(150), host, is_built=True)


def test_the_slow_solver_agrees_and_both_halves_use_every_opening(host: PluginHost) -> None:
    halves, used = judge(range(1000, 1250), host, is_built=False)
    assert 0.3 <= halves[True] / halves.total() <= 0.7
    for opening in ("field", "part", "share", "follow", "view", "call"):
        for is_accepted in (True, False):
            assert used[opening, is_accepted] >= 0.05 * halves[is_accepted], (opening, is_accepted)


@pytest.mark.long
def test_thousands_of_recipes(host: PluginHost) -> None:
    judge(SHOWING, host, is_built=True)
    halves, _ = judge(range(10_000, 16_000), host, is_built=True)
    assert 0.3 <= halves[True] / halves.total() <= 0.7


# ------------------------------------------------------------------------------------------------------------- planted faults

#: Seeds of recipes that must show a fault. Without one they are judged right, as the long run sees: else any fault would be found.
SHOWING = range(2000, 2900)

#: Module, what stands there, what a slip would have written.
FAULTS = {
    "views do not fall back": (wiring, "            at = self.views[at].parent", "            at = None"),
    "an offer never falls back": (wiring, "if parent is not None and component.opens is None and", "if False and"),
    "offers run for the clean view only": (wiring, "needs_view = CLEAN if contract.losses else view", "needs_view = CLEAN"),
    "needs are not re-pointed": (wiring, "component.needs.get(argument, need.port or argument)", "(need.port or argument)"),
    "views are not bound": (wiring, "name = component.views.get(formal, formal)", "name = formal"),
    "the first of several is taken": (wiring, "if len(calls) == 1:", "if calls:"),
    "a call without its needs is made": (wiring, "        if missing:\n            return tuple(missing)\n", ""),
    "the shape of masked tokens always holds": (
        wiring, "if spec.port == key.name and (spec.when is None or spec.when in filled)]", "if spec.port == key.name]"
    ),
    "a masking's own view feeds it": (wiring, "needs_view = self.views[view].parent or CLEAN", "needs_view = view"),
    "calls come before what they need": (
        wiring, "            for _, source in call.takes:\n                visit(source)\n            calls[call] = None\n",
        "            calls[call] = None\n            for _, source in call.takes:\n                visit(source)\n",
    ),
    "dropped tokens have no identity": (dimensions, 'provider.spec.layout == "dropped" and', "False and"),
    "nobody asks who knows what is absent": (fields, "if not taken or any(", "if True or any("),
    "types are not compared": (dimensions, "if need.dtype != give.dtype:", "if False:"),
    "dimensions are not compared": (dimensions, "for conflict in wiring.table.unify_dims(left, right):", "for conflict in ():"),
    "sizes are not tied over calls": (dimensions, "conflict = wiring.table.unify(common, local)", "conflict = None"),
}  # fmt: skip


@pytest.fixture
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the functions and methods of a module by those of its text with a fault in it."""
    module, right, wrong = FAULTS[request.param]
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{request.param}: {right!r} stands {source.count(right)} times in {module.__name__}"
    space: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(source.replace(right, wrong), module.__file__, "exec"), space)
    changed = [
        (old, new)
        for old, new in _functions(module, space)
        if old.__code__.co_code != new.__code__.co_code or old.__code__.co_consts != new.__code__.co_consts
    ]
    assert changed, request.param
    for old, new in changed:  # in place: other modules have imported them by name
        monkeypatch.setattr(old, "__code__", new.__code__)


def _functions(module: Any, space: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for name, value in list(vars(module).items()):
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            yield value, space[name]
        elif name == "Wiring" and module is wiring:
            methods = {key: one for key, one in vars(value).items() if isinstance(one, types.FunctionType)}
            yield from ((one, getattr(space[name], key)) for key, one in methods.items() if hasattr(space[name], key))


@pytest.mark.parametrize("planted", FAULTS, indirect=True)
def test_a_fault_in_the_wiring_is_found(planted: None, host: PluginHost) -> None:
    try:
        judge(SHOWING, host, is_built=True)
    except Exception:  # a wrong verdict, other calls than needed, or a run that dies
        return
    pytest.fail("900 recipes did not show it")
