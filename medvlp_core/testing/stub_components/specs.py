"""Specs of the kit's stub components. Light.

Every size that a tested part may ask for is a parameter: a stub component is made to fit.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core import ComponentSpec, Contract, Divides, Role, TensorSpec, component, param

#: Ids of the special tokens of ``kit.words``.
SPECIALS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[MASK]": 3}

Fault = tuple[str, str, str | None]


def _heads_fault(heads: int, width: int) -> Iterable[Fault]:
    if width % heads:
        yield "heads", f"heads={heads} must divide width={width}", None


@component("kit.pairs", role=Role.DATA, build="medvlp_core.testing.stub_components.data:Pairs")
@attrs.frozen(kw_only=True)
class PairsSpec(ComponentSpec):
    """Drawn chests as PNG files, with texts that say what was drawn, labels, patients and three splits."""

    patients: int = param(20, help="patients, two images each; three fifths of them are for training", at_least=5)
    side: int = param(40, help="side of the images, pixels", at_least=16)

    def contract(self) -> Contract:
        """Nothing: the input pipeline turns records into tensors."""
        return Contract()

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """The default, and fewer larger images."""
        return (cls(), cls(patients=10, side=48))


@component("kit.words", role=Role.TOKENIZER, build="medvlp_core.testing.stub_components.tokenizer:Words")
@attrs.frozen(kw_only=True)
class WordsSpec(ComponentSpec):
    """A vocabulary of whole words, the most frequent ones of the training texts; others become [UNK]."""

    size: int = param(64, help="rows of the vocabulary table, special tokens included", at_least=5)
    max_length: int = param(24, help="longest text, tokens with [CLS]; the rest is cut off", at_least=2)
    end_of_text: bool = param(False, help="every text ends with [EOS]")

    @property
    def specials(self) -> dict[str, int]:
        """The ids of its special tokens."""
        return {**SPECIALS, "[EOS]": len(SPECIALS)} if self.end_of_text else SPECIALS

    def contract(self) -> Contract:
        """Texts of at most ``max_length`` tokens; the size of the table and the ids of [MASK] and [EOS]."""
        rows = f"B {self.max_length}"
        gives = {"token_ids": f"{rows}:int", "text_is_valid": f"{rows}:bool", "word_ids": f"{rows}:int"}
        end = {"end_of_text": f"{len(SPECIALS)}:shape"} if self.end_of_text else {}
        return Contract(gives={**gives, "vocabulary": f"{self.size} {SPECIALS['[MASK]']}:shape", **end})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """A table that the words do not fill, and one that is too small for them."""
        return (cls(), cls(size=16, max_length=12))


@component("kit.masking", role=Role.MASKING, build="medvlp_core.testing.stub_components.modules:RandomMasking")
@attrs.frozen(kw_only=True)
class MaskingSpec(ComponentSpec):
    """Random patches, the same number in every image, and whole words."""

    image_ratio: float = param(0.5, help="share of the patches that is masked", at_least=0, below=1)
    text_ratio: float = param(0.4, help="probability that a word is masked", at_least=0, at_most=1)

    def contract(self) -> Contract:
        """Masks for both modalities, and the ids with [MASK] in place."""
        text = {"token_ids": "B L:int", "text_is_valid": "B L:bool", "word_ids": "B L:int"}
        return Contract(
            needs={"image_grid": "GH GW:shape", "vocabulary": "V Mask:shape", **text},
            gives={"image_is_masked": "B N:bool", "text_is_masked": "B L:bool", "token_ids": "B L:int"},
            sizes=("GH", "GW", "Mask"),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """The default ratios, and others."""
        return (cls(), cls(image_ratio=0.75, text_ratio=0.6))


@component("kit.image_encoder", role=Role.IMAGE_ENCODER, build="medvlp_core.testing.stub_components.modules:PatchEncoder")
@attrs.frozen(kw_only=True)
class ImageEncoderSpec(ComponentSpec):
    """A linear embedding of each patch, positions, and one transformer block."""

    channels: int = param(1, help="channels of the input image", at_least=1)
    height: int = param(32, help="height of the input image, pixels", at_least=1)
    width: int = param(32, help="width of the input image, pixels", at_least=1)
    rows: int = param(4, help="rows of patches", at_least=1)
    columns: int = param(4, help="columns of patches", at_least=1)
    token_width: int = param(24, help="width of a token", at_least=1)
    heads: int = param(2, help="attention heads", at_least=1)
    prefix: int = param(1, help="learned tokens in front of those of the patches", at_least=0)
    layout: str = param("dropped", help="what becomes of masked patches: dropped or replaced", one_of=("dropped", "replaced"))

    def problems(self) -> Iterable[Fault]:
        """The grid divides the image, the heads the width."""
        if self.height % self.rows or self.width % self.columns:
            yield "rows", f"{self.rows} x {self.columns} patches must divide {self.height} x {self.width} pixels", None
        yield from _heads_fault(self.heads, self.token_width)

    def contract(self) -> Contract:
        """Tokens of the grid; with a mask the visible ones, or a mask token in place of the others."""
        patches = self.rows * self.columns
        shown = f"B {'Nv' if self.layout == 'dropped' else patches} {self.token_width}"
        masked = TensorSpec.parse(shown, port="image_tokens", layout=self.layout, when="image_is_masked")  # type: ignore[arg-type]
        return Contract(
            needs={"image": f"B {self.channels} {self.height} {self.width}", "image_is_masked": f"B {patches}:bool?"},
            gives={
                "image_grid": f"{self.rows} {self.columns}:shape",
                "image_tokens": f"B {patches} {self.token_width}",
                "masked_tokens": masked,
                "image_prefix": f"B {self.prefix} {self.token_width}",
            },
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Dropped and replaced patches, with and without prefix tokens, a grid that is not square."""
        return (cls(), cls(channels=3, rows=2, token_width=12, prefix=0, layout="replaced"))


