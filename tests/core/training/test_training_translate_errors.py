"""What torch raises when memory or another process is gone becomes a message; everything else stays what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvlp_core.errors import MedvlpError, Problem
from medvlp_core.training.translate_errors import translate_errors


def test_a_full_memory_is_a_message_with_the_way_on() -> None:
    with pytest.raises(MedvlpError) as caught, translate_errors(Path("runs/a")):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB")
    assert str(caught.value) == (
        "[MV606] the memory of the device is full: CUDA out of memory\n"
        "    hint: `medvlp estimate` tells what a step needs and which setting would make it fit; "
        "train.activation_checkpointing=true changes no number, so that runs/a, once begun, can be resumed with it"
    )


def test_a_lost_process_is_found_behind_the_message_about_a_component() -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:65155")
    with pytest.raises(MedvlpError, match="MV607") as caught, translate_errors(Path("run")):
        raise MedvlpError(Problem(code="MV306", text="model.fusion failed")) from lost
    assert "MV306" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), MedvlpError(Problem(code="MV306", text="model.fusion failed"))])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translate_errors(Path("run")):
        raise error
    assert caught.value is error
