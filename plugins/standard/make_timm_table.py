"""Write ``medvlp_standard/timm_table.json``: the facts about timm models that a torch-free spec needs.

Run it with the newest timm: ``python plugins/standard/make_timm_table.py``. Models are made on the meta device: no memory, no
weights. ``vit`` maps a name to ``[width, patch side, input size, prefix tokens, depth, heads]``, for every VisionTransformer that
cuts square patches with one convolution; ``cnn`` maps a name to ``[channels, reductions]``, one number for each feature stage.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer

TABLE = Path(__file__).parent / "medvlp_standard" / "timm_table.json"
VIT_PATTERNS = ("*vit*", "deit*")
CNN_PATTERNS = ("resnet*", "resnext*", "seresnet*", "convnext*", "densenet*", "efficientnet*", "tf_efficientnet*", "regnet*")


def vit_row(name: str) -> list[int] | None:
    """The facts of one vision transformer, or None if it is another kind of model."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    if not isinstance(model, VisionTransformer) or type(model.patch_embed) is not PatchEmbed:
        return None
    (height, width), (patch, other) = model.patch_embed.img_size, model.patch_embed.patch_size
    heads = getattr(getattr(model.blocks[0], "attn", model.blocks[0]), "num_heads", None)
    if height != width or patch != other or heads is None:
        return None
    return [model.embed_dim, patch, height, model.num_prefix_tokens, len(model.blocks), heads]


def cnn_row(name: str) -> list[list[int]] | None:
    """Channels and reductions of one convolutional network, or None if it gives no feature maps."""
    try:
        with torch.device("meta"):
            info = timm.create_model(name, features_only=True).feature_info
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
        return None
    return [list(info.channels()), list(info.reduction())]


def names(patterns: tuple[str, ...]) -> list[str]:
    """The names of this timm that fit one of the patterns, sorted."""
    return sorted({name for pattern in patterns for name in timm.list_models(pattern)})


def main() -> None:
    """Collect both tables and write them, one model a line, so that a change of timm shows as a readable diff."""
    tables: dict[str, dict[str, Any]] = {
        "vit": {name: vit_row(name) for name in names(VIT_PATTERNS)},
        "cnn": {name: cnn_row(name) for name in names(CNN_PATTERNS)},
    }
    tables = {kind: {name: row for name, row in rows.items() if row} for kind, rows in tables.items()}
    lines = [f'"timm": {json.dumps(timm.__version__)}']
    for kind, rows in tables.items():
        body = ",\n".join(f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in rows.items())
        lines.append(f'"{kind}": {{\n{body}\n}}')
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{TABLE.name}: {len(tables['vit'])} vit, {len(tables['cnn'])} cnn, {TABLE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
