"""The recipe's two blocks that are not components: ``inputs`` (pixels to tensors) and ``train`` (the loop). Light."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core.components import SpecBlock, param


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
    cache_images: bool = param(False, help="keep decoded images in memory, for small data sets")
    text_kinds: tuple[str, ...] | None = param(
        None,
        help="use only records with these kinds of text; null = all with a text",
        one_of=("report", "clinical_note", "qa", "template"),
    )


@attrs.frozen(kw_only=True)
class TrainSpec(SpecBlock):
    """The training loop: one of ``steps`` and ``epochs`` gives its length."""

    steps: int | None = param(None, help="optimiser steps", at_least=1, at_most=9_999_999)
    epochs: float | None = param(None, help="passes over the training split", above=0)
    batch_size: int = param(32, help="pairs a step", at_least=1)
    learning_rate: float = param(1.5e-4, help="peak learning rate", above=0)
    warmup_fraction: float = param(0.1, help="share of the steps with linear warm-up, then half a cosine to 0", at_least=0, below=1)
    weight_decay: float = param(0.05, help="AdamW weight decay; none on biases, norms, embeddings and memory", at_least=0)
    betas: tuple[float, ...] = param((0.9, 0.95), help="AdamW betas", at_least=0, below=1)
    clip_norm: float | None = param(1.0, help="largest gradient norm; null = no clipping", above=0)
    precision: str = param("fp32", help="fp32, or autocast in bf16 or fp16", one_of=("fp32", "bf16", "fp16"))
    seed: int = param(0, help="seed of weights, data order and masks", at_least=0)
    workers: int = param(0, help="data loader processes", at_least=0)
    log_every_steps: int = param(10, help="steps between two lines of metrics.jsonl", at_least=1)
    checkpoint_every_steps: int | None = param(None, help="steps between checkpoints; null = only at the end", at_least=1)

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """Exactly one of steps and epochs; two betas."""
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            hint = "add `train.steps: 100`" if self.steps is None else "set the other one to null"
            yield "steps", f"give one of steps and epochs, found {given}", hint
        if len(self.betas) != 2:
            yield "betas", f"expected two numbers, found {len(self.betas)}", None
