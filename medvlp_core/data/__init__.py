"""Records, tokenizers and the way from both to batches."""

from __future__ import annotations

from medvlp_core.data.fields import (
    collate_field,
    cut_field,
    draw_field,
    pixel_size,
    read_field,
    spans_to_tokens,
)
from medvlp_core.data.geometry import Geometry, boxes_to_original, to_original
from medvlp_core.data.order import DataOrder, Share, seed_of
from medvlp_core.data.pipeline import InputPipeline
from medvlp_core.data.records import DataSource, Record, RecordsBySplit, fingerprint_records, list_splits, no_such_split
from medvlp_core.data.samples import Collate, Sample
from medvlp_core.data.tokenizer import EncodedTexts, Tokenizer

__all__ = [
    "Collate",
    "DataOrder",
    "DataSource",
    "EncodedTexts",
    "Geometry",
    "InputPipeline",
    "Record",
    "RecordsBySplit",
    "Sample",
    "Share",
    "Tokenizer",
    "boxes_to_original",
    "collate_field",
    "cut_field",
    "draw_field",
    "fingerprint_records",
    "list_splits",
    "no_such_split",
    "pixel_size",
    "read_field",
    "seed_of",
    "spans_to_tokens",
    "to_original",
]
