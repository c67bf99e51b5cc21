"""Specs of the MPMA components. Light.

The abstracts of MPMA name these parts and what they are for. What is inside is a reconstruction (docs/mpma.md, value by value).
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, TensorSpec, component, param

#: Ports that masking and text losses share.
TEXT = {"text_is_valid": "B L:bool", "word_ids": "B L:int"}


@component("mpma.paired_masking", role=Role.MASKING, build="medvlp_mpma.masking:PairedMasking")
@attrs.frozen(kw_only=True)
class PairedMaskingSpec(ComponentSpec):
    """Masks patches and whole words of every pair together; no report with words stays complete."""

    image_ratio: float = param(0.75, help="share of the patches that is masked (MRM)", at_least=0, below=1)
    text_ratio: float = param(0.5, help="probability that a word is masked, always as [MASK] (MRM)", at_least=0, at_most=1)

    def contract(self) -> Contract:
        """Masks for both modalities, and the ids with [MASK] in place."""
        return Contract(
            needs={"image_grid": "GH GW:shape", "vocabulary": "V Mask:shape", "token_ids": "B L:int", **TEXT},
            gives={
                "image_is_masked": "B N:bool",
                "text_is_masked": "B L:bool",
                "token_ids": "B L:int",
            },
            sizes=("GH", "GW", "V", "Mask"),
        )

    @classmethod
    def examples(cls) -> tuple[PairedMaskingSpec, ...]:
        """The default ratios, and others."""
        return (cls(), cls(image_ratio=0.5, text_ratio=0.15))


@component("mpma.memory_fusion", role=Role.FUSION, build="medvlp_mpma.fusion:MemoryFusion")
@attrs.frozen(kw_only=True)
class MemoryFusionSpec(ComponentSpec):
    """MA-CMF: report tokens and image tokens query a learned memory, then report tokens attend to image tokens."""

    memory: str = param(
        "cmn_topk",
        help="cmn_topk: one matrix that both modalities query for its best slots (R2GenCMN); cmn_softmax: all slots answer; "
        "kv_slots: extra keys and values in each cross-attention (meshed memory); none",
        one_of=("cmn_topk", "cmn_softmax", "kv_slots", "none"),
    )
    slots: int = param(2048, help="memory slots M (R2GenCMN 2048; meshed memory uses 40 per layer)", at_least=1)
    topk: int = param(32, help="slots that answer a query, per head (cmn_topk); at least M means all", at_least=1)
    heads: int = param(12, help="attention heads K, of memory and layers", at_least=1)
    layers: int = param(2, help="fusion layers, unless fuse is pooled_add", at_least=1)
    fuse: str = param(
        "cross_attention",
        help="cross_attention over image tokens; pooled_add of their mean to every report token (MRM); "
        "pooled_and_cross: cross-attention over image tokens and their mean (after ECAMP)",
        one_of=("cross_attention", "pooled_add", "pooled_and_cross"),
    )
    position: str = param(
        "late", help="late: after the text encoder's layers; early: before them (MRM, ECAMP)", one_of=("late", "early")
    )
    ffn_ratio: float = param(4.0, help="hidden width of the feed-forward parts, in widths", above=0)
    dropout: float = param(0.1, help="dropout of memory, attention and feed-forward parts", at_least=0, below=1)
    kernel: str = param(
        "auto",
        help="implementation of the memory's op: reference, composite, triton, or auto, which leaves the choice to MEDVLP_KERNELS "
        "and else takes the best that serves (docs/kernels.md)",
        one_of=("auto", "reference", "composite", "triton"),
    )

    @property
    def has_shared_memory(self) -> bool:
        """Whether both modalities query one memory matrix."""
        return self.memory in ("cmn_topk", "cmn_softmax")

    @property
    def has_layers(self) -> bool:
        """Whether report tokens attend to image tokens."""
        return self.fuse != "pooled_add"

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Memory slots as keys need an attention to stand in."""
        if self.memory == "kv_slots" and not self.has_layers:
            text = "memory=kv_slots adds keys to a cross-attention, and fuse=pooled_add has none"
            yield "memory", text, "use fuse cross_attention or pooled_and_cross, or memory cmn_topk, cmn_softmax or none"
        if self.memory == "none" and self.kernel != "auto":
            yield "kernel", f"kernel={self.kernel} says how the memory is computed, and memory=none has none", "leave kernel out"

    def contract(self) -> Contract:
        """Late: tokens to fused tokens; early: embeddings to fused embeddings."""
        stage = "tokens" if self.position == "late" else "embeddings"
        needs_heads = self.has_layers or self.has_shared_memory
        return Contract(
            needs={f"text_{stage}": "B L Dt", "text_is_valid": "B L:bool", "image_tokens": "B S Di"},
            gives={f"fused_text_{stage}": "B L Dt"},
            sizes=("Dt", "Di"),
            require=(Divides("Dt", by=self.heads, field="heads"),) if needs_heads else (),
        )

    @classmethod
    def examples(cls) -> tuple[MemoryFusionSpec, ...]:
        """Each memory, each fusion and both positions at least once."""
        small = cls(slots=8, topk=2, heads=2, layers=1, ffn_ratio=2.0)
        return (
            small,
            attrs.evolve(small, memory="cmn_softmax", fuse="pooled_and_cross"),
            attrs.evolve(small, memory="kv_slots", position="early", layers=2),
            attrs.evolve(small, memory="none", fuse="pooled_add", position="early"),
        )


