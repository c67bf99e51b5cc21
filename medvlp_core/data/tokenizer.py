"""What a tokenizer is: it learns a vocabulary, turns texts into ids and ids into words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from medvlp_core.nn.batch import TokenBatch
from medvlp_core.spec.contract import Dims


class Tokenizer(ABC):
    """Text to ids. Position 0 is [CLS]; texts are cut to the maximum length."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None: ...

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from the training texts; does nothing for a tokenizer that came trained."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise; padded to the longest text of the batch, at most the maximum length."""

    @abstractmethod
    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The printable form of each id; continuation pieces start with ``##``."""

    @abstractmethod
    def dims(self) -> dict[str, int]:
        """Actual numbers for the symbols of its contract: ``V`` and ``Mask`` once fitted."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what :meth:`load` needs."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Restore a saved vocabulary; afterwards it counts as fitted.

        Raises:
            DataError: files are missing or broken (MV506).
        """
