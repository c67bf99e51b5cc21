"""Tokenizers: a WordPiece learned from the training texts, and any fast tokenizer of transformers.

Both end in a ``tokenizers.Tokenizer`` (the Rust library; absolute imports, so this module does not shadow it), which knows to
which word each token belongs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from medvlp_core import DataError, Dims, Problem
from medvlp_core.data import EncodedTexts, Tokenizer
from medvlp_standard.hf_facts import first_line, is_path, local_folder
from medvlp_standard.hub import hub_answers, quiet_hub
from medvlp_standard.specs.tokenizers import SPECIALS, HfTokenizerSpec, WordPieceSpec

_FILE = "tokenizer.json"
#: Any of these makes a folder one of a tokenizer. Without them transformers may come up with an empty vocabulary, unasked.
_HF_FILES = (_FILE, "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
#: How pieces become words, and words a text.
_JOIN = decoders.WordPiece(prefix="##", cleanup=True)


class WordPiece(Tokenizer):
    """A WordPiece tokenizer trained on the texts: NFKD, lower case, no accents; words end at spaces, punctuation and digits.

    ``[CLS] piece ##piece piece ...`` without [SEP]. Punctuation marks and digits are words of their own. Special tokens that stand
    in a text as letters ("[MASK]") are ordinary punctuation and letters. Training twice on the same texts gives the same ids. With
    ``end_of_text`` [EOS] stands at the end of each text, of one that was cut too.

    Reference:
        Zhou et al., Advancing Radiograph Representation Learning with Masked Record Modeling, ICLR 2023, for normalisation,
        special tokens and the missing [SEP]. That every digit is a word of its own is our choice.
    """

    def __init__(self, spec: WordPieceSpec, dims: Dims) -> None:
        self.spec = spec
        self._backend: tokenizers.Tokenizer | None = None

    def fit(self, texts: Iterable[str]) -> None:
        """Learn the vocabulary.

        Raises:
            DataError: there is no text, or the letters alone are more than ``vocab_size`` (MV506).
        """
        texts = list(texts)
        pieces = self._continuation_letters(texts)
        if not any(text.strip() for text in texts):
            raise _error("standard.wordpiece has no text to learn from", "check the training split and inputs.text_kinds")
        # The trainer numbers these letters in the random order of a hash map and breaks ties by number. Named in advance they have
        # fixed numbers, and training becomes repeatable. They are special only for the trainer; the vocabulary is taken over below.
        trainer = trainers.WordPieceTrainer(
            vocab_size=self.spec.vocab_size,
            min_frequency=self.spec.min_frequency,
            special_tokens=[*self.spec.specials, *pieces],
            continuing_subword_prefix="##",
            show_progress=False,
        )
        learner = self._pipeline({})
        learner.train_from_iterator(texts, trainer=trainer)
        vocabulary = learner.get_vocab(with_added_tokens=True)
        if len(vocabulary) > self.spec.vocab_size:
            text = f"the letters of the texts alone need {len(vocabulary)} entries, and vocab_size is {self.spec.vocab_size}"
            raise _error(text, f"set tokenizer.vocab_size to at least {len(vocabulary)}, better to several thousand")
        self._backend = self._ready(vocabulary)

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise; every text starts with [CLS], an empty one is nothing but [CLS].

        Raises:
            DataError: there is no vocabulary yet (MV506).
        """
        return _encode(self._fitted(), texts)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The pieces as they stand in the vocabulary; rows of the table that it does not fill are ``[unused]``."""
        backend = self._fitted()
        return [backend.id_to_token(int(token_id)) or "[unused]" for token_id in token_ids]

    def text(self, token_ids: Sequence[int]) -> str:
        """The pieces joined to words, in the case and spelling that was learned; no blank stands before a full stop or comma."""
        specials = set(self.spec.specials.values())
        return _joined(self._fitted(), [int(token_id) for token_id in token_ids if int(token_id) not in specials])

    def dims(self) -> dict[str, int]:
        """Rows of the table, which the vocabulary may not fill, and the id of [MASK]."""
        return {"V": self.spec.vocab_size, "Mask": SPECIALS["[MASK]"]}

    @property
    def end_id(self) -> int | None:
        """The id of [EOS] with ``end_of_text``, else None."""
        return self.spec.specials.get("[EOS]")

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``, and beside it what transformers' ``AutoTokenizer`` needs to load it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._fitted().save(str(folder / _FILE))
        names = {f"{token.strip('[]').lower()}_token": token for token in self.spec.specials}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": self.spec.max_length, **names}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read ``tokenizer.json``.

        Raises:
            DataError: it is missing, broken, or was not written by this component with this ``vocab_size`` (MV506).
        """
        hint = "a run folder holds the tokenizer it was trained with; train again if the file is lost"
        try:
            vocabulary = tokenizers.Tokenizer.from_file(str(folder / _FILE)).get_vocab()
        except Exception as error:  # the Rust library raises plain Exception
            raise _error(f"{folder / _FILE} cannot be read: {error}", hint) from error
        if any(vocabulary.get(token) != number for token, number in self.spec.specials.items()):
            raise _error(f"{folder / _FILE} was not written by standard.wordpiece: its special tokens differ", hint)
        if max(vocabulary.values()) >= self.spec.vocab_size:
            text = f"{folder / _FILE} has {len(vocabulary)} tokens, and vocab_size is {self.spec.vocab_size}"
            raise _error(text, f"set tokenizer.vocab_size to the {len(vocabulary)} of the saved run, or more")
        self._backend = self._ready(vocabulary)

    def _fitted(self) -> tokenizers.Tokenizer:
        if self._backend is None:
            raise _error("standard.wordpiece has no vocabulary yet", "call fit(texts) or load(folder) first")
        return self._backend

    def _pipeline(self, vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
        lower = [normalizers.Lowercase()] if self.spec.lowercase else []
        backend.normalizer = normalizers.Sequence([normalizers.NFKD(), *lower, normalizers.StripAccents()])
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), digits])
        return backend

    def _ready(self, vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
        backend = self._pipeline(vocabulary)
        around = [(token, number) for token, number in self.spec.specials.items() if token in ("[CLS]", "[EOS]")]
        end = "" if self.end_id is None else " [EOS]"
        backend.post_processor = processors.TemplateProcessing(single=f"[CLS] $A{end}", special_tokens=around)
        backend.enable_truncation(max_length=self.spec.max_length)
        backend.enable_padding(pad_id=SPECIALS["[PAD]"], pad_token="[PAD]")
        return backend

    def _continuation_letters(self, texts: Sequence[str]) -> list[str]:
        """``##x`` for every letter x that stands inside a word, sorted."""
        pipeline, letters = self._pipeline({}), set[str]()
        for text in texts:
            for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(pipeline.normalizer.normalize_str(text)):
                letters.update(word[1:])
        return [f"##{letter}" for letter in sorted(letters)]


class HfTokenizer(Tokenizer):
    """A fast tokenizer of transformers with its own vocabulary and its own special tokens around each text.

    It is loaded at the first use, so that a run folder restores it on a machine that has neither the original folder nor a network.
    """

    def __init__(self, spec: HfTokenizerSpec, dims: Dims) -> None:
        self.spec = spec
        self._loaded: Any = None
        self._backend: tokenizers.Tokenizer | None = None

    def fit(self, texts: Iterable[str]) -> None:
        """Nothing to learn."""

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenise; special tokens that stand in a text as letters are ordinary text.

        Raises:
            DataError: the tokenizer cannot be loaded (MV506).
        """
        return _encode(self._ready(), texts)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """The pieces; those of other schemes than WordPiece (byte-level BPE, SentencePiece) are rewritten with ``##``."""
        backend = self._ready()
        tokens = [backend.id_to_token(int(token_id)) or "[unused]" for token_id in token_ids]
        if isinstance(backend.model, models.WordPiece):
            return tokens
        specials, strings, is_start = set(self._loaded.all_special_tokens), [], True
        for token_id, token in zip(token_ids, tokens, strict=True):
            if token in specials:
                strings.append(token)
                is_start = True
                continue
            is_start = is_start or token.startswith(("Ġ", "▁"))
            readable = backend.decode([int(token_id)]).strip() or token
            strings.append(readable if is_start else f"##{readable}")
            is_start = False
        return strings

    def text(self, token_ids: Sequence[int]) -> str:
        """The pieces joined as the tokenizer's own scheme has them."""
        backend, specials = self._ready(), set(self._loaded.all_special_ids)
        ids = [int(token_id) for token_id in token_ids if int(token_id) not in specials]
        if not isinstance(backend.model, models.WordPiece):
            return str(backend.decode(ids)).strip()
        return _joined(backend, ids)  # some are saved without a decoder

    @property
    def end_id(self) -> int | None:
        """The special token that it puts behind each text ([SEP], ``</s>``), None if it puts none there."""
        around = self._ready().encode("").ids
        return int(around[-1]) if len(around) > 1 else None

    def dims(self) -> dict[str, int]:
        """Largest id + 1, and the id of the mask token."""
        found = {"V": _size(self._ready()), "Mask": int(self._loaded.mask_token_id)}
        return found if self.end_id is None else {**found, "End": self.end_id}

    def save(self, folder: Path) -> None:
        """Write transformers' own files."""
        self._ready()
        self._loaded.save_pretrained(str(folder))

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: files are missing or broken (MV506).
        """
        if not (folder / _FILE).is_file():
            hint = "a run folder holds the tokenizer it was trained with; train again if the file is lost"
            raise _error(f"{folder / _FILE} does not exist", hint)
        self._adopt(str(folder), is_local=True)

    def _ready(self) -> tokenizers.Tokenizer:
        if self._backend is None:
            folder = local_folder(self.spec.model)
            is_local = is_path(self.spec.model) or (folder is not None and _has_tokenizer(folder))
            self._adopt(str(folder) if is_local and folder else self.spec.model, is_local=is_local)
        assert self._backend is not None
        return self._backend

    def _adopt(self, source: str, *, is_local: bool) -> None:
        # transformers takes seconds to import, and a run with the WordPiece tokenizer does not need it.
        from transformers import AutoTokenizer

        hint = (
            "give a local folder made with save_pretrained, or download the tokenizer once where there is a network "
            "(`hf download NAME`) and point HF_HOME to that cache"
        )
        if is_local and not _has_tokenizer(Path(source)):
            fault = f"the folder {source!r} holds no tokenizer" if Path(source).is_dir() else f"there is no folder {source!r}"
            raise _error(fault, hint)
        try:
            is_offline = is_local or not hub_answers(source)
            with quiet_hub():
                loaded = AutoTokenizer.from_pretrained(source, use_fast=True, local_files_only=is_offline, trust_remote_code=False)
        except Exception as error:
            text = f"the tokenizer {self.spec.model!r} cannot be loaded: {type(error).__name__}: {first_line(error)}"
            raise _error(text, hint) from error
        needed = {"mask": loaded.mask_token_id, "class": loaded.cls_token_id, "padding": loaded.pad_token_id}
        missing = [name for name, number in needed.items() if number is None]
        if missing or not loaded.is_fast:
            fault = f"has no {' and no '.join(missing)} token" if missing else "is not a fast tokenizer"
            text = f"the tokenizer {self.spec.model!r} {fault}"
            raise _error(text, "use the tokenizer of a BERT-like model that was trained with masked words")
        # A copy, so that transformers' calls on its own object cannot change truncation and padding here.
        backend = tokenizers.Tokenizer.from_str(loaded.backend_tokenizer.to_str())
        backend.encode_special_tokens = True
        backend.enable_truncation(max_length=self.spec.max_length, direction="right")
        backend.enable_padding(direction="right", pad_id=loaded.pad_token_id, pad_token=loaded.pad_token)
        if backend.encode("").ids[:1] != [loaded.cls_token_id]:
            text = f"the tokenizer {self.spec.model!r} does not put its class token first"
            raise _error(text, "use the tokenizer of a BERT-like model")
        self._loaded, self._backend = loaded, backend


def _encode(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> EncodedTexts:
    """Ids, validity, word ids and spans of a batch, padded to its longest text."""
    found = backend.encode_batch(list(texts))
    word_ids = [[-1 if word is None else word for word in one.word_ids] for one in found]
    spans = [
        [(-1, -1) if word is None else _trimmed(text, span) for word, span in zip(one.word_ids, one.offsets, strict=True)]
        for text, one in zip(texts, found, strict=True)
    ]
    return EncodedTexts(
        token_ids=torch.tensor([one.ids for one in found], dtype=torch.int64),
        text_is_valid=torch.tensor([one.attention_mask for one in found], dtype=torch.bool),
        word_ids=torch.tensor(word_ids, dtype=torch.int64),
        token_spans=torch.tensor(spans, dtype=torch.int64),
    )


def _joined(backend: tokenizers.Tokenizer, token_ids: Sequence[int]) -> str:
    """Pieces of a WordPiece vocabulary as a text; ids that it does not fill are left out."""
    pieces = [backend.id_to_token(token_id) for token_id in token_ids]
    return str(_JOIN.decode([piece for piece in pieces if piece is not None]))


def _trimmed(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """A span without the blanks at its ends: byte-level tokenizers count the blank before a word as its part."""
    start, end = span
    if start < end and not text[start].isspace() and not text[end - 1].isspace():
        return span
    piece = text[start:end]
    return (start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())) if piece.strip() else span


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _HF_FILES)


def _size(backend: tokenizers.Tokenizer) -> int:
    return max(backend.get_vocab(with_added_tokens=True).values()) + 1


def _error(text: str, hint: str) -> DataError:
    return DataError(Problem(code="MV506", text=text, hint=hint))