@component("mpma.global_local", role=Role.ALIGNMENT, build="medvlp_mpma.alignment:GlobalLocal")
@attrs.frozen(kw_only=True)
class GlobalLocalSpec(ComponentSpec):
    """GLA: contrast of whole pairs and of words with patches, on tokens from before the fusion."""

    granularity: str = param("both", help="which losses: global, local or both", one_of=("both", "global", "local"))
    local_kind: str = param(
        "tokenwise",
        help="tokenwise: words and patches inside each pair (after MGCA); gloria: attended words across pairs",
        one_of=("tokenwise", "gloria"),
    )
    align_image: str = param(
        "masked", help="image tokens of the masked (visible patches only) or the clean view", one_of=("masked", "clean")
    )
    align_text: str = param(
        "masked", help="report tokens of the masked view (MaCo) or of an extra clean pass (ALTA)", one_of=("masked", "clean")
    )
    dim: int = param(128, help="width E of the shared spaces (MGCA)", at_least=1)
    tau_global: float = param(
        0.07, help="initial temperature of the global loss; learned, its inverse stays at or below 100", at_least=0.01
    )
    tau_local: float = param(0.1, help="temperature of the token-wise local loss (MGCA)", above=0)
    gloria_attention_scale: float = param(4.0, help="gloria: sharpness of the attention over patches", above=0)
    gloria_word_scale: float = param(5.0, help="gloria: sharpness of the sum over words", above=0)
    gloria_logit_scale: float = param(10.0, help="gloria: sharpness of the contrast of pairs", above=0)
    same_word: str = param(
        "negative",
        help="another occurrence of a word in the same report, token-wise loss: a negative, or ignored",
        one_of=("negative", "ignore"),
    )
    same_text: str = param(
        "negative",
        help="another pair with an equal report, losses across pairs: a negative, or ignored",
        one_of=("negative", "ignore"),
    )

    @property
    def has_global(self) -> bool:
        """Whether whole pairs are contrasted."""
        return self.granularity != "local"

    @property
    def has_local(self) -> bool:
        """Whether words are contrasted with patches."""
        return self.granularity != "global"

    @property
    def needs_ids(self) -> bool:
        """Whether equal words or texts must be found."""
        return "ignore" in (self.same_word, self.same_text)

    def calls(self) -> dict[str, Contract]:
        """Tokens from before the fusion: in the chosen views for the losses, in any view for the vectors."""
        needs: dict[str, TensorSpec | str] = {
            "image_tokens": f"B S Di @{self.align_image}",
            "text_tokens": f"B L Dt @{self.align_text}",
            **TEXT,
        }
        if self.align_text == "masked":
            needs["text_is_masked"] = "B L:bool? @masked"
        if self.needs_ids:
            needs["token_ids"] = "B L:int @clean"
        losses = ("global",) * self.has_global + ("local",) * self.has_local
        words = {"text_tokens": "B L Dt"} if self.has_global else {"text_tokens": "B L Dt", **TEXT}
        return {
            "forward": Contract(needs=needs, losses=losses, sizes=("Di", "Dt"), mixes_rows=True),
            "embed_image": Contract(needs={"image_tokens": "B N Di"}, gives={"image_embedding": f"B {self.dim}"}, sizes=("Di",)),
            "embed_text": Contract(needs=words, gives={"text_embedding": f"B {self.dim}"}, sizes=("Dt",)),
        }

    @classmethod
    def examples(cls) -> tuple[GlobalLocalSpec, ...]:
        """Both local losses, and a single granularity."""
        return (
            cls(dim=8),
            cls(dim=8, local_kind="gloria", align_text="clean"),
            cls(dim=8, granularity="global", align_image="clean"),
        )


