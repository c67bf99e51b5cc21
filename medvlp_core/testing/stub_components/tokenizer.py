"""A tokenizer of whole words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from medvlp_core import DataError, Dims, Problem
from medvlp_core.data import Tokenizer
from medvlp_core.nn import TokenBatch
from medvlp_core.testing.stub_components.specs import SPECIALS, WordsSpec

_FILE = "words.json"
_WORD = re.compile(r"\w+|[^\w\s]")


class Words(Tokenizer):
    """``[CLS] word word ...``, lower case; a punctuation mark is a word. What is not in the vocabulary is [UNK]."""

    def __init__(self, spec: WordsSpec, dims: Dims) -> None:
        self.spec = spec
        self._words: list[str] | None = None

    def fit(self, texts: Iterable[str]) -> None:
        """Take the most frequent words, equally frequent ones by the alphabet."""
        counts = Counter(word for text in texts for word in _split(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        self._words = [*SPECIALS, *ranked[: self.spec.size - len(SPECIALS)]]

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise; an empty text is nothing but [CLS].

        Raises:
            DataError: there is no vocabulary yet (MV506).
        """
        numbers = {word: number for number, word in enumerate(self._fitted())}
        rows = [[numbers.get(word, SPECIALS["[UNK]"]) for word in _split(text)] for text in texts]
        rows = [[SPECIALS["[CLS]"], *row][: self.spec.max_length] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        longest = max(map(len, rows))
        positions = torch.arange(longest).expand(len(rows), -1)
        is_valid = positions < lengths[:, None]
        return TokenBatch(
            token_ids=torch.tensor([row + [SPECIALS["[PAD]"]] * (longest - len(row)) for row in rows]),
            text_is_valid=is_valid,
            word_ids=torch.where(is_valid, positions - 1, -1),
        )

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The words; rows of the table that the vocabulary does not fill are ``[unused]``."""
        words = self._fitted()
        return [words[number] if number < len(words) else "[unused]" for number in token_ids]

    def dims(self) -> dict[str, int]:
        """Rows of the table, and the id of [MASK]."""
        return {"V": self.spec.size, "Mask": SPECIALS["[MASK]"]}

    def save(self, folder: Path) -> None:
        """Write the list of words."""
        (folder / _FILE).write_text(json.dumps(self._fitted()), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read the list of words.

        Raises:
            DataError: the file is missing or broken, or has more words than the table (MV506).
        """
        try:
            words = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _error(f"{folder / _FILE} cannot be read: {error}") from error
        if not isinstance(words, list) or words[: len(SPECIALS)] != list(SPECIALS) or len(words) > self.spec.size:
            raise _error(f"{folder / _FILE} is no vocabulary of at most {self.spec.size} words")
        self._words = words

    def _fitted(self) -> list[str]:
        if self._words is None:
            raise _error("kit.words has no vocabulary yet")
        return self._words


def _split(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _error(text: str) -> DataError:
    return DataError(Problem(code="MV506", text=text, hint="call fit(texts) or load(folder) of a saved vocabulary"))
