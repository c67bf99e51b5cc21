"""The forward pass of a plan as the plain Python that one would have written by hand. Light."""

from __future__ import annotations

import keyword
from collections.abc import Collection

from medvlp_core.planning.losses import Ramp, Weight
from medvlp_core.planning.plan import ModelPlan
from medvlp_core.planning.wiring import Call, PortKey
from medvlp_core.spec.contract import CLEAN

#: The names that the printed function uses itself.
OWN = frozenset({"batch", "forward", "loss", "losses", "model"})


def forward_source(plan: ModelPlan) -> str:
    """A function ``forward(model, batch)`` that returns the weighted loss and all terms, to the bit what the model computes.

    One call a line, in the order of ``plan.calls``. ``batch`` is what the training loop gives: what the
    input pipeline makes, and ``progress``, a scalar. ``model`` is the composed model.
    """
    names: dict[Call, str] = {}
    for call in plan.calls:
        names[call] = _name(call, taken=names.values())
    lines, trained = [], plan.trained_calls
    for call in plan.calls:
        line = f"{names[call]} = {_module(plan, call)}({_arguments(plan, call, names)})"
        if call.folds:
            line = f"{names[call]} = run_each({_module(plan, call)}, {call.folds!r}, {_arguments(plan, call, names)})"
        lines += [line] if call in trained else ["with torch.no_grad():", f"    {line}"]
    terms = {
        f"{plan.components[call.path].slot}.{term}": f"{names[call]}.losses[{term!r}]"
        for call in plan.calls
        for term in plan.components[call.path].calls[call.name].losses
    }
    lines += ["losses = {", *(f"    {name!r}: {value}," for name, value in terms.items()), "}"]
    lines.append(f"loss = {' + '.join(f'{_weight(plan.losses[name])} * losses[{name!r}]' for name in terms)}")
    lines.append("return loss, losses")
    imports = ["import torch"] if "with torch.no_grad():" in lines else []
    imports += ["from medvlp_core.model import run_each"] if any(call.folds for call in plan.calls) else []
    imports += ["", ""] if imports else []
    return "\n".join([*imports, "def forward(model, batch):", *(f"    {line}" for line in lines), ""])


def _weight(weight: Weight) -> str:
    return weight.code('batch["progress"]') if isinstance(weight, Ramp) else repr(weight)


def _name(call: Call, taken: Collection[str]) -> str:
    """``image_encoder_masked``, ``text_encoder_embed``, ``gla``; with ``_`` behind it where the word has another meaning."""
    parts = [call.path.rpartition(".")[2], "" if call.name == "forward" else call.name, "" if call.view == CLEAN else call.view]
    if call.gives and not call.gives[0].slot:  # a masking, whose view says the same
        parts.pop()
    name = "_".join(filter(None, parts))
    while name in OWN or keyword.iskeyword(name) or name in taken:
        name += "_"
    return name


def _returned(call: Call, key: PortKey) -> str:
    return key.name.removeprefix("fused_") if call.name == "fused" else key.name


def _module(plan: ModelPlan, call: Call) -> str:
    block, _, slot = plan.components[call.path].owner.removeprefix("model.").partition(".")
    method = "" if call.method == "forward" else f".{call.method}"
    return f"model.{block}[{slot!r}]{method}" if slot else f"model.{block}{method}"


def _arguments(plan: ModelPlan, call: Call, names: dict[Call, str]) -> str:
    def value(key: PortKey) -> str:
        source = plan.wiring.call_of(key)
        if source is None:
            return f'batch["{key}"]'
        access = {"tensor": "", "tuple": f".{key.name}", "output": f".ports[{_returned(source, key)!r}]"}[source.returns]
        return names[source] + access

    return ", ".join(f"{argument}={value(key)}" for argument, key in call.takes)
