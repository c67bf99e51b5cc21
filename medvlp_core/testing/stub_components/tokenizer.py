"""A tokenizer of whole words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from medvlp_core import DataError, Dims, Problem
from medvlp_core.data import EncodedTexts, Tokenizer
from medvlp_core.testing.stub_components.specs import SPECIALS, WordsSpec

_FILE = "words.json"
_WORD = re.compile(r"\w+|[^\w\s]")


class Words(Tokenizer):
    """``[CLS] word word ...``, lower case; a punctuation mark is a word. What is not in the vocabulary is [UNK].

    With ``end_of_text`` [EOS] stands at the end of every text, of one that was cut too.
    """

    def __init__(self, spec: WordsSpec, dims: Dims) -> None:
        self.spec = spec
        self._words: list[str] | None = None

    def fit(self, texts: Iterable[str]) -> None:
        """Take the most frequent words, equally frequent ones by the alphabet."""
        counts = Counter(word for text in texts for word in _split(text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        self._words = [*self.spec.specials, *ranked[: self.spec.size - len(self.spec.specials)]]

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise; an empty text is nothing but [CLS].

        Raises:
            DataError: there is no vocabulary yet (MV506).
        """
        numbers = {word: number for number, word in enumerate(self._fitted())}
        end = [number for token, number in self.spec.specials.items() if token == "[EOS]"]
        found = [list(_WORD.finditer(text))[: self.spec.max_length - 1 - len(end)] for text in texts]
        rows = [[SPECIALS["[CLS]"], *(numbers.get(one[0].lower(), SPECIALS["[UNK]"]) for one in words), *end] for words in found]
        spans = [[(-1, -1), *(one.span() for one in words), *((-1, -1) for _ in end)] for words in found]
        longest = max(map(len, rows))
        lengths = torch.tensor([len(row) for row in rows])
        positions = torch.arange(longest).expand(len(rows), -1)
        is_valid = positions < lengths[:, None]
        return EncodedTexts(
            token_ids=torch.tensor([row + [SPECIALS["[PAD]"]] * (longest - len(row)) for row in rows]),
            text_is_valid=is_valid,
            word_ids=torch.where(positions < lengths[:, None] - len(end), positions - 1, -1),
            token_spans=torch.tensor([row + [(-1, -1)] * (longest - len(row)) for row in spans]),
        )

    def text(self, token_ids: Sequence[int]) -> str:
        """The words with blanks between them."""
        words = self._fitted()
        return " ".join(words[number] for number in token_ids if len(self.spec.specials) <= number < len(words))

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The words; rows of the table that the vocabulary does not fill are ``[unused]``."""
        words = self._fitted()
        return [words[number] if number < len(words) else "[unused]" for number in token_ids]

    def dims(self) -> dict[str, int]:
        """Rows of the table, and the id of [MASK]."""
        return {"V": self.spec.size, "Mask": SPECIALS["[MASK]"]}

    @property
    def end_id(self) -> int | None:
        """The id of [EOS], if texts end with one."""
        return self.spec.specials.get("[EOS]")

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
        if (
            not isinstance(words, list)
            or words[: len(self.spec.specials)] != list(self.spec.specials)
            or len(words) > self.spec.size
        ):
            raise _error(f"{folder / _FILE} is no vocabulary of at most {self.spec.size} words")
        self._words = words

    def _fitted(self) -> list[str]:
        if self._words is None:
            raise _error("kit.words has no vocabulary yet")
        return self._words


def _split(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _error(text: str) -> DataError:
    return DataError(Problem(code="MV506", text=text, hint="call fit(texts) or load(folder) of a saved vocabulary"))
