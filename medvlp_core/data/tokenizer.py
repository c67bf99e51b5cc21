"""What a tokenizer is: it learns a vocabulary, turns texts into ids and ids into words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from medvlp_core.nn.batch import TokenBatch
from medvlp_core.spec.contract import Dims


class EncodedTexts(NamedTuple):
    """What a tokenizer makes of a batch of texts: what a text encoder reads, and where each token stands in its text.

    Shape:
        token_ids: (B, L) int64.
        text_is_valid: (B, L) bool, True = real token, not padding.
        word_ids: (B, L) int64, index of the word the token belongs to; -1 at special tokens and padding.
        token_spans: (B, L, 2) int64, start and end (exclusive) of the token in the untouched text, in characters, without blanks
            around it; -1 at special tokens and padding.
    """

    token_ids: Tensor
    text_is_valid: Tensor
    word_ids: Tensor
    token_spans: Tensor

    @property
    def tokens(self) -> TokenBatch:
        """What a text encoder reads: all but the spans."""
        return TokenBatch(self.token_ids, self.text_is_valid, self.word_ids)


class Tokenizer(ABC):
    """Text to ids. Position 0 is [CLS]; texts are cut to the maximum length."""

    @abstractmethod
    def __init__(self, spec: Any, dims: Dims) -> None: ...

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary from the training texts; does nothing for a tokenizer that came trained."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise; padded to the longest text of the batch, at most the maximum length."""

    @abstractmethod
    def text(self, token_ids: Sequence[int]) -> str:
        """Readable text of some ids: pieces joined to words, special tokens (padding and the unknown word too) left out."""

    @abstractmethod
    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The printable form of each id; continuation pieces start with ``##``."""

    @abstractmethod
    def dims(self) -> dict[str, int]:
        """Actual numbers for the symbols of its contract: ``V`` and ``Mask`` once fitted."""

    @property
    def end_id(self) -> int | None:
        """The id of the token that ends a text; None where texts end without one, as here."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what :meth:`load` needs."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Restore a saved vocabulary; afterwards it counts as fitted.

        Raises:
            DataError: files are missing or broken (MV506).
        """
