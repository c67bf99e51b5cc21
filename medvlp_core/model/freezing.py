"""Which parameters ``train.parameters`` and ``train.freeze`` name, and what is frozen for good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from medvlp_core.errors import Diagnostics, nearest
from medvlp_core.planning.parameter_names import name_positions
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.spec.blocks import ParameterRule


def rule_of(name: str, rules: Mapping[str, ParameterRule]) -> ParameterRule:
    """How a parameter is trained: of several rules that match its name, scales multiply and the longest freeze counts.

    Example:
        >>> rules = {"a.*": ParameterRule(lr_scale=0.1), "*.bias": ParameterRule(lr_scale=2, freeze_until=0.5)}
        >>> rule_of("a.bias", rules)
        ParameterRule(lr_scale=0.2, freeze_until=0.5)
    """
    scale, until = 1.0, 0.0
    for pattern, rule in rules.items():
        if fnmatchcase(name, pattern):
            scale, until = scale * rule.lr_scale, max(until, rule.freeze_until)
    return ParameterRule(lr_scale=scale, freeze_until=until)


def freeze(model: nn.Module, plan: ModelPlan) -> tuple[str, ...]:
    """Do what ``train.freeze`` says; the names of the outermost modules that it freezes wholly, which are in
    evaluation mode then.

    Raises:
        SpecError: a name of ``train.freeze`` or ``train.parameters`` matches no parameter (MV102), or no parameter is left to
            train in the first step (MV104).
    """
    diagnostics = Diagnostics()
    named = dict(model.named_parameters())
    matched: set[int] = set()
    last = plan.recipe.position
    for where, pattern, at in name_positions(plan.recipe, plan.train):
        found = [name for name in named if fnmatchcase(name, pattern)]
        if not found:
            text = f"{where}: no parameter of the model has the name {pattern!r}"
            diagnostics.add("MV102", text, at=at, hint=_near(pattern, named))
        if where == "train.freeze":
            for name in found:
                named[name].requires_grad_(False)
            matched |= {id(named[name]) for name in found}
        last = at
    rules = plan.train.parameters
    trained = [rule_of(name, rules).freeze_until for name, one in named.items() if one.requires_grad]
    if not diagnostics.has_errors and (matched or rules):
        if not trained:
            hint = "leave a part that is trained, such as a head"
            diagnostics.add("MV104", "train.freeze: nothing is left to train", at=last, hint=hint)
        elif all(trained):
            text = "train.parameters: nothing is trained in the first step, because every parameter has a freeze_until"
            diagnostics.add("MV104", text, at=last, hint="leave a part that is trained from the beginning")
    diagnostics.raise_errors()
    modules = tuple(_wholly_frozen(model, matched))
    for name in modules:
        model.get_submodule(name).eval()
    return modules


def _wholly_frozen(model: nn.Module, matched: set[int]) -> Iterable[str]:
    """The outermost modules without a parameter to train, if some of theirs are among ``matched``."""
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        is_frozen = any(id(one) in matched for one in parameters) and not any(one.requires_grad for one in parameters)
        if name and is_frozen and not is_inside:
            found.append(name)
    return found


def _near(pattern: str, names: Iterable[str]) -> str:
    """The name that was probably meant, or the names where the pattern goes wrong."""
    words = [name.split(".") for name in names]
    if near := nearest(pattern.replace("*", ""), dict.fromkeys(".".join(one[:count]) for one in words for count in range(1, 9))):
        return f"did you mean '{near}{'' if near in set(names) else '.*'}'?"
    shown = list(names)[:6]
    return f"names are such as {', '.join(shown)}"
