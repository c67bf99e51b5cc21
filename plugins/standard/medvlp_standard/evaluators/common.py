"""What several evaluators share: batches of a split, label vectors, targets of patch decoders, paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from medvlp_core import DataError, Problem
from medvlp_core.data import InputPipeline, Record
from medvlp_core.evaluation import (
    BoolArray,
    EvaluationRun,
    FloatArray,
    IndexArray,
    Interval,
    bootstrap_interval,
    reason_of,
    split_obstacle,
)
from medvlp_core.nn import Batch, normalise_patches, patchify
from medvlp_core.runtime import to_device

BATCH_SIZE = 64


def batches(run: EvaluationRun, split: str, *, max_pairs: int | None = None) -> Iterator[Batch]:
    """The split in its own order and without random changes, on the run's device; at most ``max_pairs``, evenly spread over it.

    Splits are often sorted by source or class: the first pairs alone would all be alike.
    """
    dataset = run.pipeline.dataset(split, is_training=False)
    collate = run.pipeline.collate()
    chosen = evenly_spread(len(dataset), max_pairs or len(dataset))
    for start in range(0, len(chosen), BATCH_SIZE):
        yield to_device(collate([dataset[index] for index in chosen[start : start + BATCH_SIZE]]), run.device)


def images_in(run: EvaluationRun, batch: Batch) -> Batch:
    """The ports of a batch that hold images: every image field, in every view, and where it is known."""
    images = {name for name, field in run.pipeline.plan.fields.items() if field.kind == "image"}
    return {key: value for key, value in batch.items() if key.partition("@")[0].removesuffix("_is_known") in images}


def evenly_spread(count: int, wanted: int) -> list[int]:
    """``wanted`` positions out of ``count``, or all of them if there are fewer, in order.

    Example:
        >>> evenly_spread(10, 4)
        [0, 2, 5, 7]
    """
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def reconstruct(run: EvaluationRun, port: str, batch: Batch, *, seed: int) -> tuple[Tensor, Tensor]:
    """The prediction of the decoder that gives ``port``, and what was masked from it: (B, N) or (B, L), True = masked.

    Only what that decoder needs is computed. Masks depend on ``seed`` and the texts alone, so two batches that differ in their
    images have the same things masked. torch's random state stays as it was.
    """
    key = run.key(port)
    decoder = run.plan.wiring.call_of(key)
    assert decoder is not None
    name = "text_is_masked" if port == "word_logits" else "image_is_masked"
    masked = next(source for _, source in decoder.takes if source.name == name)
    with torch.random.fork_rng([run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(seed)
        prediction, is_masked = run.model.ports(batch, str(key), str(masked)).values()
    return prediction.float(), is_masked


def labels_of(records: Sequence[Record], label: str) -> tuple[IndexArray, BoolArray]:
    """Positions of the records where ``label`` is known, and whether they have it.

    Raises:
        DataError: it is known nowhere, or the same everywhere (MV503).
    """
    known = np.array([index for index, record in enumerate(records) if label in record.labels], dtype=np.int64)
    is_positive = np.array([bool(records[index].labels[label]) for index in known], dtype=bool)
    if len(known) == 0 or is_positive.all() or not is_positive.any():
        names = sorted({name for record in records for name in record.labels})
        text = f"label {label!r}: {int(is_positive.sum())} positive and {int((~is_positive).sum())} negative records"
        hint = f"labels of this split: {', '.join(names) or 'none'}"
        raise DataError(Problem(code="MV503", text=text, hint=hint))
    return known, is_positive


def label_obstacle(pipeline: InputPipeline, split: str, label: str) -> str | None:
    """Why ``label`` cannot be predicted on ``split``: no such split, or it is the same for all of its pairs; None if it can."""
    if (reason := split_obstacle(pipeline, split)) is not None:
        return reason
    try:
        labels_of(pipeline.records(split), label)
    except DataError as error:
        return f"split {split!r}: {reason_of(error)}"
    return None


def paired_gain(metric: Callable[[IndexArray], float], baseline: Callable[[IndexArray], float], count: int) -> Interval | None:
    """95 % interval of ``metric - baseline`` over the same resampled items; None if it is never defined."""
    return bootstrap_interval(lambda index: metric(index) - baseline(index), count)


def mean_interval(values: FloatArray) -> Interval | None:
    """95 % interval of the mean of independent values (n,); of differences it is the interval of the mean gain."""
    return bootstrap_interval(lambda index: float(values[index].mean()), len(values))


def target_image(run: EvaluationRun, batch: Batch) -> Tensor:
    """The image that the patch decoder reconstructs: ``image_target`` if it needs that port, else ``image``."""
    ports = {spec.port for spec in run.provider("patch_prediction").calls["forward"].needs.values()}
    if "image_target" not in ports:
        return batch["image"]
    return batch["image_target"]


def patch_targets(run: EvaluationRun, batch: Batch) -> Tensor:
    """The patch decoder's own target: pixels of every patch, normalised if the decoder says so, (B, N, Q)."""
    rows, columns = run.port_dims("image_grid")
    pixels = patchify(target_image(run, batch).float(), rows, columns)
    return normalise_patches(pixels) if is_normalised(run) else pixels


def is_normalised(run: EvaluationRun) -> bool:
    """Whether the patch decoder's target is normalised patch by patch; it says so with a parameter ``normalise_patches``."""
    return bool(getattr(run.provider("patch_prediction").spec, "normalise_patches", False))


def to_numpy(values: Tensor) -> FloatArray:
    """Float64 on the CPU, as the metrics want it."""
    return values.detach().to("cpu", torch.float64).numpy()
