"""Reads one block of a recipe into its spec: names, types and ranges, every problem with its place. Light."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from medvlp_core.errors import Diagnostics, did_you_mean, nearest
from medvlp_core.recipe.load import Node
from medvlp_core.spec.component import Param, SpecBlock, blocks_in, params_of, type_name

B = TypeVar("B", bound=SpecBlock)


class _WrongType(Exception):
    """A node does not have the declared type; carries the offending node."""

    def __init__(self, node: Node, expected: str) -> None:
        super().__init__(expected)
        self.node, self.expected = node, expected


#: What people type by habit, from other libraries, and the names that parameters have here.
HABITS: dict[str, tuple[str, ...]] = {
    "accum": ("gradient_accumulation_steps",),
    "accumulate": ("gradient_accumulation_steps",),
    "accumulate_grad_batches": ("gradient_accumulation_steps",),
    "amp": ("precision",),
    "bs": ("batch_size",),
    "checkpointing": ("activation_checkpointing",),
    "clip_grad_norm": ("max_grad_norm",),
    "clip_norm": ("max_grad_norm",),
    "d_model": ("width",),
    "dim_feedforward": ("hidden",),
    "embed_dim": ("width", "dim"),
    "dataloader_workers": ("num_workers",),
    "epoch": ("epochs",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "grad_accum": ("gradient_accumulation_steps",),
    "grad_checkpointing": ("activation_checkpointing",),
    "grad_clip": ("max_grad_norm",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "gradient_clip_val": ("max_grad_norm",),
    "hidden_size": ("width",),
    "img_size": ("image_size",),
    "iterations": ("steps",),
    "iters": ("steps",),
    "last_batch": ("drop_last",),
    "lr": ("learning_rate",),
    "lr_scheduler": ("schedule",),
    "mask_ratio": ("image_ratio", "ratio"),
    "max_epochs": ("epochs",),
    "max_steps": ("steps",),
    "n_heads": ("heads",),
    "nhead": ("heads",),
    "num_epochs": ("epochs",),
    "num_heads": ("heads",),
    "num_layers": ("layers", "depth"),
    "num_steps": ("steps",),
    "per_device_train_batch_size": ("batch_size",),
    "random_seed": ("seed",),
    "recompute": ("activation_checkpointing",),
    "scheduler": ("schedule",),
    "warmup": ("warmup_fraction",),
    "warmup_ratio": ("warmup_fraction",),
    "warmup_steps": ("warmup_fraction",),
    "wd": ("weight_decay",),
    "workers": ("num_workers",),
}


def habit_hint(key: str, offered: Iterable[str]) -> str | None:
    """The name that ``key`` has here, if it is a habit of other libraries.

    Example:
        >>> habit_hint("lr", ["learning_rate", "steps"])
        "it is called 'learning_rate' here"
    """
    names = [name for name in HABITS.get(key.lower(), ()) if name in set(offered)]
    return f"it is called {names[0]!r} here" if names else None


#: What a component's block says beside its parameters: what it is, and how it is tied to the rest of the model.
RESERVED = ("use", "share", "follow", "decay", "needs", "views", "of", "each")


def read_block(kind: type[B], node: Node, *, path: str, diagnostics: Diagnostics, who: str | None = None) -> B | None:
    """Make a ``kind`` from the mapping ``node``; the keys of :data:`RESERVED` are no parameters of a component.

    Adds MV102 (unknown name), MV103 (type), MV104 (range, dependence between fields), MV105 (missing) to ``diagnostics`` and
    returns None if there was any. ``who`` is the component's name for the messages.
    """
    label = f"{path} ({who})" if who else path
    if not isinstance(node.value, dict):
        diagnostics.add("MV103", f"{label}: expected a mapping, found {describe(node)}", at=node.position)
        return None
    params = {param.name: param for param in params_of(kind)}
    given = {key: child for key, child in node.value.items() if key not in RESERVED or who is None}
    is_good = True
    for key, child in given.items():
        if key not in params:
            offered = [name for name, param in params.items() if not param.rules.deprecated]
            hint = habit_hint(key, offered) or did_you_mean(key, offered, what="parameters")
            diagnostics.add("MV102", f"{label} has no parameter {key!r}", at=child.key_position or child.position, hint=hint)
            is_good = False
    values: dict[str, Any] = {}
    for name, param in params.items():
        if name in given:
            is_good &= _read_param(param, given[name], values, label, diagnostics)
        elif param.is_required:
            text = f"{label} needs {name} ({param.type_name}): {param.rules.help}"
            diagnostics.add("MV105", text, at=node.key_position or node.position, hint=f"add `{name}: ...`")
            is_good = False
    if not is_good:
        return None
    for name, child in given.items():
        rules = params[name].rules
        if rules.deprecated and values[name] != params[name].default:
            text = f"{label}: the parameter {name} is deprecated"
            diagnostics.add("MV109", text, at=child.key_position or child.position, hint=rules.deprecated, is_warning=True)
    block = kind(**values)
    for field, text, advice in block.problems():
        at = given[field].position if field in given else node.position
        diagnostics.add("MV104", f"{label}: {text}", at=at, hint=advice)
        is_good = False
    return block if is_good else None


def _read_param(param: Param, node: Node, values: dict[str, Any], label: str, diagnostics: Diagnostics) -> bool:
    if (kind := blocks_in(param.type)) is not None and isinstance(node.value, dict):
        label = f"{label}.{param.name}"
        blocks = {
            key: read_block(kind, child, path=f"{label}[{key!r}]", diagnostics=diagnostics) for key, child in node.value.items()
        }
        values[param.name] = blocks
        return None not in blocks.values()
    try:
        value = convert(param.type, node)
    except _WrongType as wrong:
        text = f"{label}: {param.name} must be {param.type_name}, found {describe(wrong.node)}"
        diagnostics.add("MV103", text, at=wrong.node.position, hint=_type_hint(wrong))
        return False
    is_good = True
    for name, item, found in _items(param.name, value, node):
        if violation := param.rules.violation(item):
            near = nearest(item, map(str, param.rules.one_of)) if param.rules.one_of and isinstance(item, str) else None
            hint = f"did you mean '{near}'?" if near else None
            diagnostics.add("MV104", f"{label}: {name}={found.value!r} {violation}", at=found.position, hint=hint)
            is_good = False
    values[param.name] = value
    return is_good


def _items(name: str, value: Any, node: Node) -> Iterator[tuple[str, Any, Node]]:
    """What the rules of a parameter are about: each item of lists and mappings, else the value itself. With its name and node."""
    if isinstance(node.value, list):
        for number, (item, child) in enumerate(zip(value, node.value, strict=True)):
            yield from _items(f"{name}[{number}]", item, child)
    elif isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from _items(f"{name}.{key}", value[key], child)
    else:
        yield name, value, node


def convert(kind: Any, node: Node) -> Any:
    """The value of ``node`` as ``kind``: int, float (takes an int), str, bool, ``X | None``, ``tuple[X, ...]``, ``dict[str, X]``.

    Raises:
        _WrongType: it is something else.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    value = node.value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return convert(next(arg for arg in args if arg is not type(None)), node)
    if origin is tuple:
        if not isinstance(value, list):
            raise _WrongType(node, type_name(kind))
        return tuple(convert(args[0], child) for child in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise _WrongType(node, "mapping")
        return {key: convert(args[1], child) for key, child in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise _WrongType(node, type_name(kind))
    return value


def describe(node: Node) -> str:
    """What stands at a node, for a message: ``str 'eight'``, ``a list``, ``null``."""
    value = node.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else f"{type(value).__name__} {value!r}"


def _type_hint(wrong: _WrongType) -> str | None:
    value = wrong.node.value
    if isinstance(value, str) and wrong.expected == "bool":
        return "write true or false"
    if isinstance(value, str) and wrong.expected.split(" ")[0] in ("int", "float") and _is_number(value):
        return f"write {value} without quotes"
    if isinstance(value, float) and value.is_integer() and wrong.expected.startswith("int"):
        return f"write {int(value)}"
    if wrong.expected.startswith("list of") and not isinstance(value, (dict, list)):
        return f"write a list: [{value}]"
    if value is None:
        return "null is not allowed here; leave the parameter out to get its default"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
