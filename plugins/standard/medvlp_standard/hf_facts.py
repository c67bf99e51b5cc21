"""Facts about transformers models and tokenizers, read from their JSON files without transformers. Light.

A model is a local folder, or a hub name whose files lie in the Hugging Face cache. Nothing here asks the network; what cannot be
read stays unknown and is checked again when the model is built.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

#: Model types that number positions from ``pad_token_id + 1``, so that their table is longer than the longest text.
_OFFSET_TYPES = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "mpnet", "longformer"}
)


@attrs.frozen
class TextFacts:
    """Width, size of the vocabulary table and longest text in tokens; None where the file does not say."""

    width: int | None = None
    vocabulary: int | None = None
    positions: int | None = None


@attrs.frozen
class TokenizerFacts:
    """Size of the vocabulary (largest id + 1) and id of the mask token; None where the files do not say."""

    vocabulary: int | None = None
    mask_id: int | None = None


def is_path(model: str) -> bool:
    """Whether ``model`` can only be a folder: a hub name has at most one slash and does not start with ``.``, ``/`` or ``~``."""
    return model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 or Path(model).is_dir()


def local_folder(model: str) -> Path | None:
    """The folder with the model's files: ``model`` itself, or its snapshot in the Hugging Face cache; None if there is none."""
    if is_path(model):
        folder = Path(model).expanduser()
        return folder if folder.is_dir() else None
    repository = _cache_folder() / f"models--{model.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if revision and snapshot.is_dir() else None


def first_line(error: Exception) -> str:
    """The first line of an exception's text; transformers writes paragraphs."""
    return str(error).strip().partition("\n")[0]


def _cache_folder() -> Path:
    """Where huggingface_hub keeps its files, by its documented environment variables."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def text_facts(model: str) -> TextFacts:
    """What the ``config.json`` of a text model says, as far as it lies on this machine."""
    return config_facts(_read_json(local_folder(model), "config.json"))


def config_facts(config: Mapping[str, Any]) -> TextFacts:
    """The same of a config that was already read.

    Example:
        >>> config_facts({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}).positions
        512
    """
    positions = _number(config, "max_position_embeddings")
    if positions is not None and config.get("model_type") in _OFFSET_TYPES:
        offset = _number(config, "pad_token_id")
        positions -= (1 if offset is None else offset) + 1
    width = _number(config, "dim") if config.get("model_type") == "distilbert" else _number(config, "hidden_size")
    return TextFacts(width=width, vocabulary=_number(config, "vocab_size"), positions=positions)


def tokenizer_facts(model: str) -> TokenizerFacts:
    """What ``tokenizer.json`` and its companions say about a tokenizer."""
    folder = local_folder(model)
    tokenizer = _read_json(folder, "tokenizer.json")
    ids = _token_ids(tokenizer)
    if not ids:
        return TokenizerFacts()
    named = {**_read_json(folder, "special_tokens_map.json"), **_read_json(folder, "tokenizer_config.json")}.get("mask_token")
    mask = named.get("content") if isinstance(named, dict) else named
    return TokenizerFacts(vocabulary=max(ids.values()) + 1, mask_id=ids.get(mask) if isinstance(mask, str) else None)


def _token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    if isinstance(vocabulary, dict):
        ids = dict(vocabulary)
    elif isinstance(vocabulary, list):  # unigram models list [piece, score] in the order of ids
        ids = {piece[0]: index for index, piece in enumerate(vocabulary)}
    return ids | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}


def _read_json(folder: Path | None, name: str) -> dict[str, Any]:
    """The mapping in a file; empty if the file is missing or broken, which the builder reports with its reason."""
    if folder is None:
        return {}
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
