"""The field's words: no identifier, recipe key or message uses a word of the private dialect in the sense that it had there.

The table is that of the clean break: what was said, and what a researcher types instead. Ordinary prose (comments, pages, most
docstrings) is free; a docstring that is printed is a message: that of a spec and that of a conformance check. A use in another
sense stands in ``ALLOWED``, with the reason.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ("medvlp_core", "plugins", "examples", "tests")

#: What was said, in identifiers and recipe keys, and what is said instead. A word in capitals counts only as it stands.
NAMES = {
    "Report": "Diagnostics (a report is a radiologist's text)",
    "wish": "requested",
    "why_not": "unsupported_reasons",
    "go_on": "resume",
    "goes_on": "resume",
    "going_on": "resume",
    "together": "sync_errors",
    "alone": "local_only",
    "from_all": "all_gather_object",
    "from_first": "broadcast_object",
    "row_counts": "local_batch_sizes",
    "restoration": "reconstruction",
    "restore": "reconstruct (restore is for checkpoints)",
    "restored": "reconstructed (restore is for checkpoints)",
    "restoring": "reconstruction (restore is for checkpoints)",
    "weights_follow": "skip_pretrained_init",
    "giver": "provider",
    "givers": "providers",
    "scene": "synthetic_batch",
    "partner": "stub component",
    "partners": "stub_components",
    "elsewhere": "a name for the place",
    "patience": "timeout",
    "explained": "translate_errors",
    "take_effect": "raise_for_signal",
    "undone_before_first_step": "cleanup_on_failed_start",
    "settle_buckets": "warm_up_ddp_buckets",
    "waiting": "data time",
    "left_out": "skipped",
    "room": "module",
    "rooms": "modules",
    "stranger": "third party",
    "strangers": "third parties",
    "hidden": "masked",
    "hides": "masks",
    "hide": "mask",
    "accumulate": "gradient_accumulation_steps",
    "clip_norm": "max_grad_norm",
    "recompute": "activation_checkpointing",
    "last_batch": "drop_last",
    "workers": "num_workers",
    "begin": "start",
}
#: The same, where it is the word of one place: (word, folders, what is said instead there).
KERNELS = ("medvlp_core/kernels/", "plugins/mpma/medvlp_mpma/kernels/")
IN_FOLDERS = (
    ("Path", KERNELS, "Backend (pathlib's Path is the only one)"),
    ("passes", ("medvlp_core/training/",), "micro_batches"),
    ("parts", ("medvlp_core/training/",), "micro_batches"),
    ("average", ("medvlp_core/training/",), "ema"),
)
#: Whatever none of the words is a part of needs no second look.
ANY = re.compile("|".join(name.replace("_", "[ _]?") for name in (*NAMES, *(row[0] for row in IN_FOLDERS))), re.IGNORECASE)
#: In messages, words that are also plain English ("the two do not fit together") are free; so they are in the names of tests and of
#: what they break, which are sentences.
FREE_IN_MESSAGES = {"alone", "together", "restore", "explained", "elsewhere", "begin"}
MESSAGES = {name: instead for name, instead in NAMES.items() if name not in FREE_IN_MESSAGES}
#: Quotes what it forbids.
ITSELF = Path(__file__).relative_to(ROOT)
#: Recipes that no reader of YAML takes.
BROKEN_YAML = tuple(
    f"tests/messages/cases/{name}.yaml"
    for name in ("mv001_not_utf8", "mv002_bracket", "mv002_tab", "mv004_features", "ten_mistakes")
)

#: Uses in another sense: (word, where as a regular expression of the identifier or message, why).
ALLOWED = (
    ("accumulate", r"accumulate_grad|register_post_accumulate_grad_hook", "torch's own name"),
    ("alone", r"encodes_alone_as_in_a_batch|is_the_same_alone_and_in_a_batch", "one sample, not one process"),
    (
        "hidden",
        r"(last_|encoder_)?hidden_(states?|size|dim|dropout_prob)|.*_hidden_states_.*|num_hidden_layers",
        "transformers' own names",
    ),
    ("hidden", r".*hidden (layer|width|states).*", "of a network's layers"),
    ("hidden", r".*last_hidden_state.*", "an example with transformers"),
    ("last_batch", r"train\.last_batch=keep", "a habit, which is answered"),
    ("last_batch", r"drop an incomplete last batch of an epoch; .*", "the batch that drop_last is about"),
    ("restore", r"restore_buffers", "buffers come back as they were"),
    ("room", r".*make room or make it writable, .*", "of a disk"),
    ("workers", r".*num_workers.*", "the name of the field"),
    ("why_not", r"show which implementation of each op serves on this machine, and why not another", "plain English"),
)
#: What people type by habit is answered with the right word, so these are keys of a table.
HABITS = Path("medvlp_core/planning/parameters.py")
#: Where ``parts`` are those of a model, as in a recipe's ``init_from``.
PARTS_OF_A_MODEL = Path("medvlp_core/training/init_from.py")
#: Where ``hidden`` is the width of a hidden layer.
HIDDEN_WIDTHS = (
    "medvlp_core/nn/layers.py",
    "medvlp_core/nn/reconstruction.py",
    "medvlp_core/scaffold/templates/decoder/",
    "plugins/mpma/medvlp_mpma/decoders.py",
    "plugins/mpma/medvlp_mpma/fusion.py",
    "plugins/standard/medvlp_standard/decoders.py",
    "tests/messages/",
)


@attrs.frozen
class Use:
    """One identifier or message: where it stands and what it says."""

    path: str
    line: int
    text: str
    is_message: bool


def words(name: str) -> list[str]:
    """``left``, ``out`` of ``StepLeftOut`` and of ``left_out``; and ``Step``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")