@component("mpma.image_decoder", role=Role.DECODER, build="medvlp_mpma.decoders:ImageDecoder")
@attrs.frozen(kw_only=True)
class ImageDecoderSpec(ComponentSpec):
    """Reconstructs the masked patches at a higher resolution than the encoder saw."""

    target_size: int = param(448, help="side of the reconstructed image, pixels (MRM: twice the input)", at_least=1)
    width: int = param(768, help="width of the decoder (MRM)", at_least=4)
    depth: int = param(4, help="transformer blocks (MRM)", at_least=1)
    heads: int = param(6, help="attention heads K (MRM)", at_least=1)
    normalise_patches: bool = param(True, help="reconstruct each patch normalised by its own mean and deviation (MRM)")

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Heads and positions share out the width."""
        if self.width % self.heads:
            yield "heads", f"heads={self.heads} must divide width={self.width}", None
        if self.width % 4:
            yield "width", f"width={self.width} must be a multiple of 4 (sine-cosine positions)", None

    def contract(self) -> Contract:
        """Masked image tokens and the target image; the grid divides the target."""
        size = self.target_size
        return Contract(
            needs={
                "image_tokens": "B S Di @masked",
                "image_prefix": "B P Di @masked",
                "image_is_masked": "B N:bool @masked",
                "image_grid": "GH GW:shape",
                "image_target": f"B C {size} {size}",
            },
            gives={"patch_prediction": "B N Q"},
            sizes=("Di", "C", "GH", "GW"),
            require=(Divides(size, by="GH"), Divides(size, by="GW")),
            losses=("reconstruction",),
        )

    @classmethod
    def examples(cls) -> tuple[ImageDecoderSpec, ...]:
        """Targets of 32 pixels."""
        small = cls(target_size=32, width=16, depth=1, heads=2)
        return (small, attrs.evolve(small, depth=2, normalise_patches=False))


@component("mpma.report_decoder", role=Role.DECODER, build="medvlp_mpma.decoders:ReportDecoder")
@attrs.frozen(kw_only=True)
class ReportDecoderSpec(ComponentSpec):
    """Predicts the report's words from fused tokens; its output layer is untied from the input embedding."""

    positions: str = param(
        "masked",
        help="positions that the loss averages over: masked, nonpad, or all (MRM's code)",
        one_of=("masked", "nonpad", "all"),
    )
    head: str = param(
        "transform", help="linear, or transform: BERT's dense-GELU-LayerNorm before it (MRM)", one_of=("transform", "linear")
    )

    def contract(self) -> Contract:
        """Fused tokens of the masked view, and the words to find."""
        return Contract(
            needs={
                "fused_text_tokens": "B L Df @masked",
                "token_ids": "B L:int @clean",
                "text_is_masked": "B L:bool @masked",
                "text_is_valid": "B L:bool",
                "vocabulary": "V Mask:shape",
            },
            gives={"word_logits": "R V"},
            sizes=("Df", "V"),
            losses=("mlm",),
        )

    @classmethod
    def examples(cls) -> tuple[ReportDecoderSpec, ...]:
        """Each choice of positions, both heads."""
        return (cls(), cls(positions="nonpad", head="linear"), cls(positions="all"))


SPECS: tuple[type[ComponentSpec], ...] = (
    PairedMaskingSpec,
    MemoryFusionSpec,
    GlobalLocalSpec,
    ImageDecoderSpec,
    ReportDecoderSpec,
)
