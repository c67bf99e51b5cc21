"""A folded axis: a component that knows B rows, run over the images of a study or the sentences of a report (``each:``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from medvlp_core.nn.batch import Output


def run_each(method: Callable[..., Any], folds: tuple[str, ...], **arguments: Tensor) -> Any:
    """Call ``method`` with B * V rows, and give back what it returns with the axis V behind B.

    ``folds`` are the arguments that have the axis; all others are repeated for each of its entries. An entry with no valid
    position at all (padding) gets its first one, so that no attention is over nothing; who reads the result goes by the validity of
    the field.

    Shape:
        an argument of ``folds`` (B, V, ...), any other (B, ...), results (B, V, ...).
    """
    rows, count = arguments[folds[0]].shape[:2]
    given = {
        name: value.flatten(0, 1) if name in folds else value.repeat_interleave(count, dim=0) for name, value in arguments.items()
    }
    for name, value in given.items():
        if name.endswith("is_valid") and value.ndim == 2:
            first = value[:, :1] | ~value.any(dim=1, keepdim=True)
            given[name] = value.clone().index_copy_(1, value.new_zeros(1).long(), first)
    return _unfolded(method(**given), rows, count)


def _unfolded(found: Any, rows: int, count: int) -> Any:
    if isinstance(found, Tensor):
        return found.unflatten(0, (rows, count))
    if isinstance(found, Output):
        return Output(ports={name: _unfolded(value, rows, count) for name, value in found.ports.items()}, losses=found.losses)
    if hasattr(found, "_asdict"):
        return type(found)(*(value if value is None else _unfolded(value, rows, count) for value in found))
    return found  # what is wrong with it is said by the model
