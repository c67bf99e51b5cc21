"""Conformance of tokenizers: where words stand, that texts are cut and padded alike everywhere, and that a vocabulary is kept."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from medvlp_core.data.tokenizer import EncodedTexts, Tokenizer
from medvlp_core.errors import DataError
from medvlp_core.spec.roles import Role
from medvlp_core.testing.checks import check, expect
from medvlp_core.testing.other_process import ask_other_process
from medvlp_core.testing.subject import Example, Subject

#: Texts to learn from; every word of :data:`PLAIN` is among them.
TEXTS = [
    "The heart is of normal size. The lungs are clear.",
    "The heart is large. There is a pleural effusion on the left.",
    "Opacity in the right lung, pneumonia. No pleural effusion.",
    "Heart size is normal, 12 x 9 cm. No pneumothorax; no acute disease.",
    "A nodule of 8 mm in the left upper lobe is new since 2019-03-04.",
    "In the lung no new nodule. It is as it was.",
]
#: Short words without punctuation, which every tokenizer splits at the spaces.
PLAIN = "it is in the lung"
#: The same words behind blanks, capitals and accents that change the length of a text when they are normalised.
SHIFTED = [PLAIN, f" \n\t {PLAIN}", f"\u0130 {PLAIN}", f"e\u0301 {PLAIN}", PLAIN.replace(" ", "  ")]
LONG = " ".join(["the left lung is clear and the right one is not"] * 200)
ODD = [
    "",
    " \n\t ",
    "Ödem – β-Blocker µg/µl",
    "心臓は正常です",
    "\U0001f600 \u200f\u05d0\u05d1 e\u0301",
    "\x00\ufffd\u200b",
    "[CLS] [MASK] [PAD]",
]


def tokenizers(subject: Subject) -> Iterator[tuple[Example, Tokenizer]]:
    """Every example, built and trained on the kit's texts."""
    for example in subject.examples:
        tokenizer = example.build()
        tokenizer.fit(TEXTS)
        yield example, tokenizer


def longest(example: Example) -> int | None:
    """The maximum length that the contract declares, if it is a number."""
    spec = example.declared("token_ids")
    length = spec.dims[1] if spec else None
    return length if isinstance(length, int) else None


