"""Specs of the standard evaluators: held-out checks beside their trivial baselines, and pictures. Light."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param

_PATCH_NEEDS = {"patch_prediction": "B N Q", "image_grid": "GH GW:shape"}
_WORD_NEEDS = {"word_logits": "R V", "text_is_masked": "B L:bool @masked"}


@component("standard.masked_words", role=Role.EVALUATOR, build="medvlp_standard.evaluators.masked_words:MaskedWords")
@attrs.frozen(kw_only=True)
class MaskedWordsSpec(ComponentSpec):
    """Accuracy on masked words with the right image, a wrong image and none: the gain shows that the image is used."""

    draws: int = param(3, help="random masks per report; all three images are tried with each", at_least=1)
    max_pairs: int = param(512, help="pairs to look at, evenly spread over the split", at_least=2)

    def contract(self) -> Contract:
        """Logits of masked words."""
        return Contract(needs=_WORD_NEEDS)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two masks."""
        return (cls(draws=1, max_pairs=8), cls(draws=2, max_pairs=8))


@component(
    "standard.patch_reconstruction",
    role=Role.EVALUATOR,
    build="medvlp_standard.evaluators.patch_reconstruction:PatchReconstruction",
)
@attrs.frozen(kw_only=True)
class PatchReconstructionSpec(ComponentSpec):
    """Error on masked patches, in the decoder's own target space, against predicting a mean patch."""

    draws: int = param(2, help="random masks per image", at_least=1)
    max_pairs: int = param(512, help="pairs to look at, evenly spread over the split", at_least=1)

    def contract(self) -> Contract:
        """Reconstructed patches and the images that they are reconstructed from."""
        return Contract(needs=_PATCH_NEEDS)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two masks."""
        return (cls(draws=1, max_pairs=8), cls(draws=2, max_pairs=8))


@component("standard.retrieval", role=Role.EVALUATOR, build="medvlp_standard.evaluators.retrieval:Retrieval")
@attrs.frozen(kw_only=True)
class RetrievalSpec(ComponentSpec):
    """Precision@K of image-to-text and text-to-image retrieval at the level of labels, against a random ranking."""

    ks: tuple[int, ...] = param((1, 5, 10), help="values of K", at_least=1)
    labels: tuple[str, ...] | None = param(
        None, help="a hit has the same positive ones of these labels, or an equal text; null = all labels that vary in the split"
    )

    def contract(self) -> Contract:
        """Vectors of both modalities in a shared space."""
        return Contract(needs={"image_embedding": "B E", "text_embedding": "B E"})

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """At least one K."""
        if not self.ks:
            yield "ks", "give at least one K", "write [1, 5, 10]"

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """All labels, and one."""
        return (cls(ks=(1,)), cls(ks=(1, 2), labels=("Pneumonia",)))


@component("standard.zero_shot", role=Role.EVALUATOR, build="medvlp_standard.evaluators.zero_shot:ZeroShot")
@attrs.frozen(kw_only=True)
class ZeroShotSpec(ComponentSpec):
    """AUROC of a label without any training on it: is the image nearer to the positive or to the negative prompts?"""

    label: str = param("Pneumonia", help="label to predict; records where it is unknown are skipped")
    positive: tuple[str, ...] = param(
        (
            "Findings: airspace opacity suspicious for pneumonia. Impression: pneumonia.",
            "Findings: findings are compatible with pneumonia. Impression: pneumonia.",
        ),
        help="prompts that say the label is present; they are averaged. Write them like the training texts",
    )
    negative: tuple[str, ...] = param(
        (
            "Findings: the lungs are clear. Impression: no acute cardiopulmonary abnormality.",
            "Findings: lungs are clear bilaterally. Impression: no acute disease.",
        ),
        help="prompts that say it is absent",
    )

    def contract(self) -> Contract:
        """Vectors of both modalities in a shared space."""
        return Contract(needs={"image_embedding": "B E", "text_embedding": "B E"})

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """At least one prompt on each side."""
        for field, prompts in (("positive", self.positive), ("negative", self.negative)):
            if not any(prompt.strip() for prompt in prompts):
                yield field, "give at least one prompt that is not empty", "write it in the style of the training texts"

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """The default prompts, and two short ones."""
        return (cls(), cls(label="Effusion", positive=("pleural effusion",), negative=("no effusion", "clear")))


@component("standard.linear_probe", role=Role.EVALUATOR, build="medvlp_standard.evaluators.linear_probe:LinearProbe")
@attrs.frozen(kw_only=True)
class LinearProbeSpec(ComponentSpec):
    """AUROC of a logistic regression on frozen image features, against the same on raw pixels and on random weights."""

    label: str = param("Pneumonia", help="label to predict; records where it is unknown are skipped")
    pixel_side: int = param(32, help="side of the raw-pixel baseline's images, pixels", at_least=2)
    strengths: tuple[float, ...] = param(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0), help="inverse regularisation strengths C; the best on the val split is taken", above=0
    )

    def contract(self) -> Contract:
        """Tokens of whole images."""
        return Contract(needs={"image_tokens": "B N Di @clean", "image_prefix": "B P Di @clean"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two sides, one and two strengths."""
        return (cls(pixel_side=4, strengths=(0.01,)), cls(pixel_side=8, strengths=(0.01, 0.1), label="Effusion"))


