"""Specs of the standard tokenizers. Light."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from medvlp_core import ComponentSpec, Contract, Dim, Role, TensorSpec, component, param
from medvlp_standard.hf_facts import is_path, local_folder, tokenizer_facts

#: Ids of the special tokens of ``standard.wordpiece``; there is no [SEP].
SPECIALS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[MASK]": 3}
#: The token at the end of each text, with ``end_of_text``.
END = {"[EOS]": 4}


def _token_contract(length: int, vocabulary: Dim, mask_id: Dim, end_id: Dim | None) -> Contract:
    end = {} if end_id is None else {"end_of_text": TensorSpec(dims=(end_id,), dtype="shape")}
    return Contract(
        gives={
            "token_ids": TensorSpec(dims=("B", length), dtype="int"),
            "text_is_valid": TensorSpec(dims=("B", length), dtype="bool"),
            "word_ids": TensorSpec(dims=("B", length), dtype="int"),
            "vocabulary": TensorSpec(dims=(vocabulary, mask_id), dtype="shape"),
            **end,
        }
    )


@component("standard.wordpiece", role=Role.TOKENIZER, build="medvlp_standard.tokenizers:WordPiece")
@attrs.frozen(kw_only=True)
class WordPieceSpec(ComponentSpec):
    """A WordPiece vocabulary learned from the training texts and saved with the run, as in MRM."""

    vocab_size: int = param(30000, help="rows of the vocabulary table; a small corpus fills fewer", at_least=8)
    max_length: int = param(100, help="longest text, tokens with [CLS]; the rest is cut off", at_least=2)
    min_frequency: int = param(2, help="how often two pieces must stand together to become one", at_least=1)
    lowercase: bool = param(True, help="lower-case the texts")
    end_of_text: bool = param(False, help="put [EOS] at the end of each text, one that is cut too; what writes texts needs it")

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """[CLS], a word and [EOS] are three tokens, and [EOS] takes a row of the table."""
        if self.end_of_text and self.max_length < 3:
            yield "max_length", f"max_length={self.max_length}: a text needs more than [CLS] and [EOS]", "set it to 3 or more"

    @property
    def specials(self) -> dict[str, int]:
        """The special tokens and their ids."""
        return {**SPECIALS, **END} if self.end_of_text else SPECIALS

    def contract(self) -> Contract:
        """Token ids, validity and word ids of at most ``max_length`` tokens; the size of the table, the ids of [MASK] and [EOS]."""
        return _token_contract(self.max_length, self.vocab_size, SPECIALS["[MASK]"], self.specials.get("[EOS]"))

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Small tables for short texts."""
        return (
            cls(vocab_size=200, max_length=16, min_frequency=1),
            cls(vocab_size=300, max_length=24, lowercase=False, end_of_text=True),
        )


@component("standard.hf_tokenizer", role=Role.TOKENIZER, build="medvlp_standard.tokenizers:HfTokenizer")
@attrs.frozen(kw_only=True)
class HfTokenizerSpec(ComponentSpec):
    """Any fast tokenizer of transformers, from a local folder or by hub name; it needs a mask and a class token."""

    model: str = param(help="local folder with tokenizer.json, or a hub name")
    max_length: int = param(128, help="longest text, tokens with special tokens; the rest is cut off", at_least=3)

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """A path must be a folder. Hub names are looked up when the tokenizer is loaded."""
        if is_path(self.model) and local_folder(self.model) is None:
            hint = "save a tokenizer there with save_pretrained, or give a hub name such as emilyalsentzer/Bio_ClinicalBERT"
            yield "model", f"model={self.model!r}: there is no such folder", hint

    def contract(self) -> Contract:
        """As for any tokenizer; the vocabulary is read from the files, else free symbols until it is loaded, as its end is."""
        facts = tokenizer_facts(self.model)
        vocabulary: Dim = facts.vocabulary if facts.vocabulary is not None else "V"
        return _token_contract(self.max_length, vocabulary, facts.mask_id if facts.mask_id is not None else "Mask", "End")

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """A vocabulary of letters and a few words that lies in this package, at two lengths."""
        folder = str(Path(__file__).parent.parent / "example_models" / "bert")
        return cls(model=folder, max_length=16), cls(model=folder, max_length=24)


SPECS: tuple[type[ComponentSpec], ...] = (WordPieceSpec, HfTokenizerSpec)
