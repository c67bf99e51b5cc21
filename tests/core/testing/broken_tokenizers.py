"""Tokenizers that are wrong in one way each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from broken_bundle import broken

from medvlp_core.data.tokenizer import EncodedTexts
from medvlp_core.errors import DataError
from medvlp_core.testing.stub_components.specs import SPECIALS, WordsSpec
from medvlp_core.testing.stub_components.tokenizer import Words, _split

UNKNOWN, MASK = SPECIALS["[UNK]"], SPECIALS["[MASK]"]


@broken(WordsSpec, caught_by="starts_with_a_class_token", says="texts start with the ids [1, 2], expected one and the same, [CLS]")
class TwoStarts(Words):
    """An empty text starts with [UNK]."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        for row, text in enumerate(texts):
            batch.token_ids[row, 0] = batch.token_ids[row, 0] if text else UNKNOWN
        return batch


@broken(WordsSpec, caught_by=("starts_with_a_class_token", "pads_on_the_right"), says="a real token stands behind padding")
class PadsLeft(Words):
    """Padding stands in front; then position 0 is padding, too."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        order = batch.text_is_valid.int().argsort(dim=1, stable=True)
        rows = torch.arange(len(order))[:, None]
        return EncodedTexts(*(tensor[rows, order] for tensor in batch))


@broken(WordsSpec, caught_by="pads_on_the_right", says="the batch is wider than its longest text")
class PadsMore(Words):
    """One column of padding too many."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        if batch.token_ids.shape[1] == self.spec.max_length:
            return batch
        parts = zip(batch, (0, False, -1, -1), strict=True)
        return EncodedTexts(*(torch.cat([one, torch.full_like(one[:, :1], value)], dim=1) for one, value in parts))


@broken(WordsSpec, caught_by="pads_on_the_right", says="padding has a word id, expected -1")
class NumbersPadding(Words):
    """Padding belongs to word 0."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        return batch._replace(word_ids=batch.word_ids.masked_fill(~batch.text_is_valid, 0))


@broken(WordsSpec, caught_by="numbers_words", says="are [1, 2, 3, 4, 5], expected 0, 1, 2 ...")
class CountsFromOne(Words):
    """The first word is number 1."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        return batch._replace(word_ids=torch.where(batch.word_ids < 0, -1, batch.word_ids + 1))


@broken(WordsSpec, caught_by=("numbers_words", "places_its_tokens"), says="a token between words has no word id")
class SkipsUnknown(Words):
    """Every fourth token belongs to no word."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        return batch._replace(word_ids=batch.word_ids.masked_fill(batch.word_ids % 4 == 3, -1))


@broken(WordsSpec, caught_by=("numbers_words", "places_its_tokens"), says="has 3 words by its word ids, expected 5")
class JoinsWords(Words):
    """Two words share a number."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        return batch._replace(word_ids=torch.where(batch.word_ids < 0, -1, batch.word_ids // 2))


@broken(WordsSpec, caught_by="places_its_tokens", says="the span [[16, 20]] lies outside of")
class CountsLowered(Words):
    """Spans count characters of the text in lower case, which may be longer."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        return super().encode([text.lower() for text in texts])


@broken(WordsSpec, caught_by="places_its_tokens", says="expected ['it', 'is', 'in', 'the', 'lung']")
class CountsBlanks(Words):
    """The blank before a word is part of its span."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        batch.token_spans[..., 0] -= (batch.token_spans[..., 0] > 0).long()
        return batch


@broken(WordsSpec, caught_by="places_its_tokens", says="a special token of 'The heart is of normal size. The lungs a' has a span")
class PlacesSpecials(Words):
    """[CLS] stands at the start of the text."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        batch.token_spans[:, 0] = 0
        return batch


@broken(WordsSpec, caught_by="places_its_tokens", says="characters")
class CountsBytes(Words):
    """Spans count bytes."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        for text, spans in zip(texts, batch.token_spans, strict=True):
            at = [len(text[:end].encode()) for end in range(len(text) + 1)]
            is_word = spans[:, 0] >= 0
            spans[is_word] = torch.tensor([at[int(end)] for end in spans[is_word].flatten()], dtype=torch.int64).reshape(-1, 2)
        return batch


@broken(WordsSpec, caught_by="reads_back_its_words", says="text() gives '[CLS] it is in the lung', expected 'it is in the lung'")
class PrintsSpecials(Words):
    """Special tokens stand in its texts."""

    def text(self, token_ids: Sequence[int]) -> str:
        return " ".join(self.token_strings(token_ids))


@broken(WordsSpec, caught_by="reads_back_its_words", says="text() gives 'itisinthelung', expected 'it is in the lung'")
class JoinsAll(Words):
    """No blank stands between words."""

    def text(self, token_ids: Sequence[int]) -> str:
        return super().text(token_ids).replace(" ", "")


