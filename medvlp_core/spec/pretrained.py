"""Whether a model is built only to be filled with saved weights: then nobody needs the files that it once began with. Light."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FOLLOW: ContextVar[bool] = ContextVar("medvlp_skip_pretrained_init", default=False)


def is_skipping_pretrained_init() -> bool:
    """Whether all weights are about to be replaced, so that specs and builders need no checkpoint files.

    Example:
        >>> is_skipping_pretrained_init()
        False
    """
    return _FOLLOW.get()


@contextmanager
def skip_pretrained_init() -> Iterator[None]:
    """Plan and build a saved model in this context; a trained model works where its first weights are gone."""
    token = _FOLLOW.set(True)
    try:
        yield
    finally:
        _FOLLOW.reset(token)