def rows_of(batch: EncodedTexts) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Ids, word ids and spans of each text, without padding."""
    for ids, is_valid, words, spans in zip(*batch, strict=True):
        yield ids[is_valid], words[is_valid], spans[is_valid]


@check("tokenizer", roles=(Role.TOKENIZER,))
def starts_with_a_class_token(subject: Subject) -> None:
    """Position 0 of every text, an empty one too, is the same special token: valid, and of no word."""
    for example, tokenizer in tokenizers(subject):
        batch = tokenizer.encode([*TEXTS, *ODD, LONG])
        expect(bool(batch.text_is_valid[:, 0].all()), f"{example}: position 0 is padding in some text")
        first = sorted(set(batch.token_ids[:, 0].tolist()))
        expect(len(first) == 1, f"{example}: texts start with the ids {first}, expected one and the same, [CLS]")
        words = sorted(set(batch.word_ids[:, 0].tolist()))
        expect(words == [-1], f"{example}: the word ids at position 0 are {words}, expected -1 for a special token")


@check("tokenizer", roles=(Role.TOKENIZER,))
def pads_on_the_right(subject: Subject) -> None:
    """(B, L) tensors, of spans (B, L, 2), as wide as the longest text; padding stands behind it and belongs to no word."""
    wanted = {"token_ids": torch.int64, "text_is_valid": torch.bool, "word_ids": torch.int64, "token_spans": torch.int64}
    for example, tokenizer in tokenizers(subject):
        batch = tokenizer.encode([*TEXTS, ""])
        for name, tensor in batch._asdict().items():
            axes = "(B, L, 2)" if name == "token_spans" else "(B, L)"
            shape = (*batch.token_ids.shape, 2) if name == "token_spans" else batch.token_ids.shape
            is_right = tensor.dtype == wanted[name] and batch.token_ids.ndim == 2 and tensor.shape == shape
            text = f"{tensor.dtype} {tuple(tensor.shape)}, expected {wanted[name]} of shape {axes} like token_ids"
            expect(is_right and len(tensor) == len(TEXTS) + 1, f"{example}: {name} is {text}")
        valid = batch.text_is_valid
        expect(not bool((valid[:, 1:] & ~valid[:, :-1]).any()), f"{example}: a real token stands behind padding")
        expect(bool(valid[:, -1].any()), f"{example}: the batch is wider than its longest text")
        expect(bool((batch.word_ids[~valid] == -1).all()), f"{example}: padding has a word id, expected -1")
        expect(len(set(batch.token_ids[~valid].tolist())) == 1, f"{example}: padding has several ids")


@check("tokenizer", roles=(Role.TOKENIZER,))
def numbers_words(subject: Subject) -> None:
    """Word ids count up from 0 without a gap, pieces of a word share one, and only special tokens at the ends have -1."""
    for example, tokenizer in tokenizers(subject):
        special: set[int] = set()
        ordinary: set[int] = set()
        for text, (ids, words, _) in zip([PLAIN, *TEXTS], rows_of(tokenizer.encode([PLAIN, *TEXTS])), strict=True):
            inside = (words >= 0).nonzero().flatten()
            expect(len(inside) > 0, f"{example}: no token of {text!r} belongs to a word")
            first, last = int(inside[0]), int(inside[-1])
            expect(bool((words[first : last + 1] >= 0).all()), f"{example}: in {text!r} a token between words has no word id")
            numbers = words[first : last + 1].tolist()
            is_counted = numbers[0] == 0 and {after - before for before, after in itertools.pairwise(numbers)} <= {0, 1}
            wanted = "0, 1, 2 ..., each as often as the word has pieces"
            expect(is_counted, f"{example}: the word ids of {text!r} are {numbers}, expected {wanted}")
            special |= set(ids[words < 0].tolist())
            ordinary |= set(ids[words >= 0].tolist())
        both = sorted(special & ordinary)
        expect(not both, f"{example}: the ids {both} stand for words and, with word id -1, for special tokens")
        (_, words, _), limit = next(rows_of(tokenizer.encode([PLAIN]))), longest(example)
        if limit is None or len(words) < limit:
            count, there = len(set(words.tolist()) - {-1}), len(PLAIN.split())
            expect(count == there, f"{example}: {PLAIN!r} has {count} words by its word ids, expected {there}")


@check("tokenizer", roles=(Role.TOKENIZER,))
def places_its_tokens(subject: Subject) -> None:
    """Spans count characters of the text as it was given: in order, around each word as it stands there, -1 where no word is."""
    for example, tokenizer in tokenizers(subject):
        limit = longest(example)
        texts = [*TEXTS, *ODD, LONG, *SHIFTED]
        for text, (ids, words, spans) in zip(texts, rows_of(tokenizer.encode(texts)), strict=True):
            quoted = repr(text[:40])
            placed = spans[words >= 0]
            expect(bool((spans[words < 0] == -1).all()), f"{example}: a special token of {quoted} has a span, expected -1")
            is_inside = (placed[:, 0] >= 0) & (placed[:, 0] <= placed[:, 1]) & (placed[:, 1] <= len(text))
            wrong = placed[~is_inside].tolist()[:1]
            expect(not wrong, f"{example}: the span {wrong} lies outside of {quoted}, which has {len(text)} characters")
            is_ordered = not bool((placed.diff(dim=0) < 0).any())
            expect(is_ordered, f"{example}: the spans of {quoted} go back: {placed.tolist()[:8]}")
            if text not in SHIFTED:
                continue
            found = [text[start:end] for start, end in _word_spans(words, spans)]
            start = found.index("it") if "it" in found else 0
            found, wanted = found[start:], PLAIN.split()
            if limit is not None and len(ids) >= limit:  # the last word may be cut
                found, wanted = found[:-1], wanted[: len(found) - 1]
            expect(found == wanted, f"{example}: the words of {text!r} stand at {found}, expected {wanted}")


@check("tokenizer", roles=(Role.TOKENIZER,))
def reads_back_its_words(subject: Subject) -> None:
    """``text(ids)`` gives the known words of a text back, in order, with a blank between them and without special tokens."""
    for example, tokenizer in tokenizers(subject):
        names = dict(enumerate(tokenizer.token_strings([*range(tokenizer.dims()["V"])])))
        ids = next(rows_of(tokenizer.encode([PLAIN])))[0].tolist()
        pieces = " ".join(names.get(number, "") for number in ids).replace(" ##", "").casefold().split()
        # neither special tokens nor the unknown word are the beginning of a word; one that the maximum length cuts is
        wanted = [piece for piece in pieces if any(word.startswith(piece) for word in PLAIN.split())]
        found = tokenizer.text(ids)
        expect(found.casefold().split() == wanted, f"{example}: text() gives {found!r}, expected {' '.join(wanted)!r}")
        expect(tokenizer.text([]) == "", f"{example}: text() of no ids is {tokenizer.text([])!r}, expected an empty text")
        end = tokenizer.end_id
        if end is not None:
            is_last = all(int(row[-1]) == end and int(at[-1]) == -1 for row, at, _ in rows_of(tokenizer.encode([*TEXTS, LONG])))
            expect(is_last, f"{example}: end_id is {end}, and not every text ends with that special token")


def _word_spans(words: Tensor, spans: Tensor) -> list[tuple[int, int]]:
    """Start of the first and end of the last token of each word."""
    numbers = [word for word in dict.fromkeys(words.tolist()) if word >= 0]
    return [(int(spans[words == word][:, 0].min()), int(spans[words == word][:, 1].max())) for word in numbers]


@check("tokenizer", roles=(Role.TOKENIZER,))
def keeps_to_its_maximum(subject: Subject) -> None:
    """A very long text is cut to the declared length, with its beginning kept."""
    for example, tokenizer in tokenizers(subject):
        limit = longest(example)
        ids = tokenizer.encode([LONG]).token_ids
        count = ids.shape[1]
        expect(limit is None or count <= limit, f"{example}: a long text gives {count} tokens, and the contract says {limit}")
        expect(count < len(LONG.split()), f"{example}: a text of {len(LONG.split())} words is not cut")
        short, words, _ = next(rows_of(tokenizer.encode([LONG[: LONG.index("and")]])))
        wanted = short[words >= 0][:2].tolist()
        found = ids[0, 1 : 1 + len(wanted)].tolist()
        expect(found == wanted, f"{example}: a long text starts with the ids {found}, expected those of its first words, {wanted}")


@check("tokenizer", roles=(Role.TOKENIZER,))
def stays_in_its_vocabulary(subject: Subject) -> None:
    """Ids are at least 0 and below V, for empty and odd texts too; what looks like a special token in a text is not one."""
    for example, tokenizer in tokenizers(subject):
        size, mask = (tokenizer.dims()[name] for name in ("V", "Mask"))
        for text in [*TEXTS, *ODD, LONG]:
            batch = tokenizer.encode([text])
            low, high = int(batch.token_ids.min()), int(batch.token_ids.max())
            expect(low >= 0 and high < size, f"{example}: {text[:40]!r} gives ids from {low} to {high}, and V is {size}")
            expect(mask not in batch.token_ids, f"{example}: {text[:40]!r} gives the id {mask} of the mask token")


@check("tokenizer", roles=(Role.TOKENIZER,))
def encodes_alone_as_in_a_batch(subject: Subject) -> None:
    """A text gives the same tokens alone as in a batch with longer ones."""
    for example, tokenizer in tokenizers(subject):
        texts = [*TEXTS, *ODD, LONG]
        for text, sync_errors in zip(texts, rows_of(tokenizer.encode(texts)), strict=True):
            local_only = next(rows_of(tokenizer.encode([text])))
            is_same = all(torch.equal(one, other) for one, other in zip(local_only, sync_errors, strict=True))
            expect(is_same, f"{example}: {text[:40]!r} has other tokens alone than in a batch")


@check("tokenizer", roles=(Role.TOKENIZER,))
def names_every_token(subject: Subject) -> None:
    """``token_strings`` gives one string that is not empty for each id of the vocabulary."""
    for example, tokenizer in tokenizers(subject):
        ids = [*range(tokenizer.dims()["V"])]
        names = tokenizer.token_strings(ids)
        expect(len(names) == len(ids), f"{example}: token_strings gives {len(names)} strings for {len(ids)} ids")
        wrong = [number for number, name in zip(ids, names, strict=True) if not isinstance(name, str) or not name]
        expect(not wrong, f"{example}: token_strings gives no text for the ids {', '.join(map(str, wrong[:5]))}")


@check("tokenizer", roles=(Role.TOKENIZER,))
def reports_its_vocabulary(subject: Subject) -> None:
    """``dims()`` has V and Mask, as the contract says where it gives numbers; the mask's id is one of the vocabulary."""
    for example, tokenizer in tokenizers(subject):
        found, spec = tokenizer.dims(), example.declared("vocabulary")
        expect({"V", "Mask"} <= set(found), f"{example}: dims() gives {', '.join(found) or 'nothing'}, expected V and Mask")
        expect(0 <= found["Mask"] < found["V"], f"{example}: the mask token has the id {found['Mask']}, and V is {found['V']}")
        for name, dim in zip(("V", "Mask"), spec.dims if spec else (), strict=False):
            is_equal = not isinstance(dim, int) or dim == found[name]
            expect(is_equal, f"{example}: dims() says {name}={found[name]}, and the contract {dim}")