@broken(WordsSpec, caught_by="reads_back_its_words", says="end_id is 3, and not every text ends with that special token")
class EndsNowhere(Words):
    """It names an end that no text has."""

    @property
    def end_id(self) -> int | None:
        return MASK


@broken(WordsSpec, caught_by="keeps_to_its_maximum", says="a long text gives 2201 tokens, and the contract says 24")
class CutsNothing(Words):
    """Long texts stay long."""

    def __init__(self, spec: Any, dims: Any) -> None:
        super().__init__(attrs.evolve(spec, max_length=10_000), dims)


@broken(WordsSpec, caught_by=("keeps_to_its_maximum", "places_its_tokens"), says="expected those of its first words")
class KeepsTheEnd(Words):
    """Of a long text the last words stay."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        return super().encode([" ".join(_split(text)[-self.spec.max_length + 1 :]) for text in texts])


@broken(WordsSpec, caught_by="stays_in_its_vocabulary", says="and V is 64")
class PassesTheEnd(Words):
    """What is unknown gets an id behind the table."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        return batch._replace(token_ids=torch.where(batch.token_ids == UNKNOWN, self.spec.size, batch.token_ids))


@broken(WordsSpec, caught_by="stays_in_its_vocabulary", says="gives the id 3 of the mask token")
class ReadsMasks(Words):
    """[MASK] in a text is the mask token."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        for row, text in enumerate(texts):
            if "[MASK]" in text:
                batch.token_ids[row, 5] = MASK
        return batch


@broken(WordsSpec, caught_by="encodes_alone_as_in_a_batch", says="has other tokens alone than in a batch")
class LooksAround(Words):
    """In a large batch the second word is unknown."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        batch = super().encode(texts)
        if len(texts) > 10:
            batch.token_ids[:, 2:3] = torch.where(batch.text_is_valid[:, 2:3], UNKNOWN, batch.token_ids[:, 2:3])
        return batch


@broken(WordsSpec, caught_by="names_every_token", says="token_strings gives 63 strings for 64 ids")
class ForgetsAName(Words):
    """The last id has no name."""

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return super().token_strings(token_ids)[:-1]


@broken(WordsSpec, caught_by="names_every_token", says="token_strings gives no text for the ids 50, 51, 52")
class EmptyNames(Words):
    """Rows that no word fills have an empty name."""

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return [name.replace("[unused]", "") for name in super().token_strings(token_ids)]


@broken(WordsSpec, caught_by="reports_its_vocabulary", says="dims() says V=65, and the contract 64")
class ReportsMore(Words):
    """It reports one row more than it declares."""

    def dims(self) -> dict[str, int]:
        return {"V": self.spec.size + 1, "Mask": MASK}


@broken(WordsSpec, caught_by="learns_the_same_again", says="in another process, it gives other ids")
class HashedOrder(Words):
    """Words are numbered in the order of a set."""

    def fit(self, texts: Iterable[str]) -> None:
        words = set(Counter(word for text in texts for word in _split(text)))
        self._words = [*SPECIALS, *list(words)[: self.spec.size - len(SPECIALS)]]


@broken(WordsSpec, caught_by="learns_the_same_again", says="trained twice on the same texts, it gives other ids")
class CountedOrder(Words):
    """Every instance numbers the words anew."""

    count = 0

    def fit(self, texts: Iterable[str]) -> None:
        super().fit(texts)
        assert self._words is not None
        CountedOrder.count += 1
        turn = CountedOrder.count % 5
        self._words = [*SPECIALS, *self._words[len(SPECIALS) + turn :], *self._words[len(SPECIALS) : len(SPECIALS) + turn]]


@broken(WordsSpec, caught_by="survives_saving", says="saved and loaded again, it has other tokens")
class LosesAWord(Words):
    """The first word is lost on the way."""

    def load(self, folder: Path) -> None:
        super().load(folder)
        assert self._words is not None
        del self._words[len(SPECIALS)]


@broken(WordsSpec, caught_by="refuses_broken_files", says="from a folder that is not there raised nothing")
class LoadsNothing(Words):
    """Without a file it starts with no words."""

    def load(self, folder: Path) -> None:
        try:
            super().load(folder)
        except DataError:
            self._words = [*SPECIALS]


@broken(WordsSpec, caught_by="refuses_broken_files", says="raised FileNotFoundError")
class LoadsBlindly(Words):
    """What is wrong with the file is an error of Python."""

    def load(self, folder: Path) -> None:
        text = (folder / "words.json").read_text(encoding="utf-8")
        del text
        super().load(folder)