@component("kit.text_encoder", role=Role.TEXT_ENCODER, build="medvlp_core.testing.stub_components.modules:WordEncoder")
@attrs.frozen(kw_only=True)
class TextEncoderSpec(ComponentSpec):
    """Embeddings of words and positions, and one transformer block."""

    width: int = param(24, help="width of a token", at_least=1)
    heads: int = param(2, help="attention heads", at_least=1)

    def problems(self) -> Iterable[Fault]:
        """Heads divide the width."""
        yield from _heads_fault(self.heads, self.width)

    def calls(self) -> dict[str, Contract]:
        """Ids to embeddings, these to contextual tokens."""
        tokens = f"B L {self.width}"
        ids = {"token_ids": "B L:int", "vocabulary": "V Mask:shape"}
        return {
            "embed": Contract(needs=ids, gives={"text_embeddings": tokens}, sizes=("V", "L")),
            "encode": Contract(needs={"text_embeddings": tokens, "text_is_valid": "B L:bool"}, gives={"text_tokens": tokens}),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two widths."""
        return (cls(), cls(width=12, heads=3))


@component("kit.fusion", role=Role.FUSION, build="medvlp_core.testing.stub_components.modules:CrossAttention")
@attrs.frozen(kw_only=True)
class FusionSpec(ComponentSpec):
    """Text tokens attend to image tokens in one block."""

    heads: int = param(2, help="attention heads; must divide the text width", at_least=1)

    def contract(self) -> Contract:
        """Text of width Dt, image of any width."""
        return Contract(
            needs={"text_tokens": "B L Dt", "text_is_valid": "B L:bool", "image_tokens": "B S Di"},
            gives={"fused_text_tokens": "B L Dt"},
            sizes=("Dt", "Di"),
            require=(Divides("Dt", by=self.heads, field="heads"),),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two heads."""
        return (cls(), cls(heads=1))


@component("kit.alignment", role=Role.ALIGNMENT, build="medvlp_core.testing.stub_components.modules:InfoNce")
@attrs.frozen(kw_only=True)
class AlignmentSpec(ComponentSpec):
    """Contrast of whole pairs: mean patch against mean word, with a learned temperature."""

    dim: int = param(8, help="width of the shared space", at_least=1)
    view: str = param("clean", help="tokens of the clean or the masked view", one_of=("clean", "masked"))

    def calls(self) -> dict[str, Contract]:
        """One loss, ``global``, on tokens of the chosen view; vectors in any."""
        tokens = {"image_tokens": f"B S Di @{self.view}", "text_tokens": f"B L Dt @{self.view}"}
        words = {"text_tokens": "B L Dt", "text_is_valid": "B L:bool"}
        return {
            "forward": Contract(
                needs={**tokens, "text_is_valid": "B L:bool"}, losses=("global",), sizes=("Di", "Dt"), mixes_rows=True
            ),
            "embed_image": Contract(needs={"image_tokens": "B S Di"}, gives={"image_embedding": f"B {self.dim}"}, sizes=("Di",)),
            "embed_text": Contract(needs=words, gives={"text_embedding": f"B {self.dim}"}, sizes=("Dt",)),
        }

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Both views."""
        return (cls(), cls(dim=12, view="masked"))


@component("kit.image_decoder", role=Role.DECODER, build="medvlp_core.testing.stub_components.modules:PatchDecoder")
@attrs.frozen(kw_only=True)
class ImageDecoderSpec(ComponentSpec):
    """Reconstructs the pixels of masked patches with one transformer block."""

    reads: str = param("image_tokens", help="port that it reads", one_of=("image_tokens", "fused_image_tokens"))
    width: int = param(16, help="width of the block", at_least=2)

    def problems(self) -> Iterable[Fault]:
        """Two heads share out the width."""
        yield from _heads_fault(2, self.width)

    def contract(self) -> Contract:
        """Tokens of the masked view, and the image as the target."""
        return Contract(
            needs={
                "image_tokens": TensorSpec.parse("B S Di @masked", port=self.reads),
                "image_is_masked": "B N:bool @masked",
                "image_grid": "GH GW:shape",
                "image": "B C H W",
            },
            gives={"patch_prediction": "B N Q"},
            sizes=("Di", "C", "H", "W", "GH", "GW"),
            require=(Divides("H", by="GH"), Divides("W", by="GW")),
            losses=("reconstruction",),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two widths."""
        return (cls(), cls(width=8))


@component("kit.report_decoder", role=Role.DECODER, build="medvlp_core.testing.stub_components.modules:WordDecoder")
@attrs.frozen(kw_only=True)
class ReportDecoderSpec(ComponentSpec):
    """Predicts masked words with one linear layer."""

    reads: str = param("fused_text_tokens", help="port that it reads", one_of=("fused_text_tokens", "text_tokens"))

    def contract(self) -> Contract:
        """Tokens of the masked view, and the words to find."""
        return Contract(
            needs={
                "text_tokens": TensorSpec.parse("B L Df @masked", port=self.reads),
                "token_ids": "B L:int @clean",
                "text_is_masked": "B L:bool @masked",
                "vocabulary": "V Mask:shape",
            },
            gives={"word_logits": "R V"},
            sizes=("Df", "V"),
            losses=("words",),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Before and after a fusion."""
        return (cls(), cls(reads="text_tokens"))


@component("kit.squared_error", role=Role.DECODER, build="medvlp_core.testing.stub_components.modules:SquaredError")
@attrs.frozen(kw_only=True)
class SquaredErrorSpec(ComponentSpec):
    """Pulls every number of the ports that it reads towards one, so that whatever gives them has something to learn."""

    reads: dict[str, int] = param(help="float ports that it reads, and how many axes each has", at_least=0)
    view: str = param("clean", help="the view of the ports", one_of=("clean", "masked"))

    def contract(self) -> Contract:
        """Ports of any sizes; one loss, ``distance``."""
        dims = {port: ("B", *(f"{port}_{axis}" for axis in range(1, axes)))[:axes] for port, axes in self.reads.items()}
        needs = {port: TensorSpec(symbols, view=self.view) for port, symbols in dims.items()}
        return Contract(needs=needs, losses=("distance",))

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One port, and two of the masked view."""
        return (cls(reads={"image_tokens": 3}), cls(reads={"image_tokens": 3, "image_prefix": 3}, view="masked"))


@component("kit.source", role=Role.PART, build="medvlp_core.testing.stub_components.modules:Source")
@attrs.frozen(kw_only=True)
class SourceSpec(ComponentSpec):
    """Gives ports of any names and shapes, for a component that needs what no other one of the kit gives."""

    gives: dict[str, str] = param(help="ports and their shapes in numbers, as a contract writes them: B 5 12")

    def contract(self) -> Contract:
        """Learned numbers, moved by the mean of the image tokens; whole numbers and truth values are constant."""
        return Contract(needs={"image_tokens": "B S Di"}, gives=dict(self.gives))

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """A vector, and a map with a vector."""
        return (cls(gives={"kit_vector": "B 5"}), cls(gives={"kit_map": "B 3 4", "kit_vector": "B 5", "kit_code": "B:int"}))


@component("kit.evaluator", role=Role.EVALUATOR, build="medvlp_core.testing.stub_components.evaluator:NearestText")
@attrs.frozen(kw_only=True)
class EvaluatorSpec(ComponentSpec):
    """How often the text that is nearest to an image is its own, against chance; with a picture of all similarities."""

    pairs: int = param(8, help="pairs to look at, the first of the split", at_least=2)

    def contract(self) -> Contract:
        """Vectors of both modalities in a shared space."""
        return Contract(needs={"image_embedding": "B E", "text_embedding": "B E"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """All pairs of a small split, and some."""
        return (cls(), cls(pairs=4))


SPECS: tuple[type[ComponentSpec], ...] = (
    PairsSpec,
    WordsSpec,
    MaskingSpec,
    ImageEncoderSpec,
    TextEncoderSpec,
    FusionSpec,
    AlignmentSpec,
    ImageDecoderSpec,
    ReportDecoderSpec,
    SquaredErrorSpec,
    SourceSpec,
    EvaluatorSpec,
)
