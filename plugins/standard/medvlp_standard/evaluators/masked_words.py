"""Does the model use the image when it reconstructs words? The same masked words, with three different images."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp_core import DataError, Dims, Problem
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import (
    Card,
    EvaluationRun,
    Evaluator,
    FloatArray,
    IndexArray,
    Row,
    bootstrap_interval,
    reason_of,
    split_obstacle,
)
from medvlp_standard.evaluators.common import batches, evenly_spread, images_in, paired_gain, reconstruct
from medvlp_standard.specs.evaluators import MaskedWordsSpec

RIGHT, WRONG, BLANK, FREQUENCY = "right image", "wrong image", "blank image", "word frequency"


@attrs.define
class Tally:
    """Sums per pair of the split: masked words, right predictions, negative log-likelihood in nats."""

    words: FloatArray
    hits: FloatArray
    nats: FloatArray

    @classmethod
    def empty(cls, pairs: int) -> Tally:
        """All zero."""
        return cls(np.zeros(pairs), np.zeros(pairs), np.zeros(pairs))

    def add(self, rows: Tensor, is_hit: Tensor, nats: Tensor) -> None:
        """Add one result per masked word; ``rows`` (R,) says which pair it belongs to."""
        index = rows.cpu().numpy()
        np.add.at(self.words, index, 1.0)
        np.add.at(self.hits, index, is_hit.double().cpu().numpy())
        np.add.at(self.nats, index, nats.double().cpu().numpy())

    def accuracy(self, index: IndexArray) -> float:
        """Share of right words over the pairs in ``index``; NaN if no word of them is masked."""
        return float(self.hits[index].sum() / max(self.words[index].sum(), np.finfo(float).tiny))

    def cross_entropy(self, index: IndexArray) -> float:
        """Mean negative log-likelihood of the true word over the pairs in ``index``, nats."""
        return float(self.nats[index].sum() / max(self.words[index].sum(), np.finfo(float).tiny))


class MaskedWords(Evaluator):
    """Accuracy and cross-entropy on masked words with the right image, another pair's image and a blank one.

    All three see the same reports with the same words masked: torch's random state is reset before each. The wrong image comes
    from a pair with another text; the blank one is the mean gray. What the text alone gives away shows with the blank image, so
    ``right - blank`` and ``right - wrong`` are what the image adds. The trivial baseline knows only how often each word occurs
    in the training texts. Intervals resample whole reports, since words of one report are not independent.
    """

    def __init__(self, spec: MaskedWordsSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """The split has no two pairs with different texts."""
        if (reason := split_obstacle(pipeline, split)) is not None:
            return reason
        records = pipeline.records(split)
        try:
            other_texts([records[index].text for index in evenly_spread(len(records), self.spec.max_pairs)])
        except DataError as error:
            return f"split {split!r}: {reason_of(error)}"
        return None

    def evaluate(self, run: EvaluationRun) -> Card:
        """Two rows: accuracy, cross-entropy.

        Raises:
            DataError: no word is ever masked, or all texts of the split are equal (MV503).
        """
        parts = list(batches(run, run.split, max_pairs=self.spec.max_pairs))
        records = run.pipeline.records(run.split)
        texts = [records[index].text for part in parts for index in part["record_index"].tolist()]
        wrong = torch.tensor(other_texts(texts), device=run.device)
        seen = [{key: port for key, port in images_in(run, part).items() if port.is_floating_point()} for part in parts]
        images = {key: torch.cat([one[key] for one in seen]) for key in seen[0]}
        tallies = {name: Tally.empty(len(texts)) for name in (RIGHT, WRONG, BLANK, FREQUENCY)}
        frequencies = word_frequencies(run)
        for draw in range(self.spec.draws):
            start = 0
            for part, right in zip(parts, seen, strict=True):
                rows = torch.arange(start, start + len(part["record_index"]), device=run.device)
                seed = run.seed + 100_000 * draw + start
                start += len(rows)
                others = {key: everyones[wrong[rows]] for key, everyones in images.items()}
                blank = {key: torch.zeros_like(port) for key, port in right.items()}
                for name, shown in ((RIGHT, right), (WRONG, others), (BLANK, blank)):
                    logits, is_masked = reconstruct(run, "word_logits", {**part, **shown}, seed=seed)
                    truth, owners = part["token_ids"][is_masked], rows[:, None].expand_as(is_masked)[is_masked]
                    nats = F.cross_entropy(logits, truth, reduction="none")
                    tallies[name].add(owners, logits.argmax(dim=-1) == truth, nats)
                # The words masked last are those masked with the right image: the masks are the same.
                tallies[FREQUENCY].add(owners, truth == frequencies.argmax(), -frequencies[truth].log())
        return self._card(tallies, len(texts))

    def _card(self, tallies: dict[str, Tally], pairs: int) -> Card:
        right, words = tallies[RIGHT], int(tallies[RIGHT].words.sum())
        if words == 0:
            raise DataError(Problem(code="MV503", text="no word of the split is ever masked", hint="raise the text mask ratio"))
        others = {name: tally for name, tally in tallies.items() if name != RIGHT}
        everything = np.arange(pairs)
        rows = []
        for metric, is_higher_better in (("accuracy", True), ("cross_entropy", False)):
            value = getattr(right, metric)
            gains = {}
            for name, tally in others.items():
                better, worse = (right, tally) if is_higher_better else (tally, right)
                gains[name] = paired_gain(getattr(better, metric), getattr(worse, metric), pairs)
            rows.append(
                Row(
                    metric=f"masked words: {metric.replace('_', '-')}",
                    value=value(everything),
                    is_higher_better=is_higher_better,
                    count=words,
                    resampled=pairs,
                    interval=bootstrap_interval(value, pairs),
                    baselines={name: getattr(tally, metric)(everything) for name, tally in others.items()},
                    gain_intervals=gains,
                )
            )
        return Card(
            evaluator="",
            rows=tuple(rows),
            note=f"{words} masked word pieces in {pairs} reports, {self.spec.draws} masks each; cross-entropy in nats. "
            "The gain over the wrong and the blank image is what the image adds to the text.",
        )


def other_texts(texts: Sequence[str]) -> list[int]:
    """For each text the position of another one: the nearest after half a turn around the split that is not equal.

    Raises:
        DataError: all texts are equal (MV503).

    Example:
        >>> other_texts(["a", "a", "b", "b"])
        [2, 3, 0, 1]
    """
    count = len(texts)
    if len(set(texts)) < 2:
        raise DataError(Problem(code="MV503", text="the split has no two different texts, so no image is a wrong one"))
    turns = [(count // 2 + step) % count for step in range(count)]
    return [next((i + turn) % count for turn in turns if texts[(i + turn) % count] != texts[i]) for i in range(count)]


def word_frequencies(run: EvaluationRun) -> Tensor:
    """How often each token that can be masked occurs in the training texts, plus one, as shares: (V,)."""
    tokenizer = run.pipeline.tokenizer
    counts = torch.ones(tokenizer.dims()["V"], dtype=torch.float64)
    texts = [record.text for record in run.pipeline.records("train")]
    for start in range(0, len(texts), 256):
        tokens = tokenizer.encode(texts[start : start + 256])
        counts += torch.bincount(tokens.token_ids[tokens.word_ids >= 0], minlength=len(counts))
    return (counts / counts.sum()).to(run.device, torch.float32)
