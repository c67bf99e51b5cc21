"""Specs of the standard image encoders. Light."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from medvlp_core import ComponentSpec, Contract, Dim, Role, TensorSpec, component, is_skipping_pretrained_init, param
from medvlp_standard.timm_facts import cnn_facts, misspelt, vit_facts

Fault = tuple[str, str, str | None]


def _wrong_name(model: str, kind: str) -> Iterable[Fault]:
    """A name of the other component's models, or a misspelt one."""
    if kind == "cnn" and vit_facts(model):
        yield "model", f"{model!r} is a vision transformer, without feature maps", "use standard.timm_vit"
    elif kind == "vit" and cnn_facts(model):
        yield "model", f"{model!r} is a model with feature maps, and no VisionTransformer", "use standard.timm_cnn"
    elif near := misspelt(model, kind):
        yield "model", f"timm has no model {model!r}", f"did you mean {near!r}?"


def _missing_checkpoint(pretrained: str | None) -> Iterable[Fault]:
    if is_skipping_pretrained_init():
        return
    if pretrained not in (None, "hub") and not Path(str(pretrained)).expanduser().is_file():
        hint = "give the path of a .safetensors or .pt file, or `hub` for timm's own weights, or null for random weights"
        yield "pretrained", f"there is no checkpoint {pretrained!r}", hint


def _indivisible(image_size: int, cell: int, what: str) -> Iterable[Fault]:
    if image_size % cell:
        low, high = image_size - image_size % cell, image_size - image_size % cell + cell
        yield "image_size", f"image_size={image_size} must be a multiple of the {what}, {cell}", f"use {low or high} or {high}"


def _tokens(n: Dim, width: Dim, prefix: Dim, grid: tuple[Dim, Dim], masked: TensorSpec) -> dict[str, TensorSpec | str]:
    return {
        "image_grid": TensorSpec(dims=grid, dtype="shape"),
        "image_tokens": TensorSpec(dims=("B", n, width)),
        "masked_image_tokens": masked,
        "image_prefix": TensorSpec(dims=("B", prefix, width)),
    }


