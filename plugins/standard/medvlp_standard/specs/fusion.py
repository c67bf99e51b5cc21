"""Specs of the standard fusions: how image information reaches the text. Light."""

from __future__ import annotations

import attrs

from medvlp_core import ComponentSpec, Constraint, Contract, Divides, Role, component, param


def _fitting_heads(heads: int | None) -> tuple[Constraint, ...]:
    return () if heads is None else (Divides("Dt", by=heads, field="heads"),)


@component("standard.no_fusion", role=Role.FUSION, build="medvlp_standard.fusion:NoFusion")
@attrs.frozen(kw_only=True)
class NoFusionSpec(ComponentSpec):
    """Hands the text tokens on unchanged: the text-only baseline of a report decoder."""

    def contract(self) -> Contract:
        """Text only."""
        return Contract(needs={"text_tokens": "B L Dt"}, gives={"fused_text_tokens": "B L Dt"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """There is nothing to choose."""
        return (cls(), cls())


@component("standard.pooled_add", role=Role.FUSION, build="medvlp_standard.fusion:PooledAdd")
@attrs.frozen(kw_only=True)
class PooledAddSpec(ComponentSpec):
    """Adds the projected mean of the image tokens to every text position, as in MRM."""

    position: str = param(
        "early",
        help="early = added to the embeddings, in front of the text layers (MRM); late = behind them",
        one_of=("early", "late"),
    )

    def contract(self) -> Contract:
        """Works on embeddings or on contextual tokens."""
        if self.position == "early":
            return Contract(
                needs={"text_embeddings": "B L Dt", "image_tokens": "B S Di"},
                gives={"fused_text_embeddings": "B L Dt"},
                sizes=("Dt", "Di"),
            )
        return Contract(
            needs={"text_tokens": "B L Dt", "image_tokens": "B S Di"}, gives={"fused_text_tokens": "B L Dt"}, sizes=("Dt", "Di")
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Both positions."""
        return (cls(position="early"), cls(position="late"))


@component("standard.cross_attention", role=Role.FUSION, build="medvlp_standard.fusion:CrossAttention")
@attrs.frozen(kw_only=True)
class CrossAttentionSpec(ComponentSpec):
    """Text tokens attend to image tokens in pre-LN layers of self-attention, cross-attention and feed-forward."""

    layers: int = param(2, help="layers", at_least=1)
    heads: int | None = param(None, help="attention heads K; must divide the text width; null = one for each 64 of it", at_least=1)
    ffn_ratio: float = param(4.0, help="width of the feed-forward layer, as a multiple of the text width", above=0)
    dropout: float = param(0.1, help="dropout in attention and feed-forward layers", at_least=0, below=1)

    def contract(self) -> Contract:
        """Text of width Dt, image of any width Di."""
        return Contract(
            needs={"text_tokens": "B L Dt", "text_is_valid": "B L:bool", "image_tokens": "B S Di"},
            gives={"fused_text_tokens": "B L Dt"},
            sizes=("Dt", "Di"),
            require=_fitting_heads(self.heads),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two layers, heads given and not."""
        return (cls(layers=1, heads=1, ffn_ratio=2.0, dropout=0.0), cls(layers=2, ffn_ratio=1.0))


@component("standard.concat_attention", role=Role.FUSION, build="medvlp_standard.fusion:ConcatAttention")
@attrs.frozen(kw_only=True)
class ConcatAttentionSpec(ComponentSpec):
    """Text and image tokens in one sequence with modality embeddings and joint self-attention, as in M3AE."""

    layers: int = param(2, help="layers", at_least=1)
    heads: int | None = param(None, help="attention heads K; must divide the text width; null = one for each 64 of it", at_least=1)
    ffn_ratio: float = param(4.0, help="width of the feed-forward layer, as a multiple of the text width", above=0)
    dropout: float = param(0.1, help="dropout in attention and feed-forward layers", at_least=0, below=1)

    def contract(self) -> Contract:
        """The joint width is the text width; image tokens are projected to it."""
        return Contract(
            needs={"text_tokens": "B L Dt", "text_is_valid": "B L:bool", "image_tokens": "B S Di"},
            gives={"fused_text_tokens": "B L Dt", "fused_image_tokens": "B S Dt"},
            sizes=("Dt", "Di"),
            require=_fitting_heads(self.heads),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two layers, heads given and not."""
        return (cls(layers=1, heads=1, ffn_ratio=2.0, dropout=0.0), cls(layers=2, ffn_ratio=1.0))


SPECS: tuple[type[ComponentSpec], ...] = (NoFusionSpec, PooledAddSpec, CrossAttentionSpec, ConcatAttentionSpec)
