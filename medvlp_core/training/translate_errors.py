"""Messages for what torch raises when the memory is full or another training process is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed

from medvlp_core.errors import MedvlpError, Problem
from medvlp_core.runtime.distributed import rank
from medvlp_core.training.run_folder import resume_command

#: How gloo says that the process at the other end is gone; NCCL has exceptions of its own.
GONE = ("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe")


@contextmanager
def translate_errors(folder: Path) -> Iterator[None]:
    """Train in this context; ``folder`` is that of the run.

    Raises:
        MedvlpError: memory is full (MV606), another process is gone (MV607), or a parameter gets no gradient (MV601).
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
        hint = "`medvlp estimate` tells what a step needs and which setting would make it fit"
        hint += f"; train.activation_checkpointing=true changes no number, so that {folder}, once begun, can be resumed with it"
        raise MedvlpError(Problem(code="MV606", text=f"the memory of the device is full: {first}", hint=hint)) from error
    except Exception as error:
        if str(error).startswith("Expected to have finished reduction"):  # of DistributedDataParallel
            text = "with train.parallel: ddp every trained parameter needs a gradient in every step, and some get none"
            hint = "`medvlp conform BUNDLE` finds such parameters; parallel: fsdp trains with them"
            raise MedvlpError(Problem(code="MV601", text=text, hint=hint)) from error
        if not _is_another_gone(error):
            raise
        text = f"training process {rank()} cannot continue, for another one is gone"
        hint = f"the other one's message says why; a run that has begun is resumed with: {resume_command(folder)}"
        raise MedvlpError(Problem(code="MV607", text=text, hint=hint)) from error


def _is_another_gone(error: BaseException | None) -> bool:
    """Whether an exchange failed, also where a component or our own message about it stands between."""
    while error is not None:
        if isinstance(error, (distributed.DistBackendError, distributed.DistNetworkError)):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in GONE):
            return True
        error = error.__cause__
    return False
