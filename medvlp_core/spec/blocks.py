"""The recipe's blocks that are not components. Light.

``inputs`` (pixels to tensors), ``init_from`` (weights to begin with) and ``train`` (the loop).
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core.spec.component import SpecBlock, param
from medvlp_core.spec.roles import MODEL_BLOCKS


@attrs.frozen(kw_only=True)
class ViewSpec(SpecBlock):
    """A further view of a record: some of its images cut once more, and what lies on them with them."""

    fields: tuple[str, ...] = param(("image",), help="image fields that are cut anew; what lies on one follows")
    crop_scale: float = param(0.6, help="smallest share of the image's area that the crop keeps", above=0, at_most=1)

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """At least one field."""
        if not self.fields:
            yield "fields", "the list is empty, so that the view would be as its parent", "write [image]"


@attrs.frozen(kw_only=True)
class InputSpec(SpecBlock):
    """How images become tensors. Their size comes from the model: nobody writes it twice."""

    mean: float = param(0.4978, help="pixel mean for normalisation, of gray values in 0..1 (MRM's value)")
    std: float = param(0.2449, help="pixel standard deviation for normalisation (MRM's value)", above=0)
    crop_scale: float = param(
        0.6, help="smallest share of the image's area that a training crop keeps; 1 = no random crop", above=0, at_most=1
    )
    horizontal_flip: bool = param(False, help="flip training images at random; reports mention sides, so off by default")
    brightness: float = param(0.0, help="largest random change of brightness and contrast in training, share", at_least=0, below=1)
    labels: tuple[str, ...] | None = param(
        None, help="labels of the records that a model may read, in this order, as the field `labels` (B, n); null = none"
    )
    may_lack: dict[str, str | None] | None = param(
        None, help="fields that a record may be without; of an image field: the image field whose picture stands in, else null"
    )
    views: dict[str, ViewSpec] | None = param(None, help="further views by name, each with a crop of its own")
    cache_images: bool = param(False, help="keep decoded images in memory, for small data sets")
    text_kinds: tuple[str, ...] | None = param(
        None,
        help="use only records with these kinds of text; null = all with a text",
        one_of=("report", "clinical_note", "qa", "template"),
    )

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Labels are some, and each once."""
        if self.labels == ():
            yield "labels", "the list is empty, so that there would be nothing to read", "name a label; null = none"
        for label in dict.fromkeys(self.labels or ()):
            if (self.labels or ()).count(label) > 1:
                yield "labels", f"{label!r} stands there more than once", "name each label once"


