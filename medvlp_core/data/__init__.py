"""Records, tokenizers and the way from both to batches."""

from __future__ import annotations

from medvlp_core.data.order import DataOrder, Share, seed_of
from medvlp_core.data.pipeline import Collate, InputPipeline
from medvlp_core.data.records import DataSource, Record, RecordsBySplit, fingerprint_records, list_splits, no_such_split
from medvlp_core.data.tokenizer import EncodedTexts, Tokenizer

__all__ = [
    "Collate",
    "DataOrder",
    "DataSource",
    "EncodedTexts",
    "InputPipeline",
    "Record",
    "RecordsBySplit",
    "Share",
    "Tokenizer",
    "fingerprint_records",
    "list_splits",
    "no_such_split",
    "seed_of",
]