@component("standard.loss_curves", role=Role.EVALUATOR, build="medvlp_standard.evaluators.loss_curves:LossCurves")
@attrs.frozen(kw_only=True)
class LossCurvesSpec(ComponentSpec):
    """Draws every loss term and the learning rate over the steps."""

    width: float = param(9.0, help="width of the picture, inches", above=0)

    def contract(self) -> Contract:
        """Needs nothing of the model."""
        return Contract()

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two widths."""
        return (cls(), cls(width=6.0))


@component(
    "standard.reconstruction_pictures",
    role=Role.EVALUATOR,
    build="medvlp_standard.evaluators.reconstruction_pictures:ReconstructionPictures",
)
@attrs.frozen(kw_only=True)
class ReconstructionPicturesSpec(ComponentSpec):
    """Draws radiographs as input, masked, reconstructed and original."""

    images: int = param(6, help="radiographs to draw", at_least=1)

    def contract(self) -> Contract:
        """Reconstructed patches and the images that they are reconstructed from."""
        return Contract(needs=_PATCH_NEEDS)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two images."""
        return (cls(images=1), cls(images=2))


@component(
    "standard.masked_report_pictures",
    role=Role.EVALUATOR,
    build="medvlp_standard.evaluators.masked_report_pictures:MaskedReportPictures",
)
@attrs.frozen(kw_only=True)
class MaskedReportPicturesSpec(ComponentSpec):
    """Draws masked reports with the predicted words, right ones green and wrong ones red, and writes them as text."""

    reports: int = param(6, help="reports to draw", at_least=1)

    def contract(self) -> Contract:
        """Logits of masked words."""
        return Contract(needs=_WORD_NEEDS)

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two reports."""
        return (cls(reports=1), cls(reports=2))


@component(
    "standard.attention_pictures",
    role=Role.EVALUATOR,
    build="medvlp_standard.evaluators.attention_pictures:AttentionPictures",
)
@attrs.frozen(kw_only=True)
class AttentionPicturesSpec(ComponentSpec):
    """Draws where words look: attention from report tokens to patches, over the radiograph."""

    images: int = param(4, help="radiographs to draw", at_least=1)
    words: int = param(5, help="words for each, those with the most focused maps", at_least=1)

    def contract(self) -> Contract:
        """The patch grid; a model whose parts have no attention maps gives a card that says so."""
        return Contract(needs={"image_grid": "GH GW:shape", "image_tokens": "B N Di @clean", "text_tokens": "B L Dt @clean"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """One and two images."""
        return (cls(images=1, words=1), cls(images=2, words=2))


SPECS: tuple[type[ComponentSpec], ...] = (
    MaskedWordsSpec,
    PatchReconstructionSpec,
    RetrievalSpec,
    ZeroShotSpec,
    LinearProbeSpec,
    LossCurvesSpec,
    ReconstructionPicturesSpec,
    MaskedReportPicturesSpec,
    AttentionPicturesSpec,
)
