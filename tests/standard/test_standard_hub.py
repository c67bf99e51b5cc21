"""Loading from the hub: quiet, and quick without a network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import are_progress_bars_disabled
from huggingface_hub.utils import logging as hub_logging
from medvlp_standard.hub import hub_answers, quiet_hub
from medvlp_standard.specs.text_encoders import HfTextSpec
from medvlp_standard.text_encoders import HfText
from transformers import BertConfig, BertModel
from transformers.utils import logging as model_logging


def state() -> tuple[Any, ...]:
    levels = hub_logging.get_verbosity(), model_logging.get_verbosity()
    return (*levels, are_progress_bars_disabled(), model_logging.is_progress_bar_enabled())


def test_what_was_set_comes_back_after_an_error_too() -> None:
    before = state()
    with quiet_hub():
        assert state()[2:] == (True, False)
        assert not hub_logging.get_logger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
    assert state() == before
    with pytest.raises(ZeroDivisionError), quiet_hub():
        1 / 0  # noqa: B018
    assert state() == before


class Refused(HfHubHTTPError):
    """The hub's "no such file", without a response."""

    def __init__(self) -> None:
        Exception.__init__(self, "404")


@pytest.mark.parametrize(("error", "answers"), [(None, True), (Refused(), True), (ConnectionError(), False), (OSError(), False)])
def test_a_refusal_is_an_answer_and_silence_is_none(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, answers: bool
) -> None:
    def ask(url: str, **options: Any) -> None:
        assert "acme/radbert" in url
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    assert hub_answers("acme/radbert") is answers


def test_loading_weights_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_position_embeddings=16
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(tmp_path / "model")
    capfd.readouterr()
    HfText(HfTextSpec(model=str(tmp_path / "model")), {"V": 30, "L": 8})
    assert capfd.readouterr() == ("", "")