@component("standard.timm_vit", role=Role.IMAGE_ENCODER, build="medvlp_standard.image_encoders:TimmViT")
@attrs.frozen(kw_only=True)
class TimmViTSpec(ComponentSpec):
    """Any vision transformer of timm; masked patches are dropped, so a 75 % mask costs a quarter of the tokens."""

    model: str = param("vit_base_patch16_224", help="timm name of a VisionTransformer, with or without a weights tag")
    image_size: int = param(224, help="side of the input image, pixels", at_least=1)
    channels: int = param(3, help="channels of the input image; 1 sums pretrained colour weights", one_of=(1, 3))
    patch_size: int | None = param(None, help="patch side, pixels; null = timm's", at_least=1)
    width: int | None = param(None, help="width of a token; null = timm's", at_least=1)
    depth: int | None = param(None, help="number of blocks; null = timm's", at_least=1)
    heads: int | None = param(None, help="attention heads; null = timm's", at_least=1)
    positions: str = param(
        "learned", help="learned (timm's), or sincos: fixed 2-D sine-cosine as in MAE and MRM", one_of=("learned", "sincos")
    )
    norm: bool = param(True, help="end with timm's final norm; false = tokens as the last block leaves them")
    drop_path: float = param(0.0, help="stochastic depth: largest chance to skip a block in training", at_least=0, below=1)
    pretrained: str | None = param(None, help="path of a checkpoint, or `hub` for timm's weights; null = random weights")

    def problems(self) -> Iterable[Fault]:
        """A misspelt name, a missing checkpoint, a patch that does not divide the image, heads that do not divide the width."""
        yield from _wrong_name(self.model, "vit")
        yield from _missing_checkpoint(self.pretrained)
        facts = vit_facts(self.model)
        patch = self.patch_size or (facts.patch if facts else 1)
        yield from _indivisible(self.image_size, patch, "patch side")
        width = self.width or (facts.width if facts else None)
        heads = self.heads or (facts.heads if facts else None)
        if width and heads and width % heads:
            field = "heads" if self.heads else "width"
            hint = f"heads that divide {width}: {', '.join(str(d) for d in range(1, min(width, 32) + 1) if width % d == 0)}"
            yield field, f"{heads} heads must divide the width, {width}", hint
        if width and self.positions == "sincos" and width % 4:
            yield "positions", f"sine-cosine positions need a width that 4 divides, found {width}", None

    def contract(self) -> Contract:
        """Tokens of the grid, the visible ones in the masked view; prefix tokens apart. Free symbols for unknown models."""
        facts = vit_facts(self.model)
        patch = self.patch_size or (facts.patch if facts else None)
        side = self.image_size // patch if patch else None
        grid: tuple[Dim, Dim] = (side, side) if side else ("GH", "GW")
        n: Dim = side * side if side else "N"
        width: Dim = self.width or (facts.width if facts else "Di")
        masked = TensorSpec(dims=("B", "Nv", width), layout="dropped", port="image_tokens", when="image_is_masked")
        return Contract(
            needs={
                "image": TensorSpec(dims=("B", self.channels, self.image_size, self.image_size)),
                "image_is_masked": TensorSpec(dims=("B", n), dtype="bool", is_optional=True),
            },
            gives=_tokens(n, width, facts.prefix if facts else "P", grid, masked),
            sizes=("N", "Di", "P", "GH", "GW"),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Micro models: one with a class token and fixed positions, one with four registers and learned positions."""
        small = cls(image_size=32, patch_size=8, width=16, depth=2, heads=2, positions="sincos")
        registers = cls(
            model="vit_little_patch16_reg4_gap_256", image_size=48, channels=1, patch_size=16, width=24, depth=1, heads=3
        )
        return small, registers


@component("standard.timm_cnn", role=Role.IMAGE_ENCODER, build="medvlp_standard.image_encoders:TimmCNN")
@attrs.frozen(kw_only=True)
class TimmCNNSpec(ComponentSpec):
    """Any feature model of timm (ResNet, ConvNeXt, EfficientNet); one token for each cell of a feature map, no prefix tokens.

    Masked cells of the input are set to 0, the mean grey after normalisation. The receptive fields of neighbouring cells overlap,
    so all N tokens stay (layout ``replaced``), but a masked pixel never enters.
    """

    model: str = param("resnet50", help="timm name of a model with feature maps, with or without a weights tag")
    image_size: int = param(224, help="side of the input image, pixels", at_least=1)
    channels: int = param(3, help="channels of the input image; 1 sums pretrained colour weights", one_of=(1, 3))
    stage: int = param(-1, help="index of the feature stage whose cells become tokens; -1 = the last")
    pretrained: str | None = param(None, help="path of a checkpoint, or `hub` for timm's weights; null = random weights")

    def problems(self) -> Iterable[Fault]:
        """A misspelt name, a missing checkpoint, a stage that does not exist, an image that the cells do not divide."""
        yield from _wrong_name(self.model, "cnn")
        yield from _missing_checkpoint(self.pretrained)
        facts = cnn_facts(self.model)
        if facts is None:
            return
        count = len(facts.channels)
        if not -count <= self.stage < count:
            yield "stage", f"{self.model} has {count} feature stages, found stage={self.stage}", f"use 0 to {count - 1}, or -1"
        else:
            yield from _indivisible(self.image_size, facts.reductions[self.stage], "reduction of the stage")

    def contract(self) -> Contract:
        """One token for each cell in both views. Free symbols for models that the table does not know."""
        facts = cnn_facts(self.model)
        is_known = facts is not None and -len(facts.channels) <= self.stage < len(facts.channels)
        side = self.image_size // facts.reductions[self.stage] if facts and is_known else None
        grid: tuple[Dim, Dim] = (side, side) if side else ("GH", "GW")
        n: Dim = side * side if side else "N"
        width: Dim = facts.channels[self.stage] if facts and is_known else "Di"
        masked = TensorSpec(dims=("B", n, width), layout="replaced", port="image_tokens", when="image_is_masked")
        return Contract(
            needs={
                "image": TensorSpec(dims=("B", self.channels, self.image_size, self.image_size)),
                "image_is_masked": TensorSpec(dims=("B", n), dtype="bool", is_optional=True),
            },
            gives=_tokens(n, width, 0, grid, masked),
            sizes=("N", "Di", "GH", "GW"),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Shallow stages of small models, on small images."""
        return (
            cls(model="resnet10t", image_size=32, stage=2),
            cls(model="convnext_atto", image_size=32, channels=1, stage=1),
        )


SPECS: tuple[type[ComponentSpec], ...] = (TimmViTSpec, TimmCNNSpec)