@check("tokenizer", roles=(Role.TOKENIZER,))
def learns_the_same_again(subject: Subject) -> None:
    """Trained on the same texts, another instance and another process give the same ids."""
    for example, tokenizer in tokenizers(subject):
        ids, other = tokenizer.encode(TEXTS).token_ids, example.build()
        other.fit(iter(TEXTS))
        expect(torch.equal(ids, other.encode(TEXTS).token_ids), f"{example}: trained twice on the same texts, it gives other ids")
        found = ask_other_process("ids_after_fit", example, TEXTS)
        expect(found == ids.tolist(), f"{example}: trained on the same texts in another process, it gives other ids")


@check("tokenizer", roles=(Role.TOKENIZER,))
def survives_saving(subject: Subject) -> None:
    """Saved and loaded into a new instance, it gives the same tokens, names and sizes."""
    for example, tokenizer in tokenizers(subject):
        with _saved(tokenizer) as folder:
            other = example.build()
            other.load(folder)
        wrong = _unequal(tokenizer, other)
        expect(wrong is None, f"{example}: saved and loaded again, it has other {wrong}")


@check("tokenizer", roles=(Role.TOKENIZER,))
def refuses_broken_files(subject: Subject) -> None:
    """Loading from an empty folder, or with a file missing or cut in half that it needs, raises a DataError (MV506)."""
    for example, tokenizer in tokenizers(subject):
        with _saved(tokenizer) as folder:
            names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
            _expect_refusal(example, None, folder / "nothing", "from a folder that is not there")
            for name in names:
                content = (folder / name).read_bytes()
                (folder / name).write_bytes(content[: len(content) // 2])
                _expect_refusal(example, tokenizer, folder, f"with {name} cut in half")
                (folder / name).unlink()
                _expect_refusal(example, tokenizer if len(names) > 1 else None, folder, f"without {name}")
                (folder / name).write_bytes(content)


def _expect_refusal(example: Example, whole: Tokenizer | None, folder: Path, how: str) -> None:
    """Loading must fail with MV506; where a file turns out not to be needed, it must give the ``whole`` tokenizer."""
    other = example.build()
    try:
        other.load(folder)
    except DataError as error:
        codes = [problem.code for problem in error.problems]
        expect(codes == ["MV506"], f"{example}: loading {how} raised {', '.join(codes) or 'no code'}, expected MV506")
    except Exception as error:
        expect(False, f"{example}: loading {how} raised {type(error).__name__}: {error}; expected a DataError (MV506)")
    else:
        is_whole = whole is not None and _unequal(whole, other) is None
        expect(is_whole, f"{example}: loading {how} raised nothing, expected a DataError (MV506)")


@contextmanager
def _saved(tokenizer: Tokenizer) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="medvlp-conform-") as name:
        folder = Path(name) / "tokenizer"
        folder.mkdir()
        tokenizer.save(folder)
        yield folder


def _unequal(first: Tokenizer, second: Tokenizer) -> str | None:
    """In what two tokenizers differ."""
    texts = [*TEXTS, *ODD, LONG]
    if first.dims() != second.dims():
        return "dims()"
    if any(not torch.equal(a, b) for a, b in zip(first.encode(texts), second.encode(texts), strict=True)):
        return "tokens"
    ids = [*range(first.dims()["V"])]
    return None if first.token_strings(ids) == second.token_strings(ids) else "names of tokens"
