"""Loading from the Hugging Face hub: no retry lines, no progress bars, and a quick answer where there is no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT = 10.0  # seconds for the one request that tells whether the hub answers


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence warnings and progress bars of huggingface_hub and transformers; what was set before comes back."""
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as model_logging

    loggers = (hub_logging, model_logging)
    levels = [one.get_verbosity() for one in loggers]
    had_hub_bars, had_model_bars = not are_progress_bars_disabled(), model_logging.is_progress_bar_enabled()
    for one in loggers:
        one.set_verbosity_error()
    disable_progress_bars()
    model_logging.disable_progress_bar()
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.set_verbosity(level)
        if had_hub_bars:
            enable_progress_bars()
        if had_model_bars:
            model_logging.enable_progress_bar()


def hub_answers(model: str) -> bool:
    """Whether the hub answers a question about ``model``, be it with "no such model".

    transformers asks several times with growing pauses, about a minute in all; this is one request without retries.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(model, "config.json"), timeout=TIMEOUT)
    except HfHubHTTPError:
        return True  # an answer: the model is private, or has no such file
    except Exception:  # what "no network" raises depends on the HTTP library of the huggingface_hub version
        return False
    return True
