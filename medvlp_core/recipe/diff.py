"""Recipes and other plain documents, compared value by value. Light."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def leaves(document: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and what stands there.

    Example:
        >>> dict(leaves({"train": {"steps": 3, "betas": [0.9, 0.95]}}))
        {'train.steps': 3, 'train.betas': [0.9, 0.95]}
    """
    if not isinstance(document, Mapping):
        yield path, document
        return
    for key, child in document.items():
        yield from leaves(child, f"{path}.{key}" if path else str(key))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Path, old value and new value, as JSON, wherever two documents differ; a value that is not there is ``nothing``.

    Example:
        >>> list(differences({"train": {"steps": 3, "seed": 0}}, {"train": {"steps": 4, "seed": 0, "ema_decay": 0.9}}))
        [('train.steps', '3', '4'), ('train.ema_decay', 'nothing', '0.9')]
    """
    before, after = dict(leaves(old)), dict(leaves(new))
    for path in {**before, **after}:
        if path not in before or path not in after or before[path] != after[path]:
            yield path, _shown(before, path), _shown(after, path)


def _shown(values: Mapping[str, Any], path: str) -> str:
    return json.dumps(values[path], ensure_ascii=False) if path in values else "nothing"