def has(name: str, word: str) -> bool:
    """Whether an identifier has a word of the table among its own."""
    if word[0].isupper():
        return name == word
    parts, wanted = words(name), word.split("_")
    return any(parts[start : start + len(wanted)] == wanted for start in range(len(parts)))


def says(message: str, word: str) -> bool:
    """Whether a message has a word of the table, with ``_`` or a space between its parts."""
    if word[0].isupper():
        return False  # "Report" begins many a sentence about a text
    return re.search(rf"(?<![A-Za-z]){word.replace('_', '[ _]')}(?![A-Za-z])", message) is not None


def is_printed(owner: ast.AST) -> bool:
    """Whether `medvlp show`, `medvlp conform --checks` and the pages print its docstring: a spec's, a conformance check's."""
    if not isinstance(owner, ast.ClassDef | ast.FunctionDef):
        return False
    made_by = {node.func.id for node in owner.decorator_list if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return bool(made_by & {"component", "check"})


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of the constants that are docstrings which nobody prints."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, owners) and node.body and not is_printed(node)]
    return {id(node.value) for node in first if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}


def uses_in(path: str, text: str) -> Iterator[Use]:
    """Every identifier, but pathlib's ``Path``, and every string of a source file that is no docstring, or one that is printed."""
    theirs = {"Path"} if re.search(r"^from pathlib import .*\bPath\b", text, re.MULTILINE) else set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string not in theirs:
            yield Use(path, token.start[0], token.string, is_message=False)
    tree = ast.parse(text)
    skipped = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield Use(path, node.lineno, node.value, is_message=True)


def keys(value: object) -> Iterator[str]:
    """Every key of a recipe, at any depth."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield str(key)
            yield from keys(child)
    elif isinstance(value, list):
        for child in value:
            yield from keys(child)


@functools.cache
def all_uses() -> tuple[Use, ...]:
    """Of the source, the tests, the templates of the scaffold and all recipes: whatever may have a word of the table."""
    return tuple(use for use in _every_use() if ANY.search(use.text))


def _every_use() -> Iterator[Use]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.*")):
            name = path.relative_to(ROOT).as_posix()
            if path.relative_to(ROOT) == ITSELF or name.startswith(BROKEN_YAML):
                continue
            if path.suffix == ".py":
                yield from uses_in(name, path.read_text(encoding="utf-8"))
            elif name.endswith(".py.tmpl"):
                yield from uses_in(name, re.sub(r"\$\{?(\w+)\}?", r"\1", path.read_text(encoding="utf-8")))
            elif path.suffix == ".yaml":
                yield from (Use(name, 0, key, is_message=False) for key in keys(yaml.safe_load(path.read_text(encoding="utf-8"))))


def is_allowed(use: Use, word: str) -> bool:
    """Whether the table of exceptions has it."""
    if use.path == HABITS.as_posix() and use.is_message:
        return True
    if word == "parts" and use.path == PARTS_OF_A_MODEL.as_posix():
        return True
    if word == "hidden" and not use.is_message and use.text == "hidden":
        return use.path.startswith(HIDDEN_WIDTHS)
    return any(word == one and re.fullmatch(pattern, use.text, re.DOTALL) for one, pattern, _ in ALLOWED)


def table(use: Use) -> dict[str, str]:
    """What is not said there, and what is said instead."""
    here = {word: instead for word, folders, instead in IN_FOLDERS if use.path.startswith(folders)}
    return (MESSAGES if use.is_message or use.path.startswith("tests/") else NAMES) | here


def complaints(uses: Iterable[Use]) -> list[str]:
    """One line for each use of a word of the table."""
    found = []
    for use in uses:
        is_in = says if use.is_message else has
        for word, instead in table(use).items():
            if is_in(use.text, word) and not is_allowed(use, word):
                found.append(f"{use.path}:{use.line}: {use.text!r}: instead of {word!r} say {instead}")
    return found


def test_the_dialect_is_not_spoken() -> None:
    assert complaints(all_uses()) == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("def go_on(run): ...", "go_on"),
        ("class StepLeftOut: ...", "left_out"),
        ("report = Report()", "Report"),
        ("PATIENCE = 3", "patience"),
        ("raise ValueError(f'{name}: nothing is hidden')", "hidden"),
        ("raise ValueError('the run goes on')", "goes_on"),
        ("hidden = image[is_masked]", "hidden"),
        ("def begin(run): ...", "begin"),
        ("@component('a.b')\nclass Spec:\n    'What is left out.'", "left_out"),
        ("@check('masking')\ndef f(s):\n    'As strangers do.'", "strangers"),
        ("ratio = param(0.5, help='share that is hidden')", "hidden"),
    ],
)
def test_the_dialect_would_be_heard(text: str, word: str) -> None:
    [line] = complaints(uses_in("x.py", text))
    assert f"instead of {word!r} say" in line


@pytest.mark.parametrize(
    ("path", "text", "word"),
    [
        ("medvlp_core/kernels/x.py", "class Path: ...", "Path"),
        ("plugins/mpma/medvlp_mpma/kernels/x.py", "from medvlp_core.kernels import Path", "Path"),
        ("medvlp_core/training/x.py", "passes = 4", "passes"),
        ("medvlp_core/training/x.py", "self.average = None", "average"),
        ("medvlp_core/training/x.py", "for one in parts: ...", "parts"),
    ],
)
def test_words_of_one_place_are_heard_there_alone(path: str, text: str, word: str) -> None:
    [line] = complaints(uses_in(path, text))
    assert f"instead of {word!r} say" in line
    assert complaints(uses_in("medvlp_core/spec/x.py", text)) == []
    assert complaints(uses_in(path, "from pathlib import Path")) == []


def test_ordinary_words_and_docstrings_are_free() -> None:
    text = '"""Hidden rooms, left out."""\nbroom = "the two do not fit together"\nreport = mushroom = None\n'
    assert complaints(uses_in("x.py", text)) == []


def test_every_exception_is_needed() -> None:
    uses = all_uses()
    idle = [
        (word, pattern)
        for word, pattern, _ in ALLOWED
        if not any(
            re.fullmatch(pattern, use.text, re.DOTALL) and (has if not use.is_message else says)(use.text, word) for use in uses
        )
    ]
    assert idle == []
    assert all(any(use.path.startswith(path) and use.text == "hidden" for use in uses) for path in HIDDEN_WIDTHS)