@attrs.frozen(kw_only=True)
class InitSpec(SpecBlock):
    """Weights to begin with, from a trained model or from a file. What they do not fill begins with random values."""

    path: str | None = param(
        None,
        help="run or checkpoint folder of medvlp; with a single part also a file or folder of timm or transformers; null = none",
        is_path=True,
    )
    parts: tuple[str, ...] | None = param(
        None,
        help="parts that take weights; null = all that are in the checkpoint",
        one_of=MODEL_BLOCKS,
    )

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Parts need a path; an empty list would take nothing."""
        if self.parts is not None and self.path is None:
            yield "parts", "there are parts and no path", "add `path: RUN`, or remove the block"
        if self.parts == ():
            yield "parts", "the list is empty, so that nothing would be taken", "name a part; null = all"

    @property
    def takes_vocabulary(self) -> bool:
        """Whether the text encoder comes from the checkpoint: its vectors mean something with that vocabulary alone."""
        return self.path is not None and (self.parts is None or "text_encoder" in self.parts)


#: Trackers that a run can show its numbers in, and the package that each needs beside accelerate.
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@attrs.frozen(kw_only=True)
class ParameterRule(SpecBlock):
    """How the parameters of the model that a name in ``train.parameters`` matches are trained."""

    lr_scale: float = param(1.0, help="their learning rate as a share of the others'", above=0)
    freeze_until: float = param(
        0.0, help="share of the steps in which they stay as they are, at the beginning", at_least=0, below=1
    )


@attrs.frozen(kw_only=True)
class TrainSpec(SpecBlock):
    """The training loop: one of ``steps`` and ``epochs`` gives its length."""

    steps: int | None = param(None, help="optimiser steps", at_least=1, at_most=9_999_999)
    epochs: float | None = param(None, help="passes over the training split", above=0)
    batch_size: int = param(32, help="pairs of one optimiser step, over all processes and micro-batches", at_least=1)
    gradient_accumulation_steps: int = param(
        1, help="micro-batches of each process in one step; what contrasts see, contrast_over says", at_least=1
    )
    contrast_over: str = param(
        "micro_batch",
        help="pairs that contrasts see: of a micro-batch of all processes, or of the whole step (what they need runs twice)",
        one_of=("micro_batch", "step"),
    )
    drop_last: bool = param(True, help="drop an incomplete last batch of an epoch; false = it is a smaller step")
    learning_rate: float = param(1.5e-4, help="peak learning rate", above=0)
    warmup_fraction: float = param(0.1, help="share of the steps with linear warm-up", at_least=0, below=1)
    schedule: str = param("cosine", help="after the warm-up: half a cosine to 0, or constant", one_of=("cosine", "constant"))
    weight_decay: float = param(0.05, help="AdamW weight decay; none on biases, norms, embeddings and memory", at_least=0)
    layer_decay: float = param(
        1.0, help="learning rate of an encoder's layer as a share of the next one's; 1 = all the same", above=0, at_most=1
    )
    parameters: dict[str, ParameterRule] = param(
        {}, help="parameters of the model by name, with * and ? (image_encoder.*), that learn more slowly or later"
    )
    freeze: tuple[str, ...] = param((), help="parameters of the model by name, with * and ?, that are not trained at all")
    betas: tuple[float, ...] = param((0.9, 0.95), help="AdamW betas", at_least=0, below=1)
    max_grad_norm: float | None = param(1.0, help="largest gradient norm; null = no clipping", above=0)
    ema_decay: float | None = param(
        None, help="decay of the EMA of the weights, which is evaluated and exported; null = none", above=0, below=1
    )
    precision: str = param("fp32", help="fp32, or autocast in bf16 or fp16", one_of=("fp32", "bf16", "fp16"))
    compile: bool = param(False, help="compile every block of the model with torch.compile")
    activation_checkpointing: bool = param(
        False, help="keep no activations inside blocks and compute them again in backward: less memory, more time"
    )
    parallel: str = param(
        "ddp",
        help="several processes: ddp = each has the whole model, fsdp = they share weights and optimiser",
        one_of=("ddp", "fsdp"),
    )
    max_bad_steps: int = param(
        10, help="steps with a loss or gradient that is not finite, skipped before the run stops", at_least=0
    )
    seed: int = param(0, help="seed of weights, data order, crops and masks", at_least=0)
    num_workers: int = param(0, help="data loader processes for each training process", at_least=0)
    log_every_steps: int = param(10, help="steps between two lines of metrics.jsonl", at_least=1)
    trackers: tuple[str, ...] = param((), help="where the lines of metrics.jsonl are shown too", one_of=tuple(TRACKERS))
    checkpoint_every_steps: int | None = param(None, help="steps between checkpoints; null = only at the end", at_least=1)
    keep_checkpoints: int = param(2, help="newest checkpoints that stay, beside the best one", at_least=1)

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Exactly one of steps and epochs; two betas."""
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            hint = "add `train.steps: 100`" if self.steps is None else "set the other one to null"
            yield "steps", f"give one of steps and epochs, found {given}", hint
        if len(self.betas) != 2:
            yield "betas", f"expected two numbers, found {len(self.betas)}", None
        if self.batch_size < self.gradient_accumulation_steps:
            yield (
                "gradient_accumulation_steps",
                f"{self.gradient_accumulation_steps} micro-batches cannot share batch_size={self.batch_size} pairs",
                "lower gradient_accumulation_steps",
            )
