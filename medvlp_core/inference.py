"""A trained model for those who use it: images and texts in, vectors and scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch
from PIL import Image
from torch import Tensor

from medvlp_core.data.images import gray_of, read_gray
from medvlp_core.data.transforms import ImageTransform
from medvlp_core.display import Displayed, DisplayRow
from medvlp_core.errors import DataError, Problem
from medvlp_core.evaluation.prompts import class_vectors
from medvlp_core.nn.batch import Batch, ImageFeatures
from medvlp_core.runtime.device import choose_device, to_device
from medvlp_core.training.checkpoint import LoadedRun, load_run

Images = Any
"""A path, a Pillow image, a tensor, or a sequence of them."""


class TextFeatures(NamedTuple):
    """Tokens of texts, padded to the longest one.

    Shape:
        text_tokens (B, L, Dt), text_is_valid (B, L) bool.
    """

    text_tokens: Tensor
    text_is_valid: Tensor


class ZeroShotScores(NamedTuple):
    """How near each image lies to each class.

    Shape:
        scores and probabilities (B, classes), in the order of ``classes``.
    """

    classes: tuple[str, ...]
    scores: Tensor
    probabilities: Tensor


def load(run: str | Path, *, device: str | None = None, batch_size: int = 64) -> TrainedModel:
    """Load a trained model for use: images and texts in, vectors and scores out. Needs no training data.

    The EMA weights if the run kept some (``train.ema_decay``), else those of the last step.

    Args:
        run: a run folder (its newest checkpoint), or one checkpoint's folder.
        device: a torch device; None = the GPU if there is one.
        batch_size: how many images or texts go through the model at once.

    Raises:
        DataError: a file is missing, cut off or does not fit the recipe (MV507), or the vocabulary is broken (MV506).
        SpecError: the recipe cannot be planned here, for instance because a bundle is not installed, or the device does not exist
            (MV104).
        ValueError: ``batch_size`` is below 1.

    Example:
        >>> model = load("runs/first")  # doctest: +SKIP
        >>> model.embed_image("film.png") @ model.embed_text(["Pneumonia."]).T  # doctest: +SKIP
    """
    return TrainedModel(run=load_run(run, device=choose_device(device)), batch_size=batch_size)


@attrs.frozen(kw_only=True, repr=False)
class TrainedModel(Displayed):
    """A trained model in evaluation mode. Gradients are not kept; results lie on the CPU.

    Images are paths, Pillow images, or tensors: one, or a sequence of them. Files and Pillow images are cropped, scaled and
    normalised as in evaluation; a tensor (C, H, W) or (B, C, H, W) must be normalised already. ``run`` holds the parts:
    ``run.model``, ``run.tokenizer``, ``run.plan``, ``run.metadata``.
    """

    run: LoadedRun
    batch_size: int = attrs.field(default=64, validator=attrs.validators.ge(1))

    def display(self) -> tuple[str, list[DisplayRow]]:
        """The components of the model, how large it is and where it lies."""
        metadata, plan = self.run.metadata, self.run.plan
        parts = (one for one in plan.components.values() if one.path.startswith(("model.", "tokenizer")))
        rows = [(one.path.removeprefix("model."), one.name) for one in parts]
        rows.append(("parameters", f"{sum(one.numel() for one in self.run.model.parameters()):,}"))
        rows.append(("device", str(self._device())))
        return f"TrainedModel {metadata.get('name', plan.name)}, step {metadata['step']:,}", rows

    def encode_image(self, images: Images) -> ImageFeatures:
        """Tokens of whole images: patches (B, N, Di) and prefix (B, P, Di).

        Raises:
            DataError: no image, or something that is none (MV501); a tensor that does not fit (MV505).
            SpecError: the model has no image encoder (MV201).
        """
        return ImageFeatures._make(self._of_images(images, self.run.model.encode_image))

    def embed_image(self, images: Images, *, alignment: str | None = None) -> Tensor:
        """Vectors of length 1 in the space that images and texts share: (B, E).

        ``alignment`` names one of several; the first one by default.

        Raises:
            DataError: as in :meth:`encode_image`.
            SpecError: the model has no (such) alignment (MV201).
        """
        return self._of_images(images, lambda batch: (self.run.model.embed_image(batch, alignment=alignment),))[0]

    def encode_text(self, texts: str | Sequence[str]) -> TextFeatures:
        """Tokens of whole texts: (B, L, Dt), and which are no padding. Too long texts are cut, as in training.

        Raises:
            DataError: no text, or something that is none (MV504).
            SpecError: the model has no text encoder (MV201).
        """
        return TextFeatures._make(
            self._of_texts(texts, lambda tokens: (self.run.model.encode_text(tokens), tokens["text_is_valid"]))
        )

    def embed_text(self, texts: str | Sequence[str], *, alignment: str | None = None) -> Tensor:
        """Vectors of length 1 in the space that images and texts share: (B, E).

        Raises:
            DataError: as in :meth:`encode_text`.
            SpecError: the model has no (such) alignment (MV201).
        """
        return self._of_texts(texts, lambda tokens: (self.run.model.embed_text(tokens, alignment=alignment),))[0]

    def zero_shot(
        self,
        images: Images,
        classes: Mapping[str, str | Sequence[str]],
        *,
        temperature: float = 0.07,
        alignment: str | None = None,
    ) -> ZeroShotScores:
        """Compare images with prompts of two classes or more.

        ``scores[b, k] = cos(image b, class k)``, where the vector of a class is the mean over its prompts' vectors, and
        ``probabilities = softmax(scores / temperature)`` over the classes given. No label has calibrated the temperature: the
        probabilities rank the classes, and are no chances of a disease. ``scores[:, 0] - scores[:, 1]`` is what the evaluator
        ``standard.zero_shot`` measures the AUROC of.

        Raises:
            DataError: fewer than two classes, or a class without a prompt (MV504); images as in :meth:`encode_image`.
            ValueError: ``temperature`` is not above 0.
            SpecError: the model has no (such) alignment (MV201).
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, found {temperature}")
        prompts = {name: _texts(found, f"class {name!r}") for name, found in _two_or_more(classes).items()}
        every = [prompt for found in prompts.values() for prompt in found]
        vectors = class_vectors(self.embed_text(every, alignment=alignment), [len(found) for found in prompts.values()])
        scores = self.embed_image(images, alignment=alignment) @ vectors.T
        return ZeroShotScores(tuple(prompts), scores, (scores / temperature).softmax(dim=1))

    def generate(
        self,
        images: Images,
        *,
        prompt: str = "",
        max_length: int | None = None,
        decoder: str | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> list[str]:
        """Write a text for each image.

        A decoder's own ``generate`` does it, with the settings of its recipe (``standard.caption_decoder``: greedy, beam search,
        sampling) unless ``options`` says otherwise (``num_beams=4``, ``do_sample=True``, ``temperature``, ``top_k``, ``top_p``).
        A model without one, and a text that goes on from a ``prompt``, is written by the core, token by token: greedily, or with
        ``do_sample`` as a draw. No draw depends on anything but ``seed``, if it is given, and the batch.

        Args:
            images: as in :meth:`encode_image`.
            prompt: how each text starts; the result has it too.
            max_length: tokens of the longest text, with [CLS] and the end; by default what the tokenizer allows.
            decoder: the slot of one of several decoders, the first one by default.
            seed: of draws.
            options: how the next token is chosen.

        Raises:
            DataError: as in :meth:`encode_image`.
            SpecError: the model writes no texts, or does not know an option (MV201).
            ValueError: ``max_length`` is longer than texts may be, or leaves no room behind the prompt.
        """
        tokenizer = self.run.tokenizer
        start = tokenizer.encode([prompt]).token_ids[0]
        start = start[:-1] if tokenizer.end_id is not None and start[-1] == tokenizer.end_id else start
        found = []
        for batch in self._image_batches(images):
            ids = start.to(batch.device).expand(len(batch), -1)
            given: dict[str, Any] = {"decoder": decoder, "max_length": max_length, "end_id": tokenizer.end_id, "seed": seed}
            written = self.run.model.generate({"image": batch, "token_ids": ids}, **given, **options)
            rows = zip(written.token_ids.tolist(), written.is_valid.tolist(), strict=True)
            found += [tokenizer.text([one for one, is_valid in zip(*row, strict=True) if is_valid]) for row in rows]
        return found

    def score(self, images: Images, texts: str | Sequence[str], *, head: str | None = None) -> Tensor:
        """How well each image belongs to each text, by the model's own head (``match_score``): (images, texts).

        Encoders run once for each image and each text; what follows runs for every pair. ``embed_image(...) @ embed_text(...).T``
        needs no pass for each pair, and is what a model without such a head can tell.

        Raises:
            DataError: images as in :meth:`encode_image`, texts as in :meth:`encode_text`.
            SpecError: the model has no (such) head (MV201).
        """
        tokens = self.run.tokenizer.encode(_texts(texts, "the list")).tokens._asdict()
        found = {"image": torch.cat([*self._image_batches(images)])}
        scores = self.run.model.score(found, to_device(tokens, self._device()), head=head, chunk_size=self.batch_size)
        return scores.float().cpu()

    @torch.no_grad()
    def _of_images(self, images: Images, call: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        parts = [[one.float().cpu() for one in call(batch)] for batch in self._image_batches(images)]
        return tuple(torch.cat(found) for found in zip(*parts, strict=True))

    def _image_batches(self, images: Images) -> Iterator[Tensor]:
        transform, device = self.run.image_transform(), self._device()
        items = _listed(images)
        if not items:
            raise DataError(Problem(code="MV501", text="there is no image: the list is empty"))
        for start in range(0, len(items), self.batch_size):
            tensors = [_image_tensor(item, transform) for item in items[start : start + self.batch_size]]
            for tensor in tensors:
                self.run.model.check_image(tensor[None])
            yield torch.stack(tensors).to(device)

    @torch.no_grad()
    def _of_texts(self, texts: str | Sequence[str], call: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        tokens = self.run.tokenizer.encode(_texts(texts, "the list")).tokens._asdict()
        parts = []
        for start in range(0, len(tokens["token_ids"]), self.batch_size):
            batch = {name: one[start : start + self.batch_size] for name, one in tokens.items()}
            parts.append([one.cpu() for one in call(to_device(batch, self._device()))])
        return tuple(torch.cat(found) for found in zip(*parts, strict=True))

    def _device(self) -> torch.device:
        return next(self.run.model.parameters()).device


def _listed(images: Images) -> list[Any]:
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    if isinstance(images, Tensor):
        return list(images) if images.ndim == 4 else [images]
    try:
        return list(images)
    except TypeError:
        return [images]


def _image_tensor(image: Any, transform: ImageTransform) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if isinstance(image, Image.Image):
        return transform(gray_of(image))[0]
    if isinstance(image, (str, Path)):
        return transform(read_gray(image, at_least=transform.least_side))[0]
    text = f"an image is a path, a Pillow image or a tensor, found {type(image).__name__}"
    raise DataError(Problem(code="MV501", text=text, hint="PIL.Image.fromarray makes an image of an array"))


def _two_or_more(classes: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(classes, Mapping) or len(classes) < 2:
        found = f"{len(classes)}" if isinstance(classes, Mapping) else type(classes).__name__
        text = f"zero_shot compares the prompts of at least two classes, found {found}"
        hint = 'write {"pneumonia": ["Pneumonia."], "healthy": ["The lungs are clear."]}'
        raise DataError(Problem(code="MV504", text=text, hint=hint))
    return classes


def _texts(texts: str | Sequence[str], what: str) -> list[str]:
    if not isinstance(texts, Iterable):
        raise DataError(Problem(code="MV504", text=f"texts are a str or a list of them, found {type(texts).__name__} as {what}"))
    found = [texts] if isinstance(texts, str) else list(texts)
    if not found:
        raise DataError(Problem(code="MV504", text=f"there is no text: {what} is empty"))
    for text in found:
        if not isinstance(text, str):
            raise DataError(Problem(code="MV504", text=f"a text is a str, found {type(text).__name__} in {what}"))
    return found
