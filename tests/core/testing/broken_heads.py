"""The modules of ``broken_specs``, alignments and decoders: each a stub component of the kit with one thing changed."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core.nn.batch import Output
from medvlp_core.nn.contrastive import symmetric_info_nce
from medvlp_core.nn.functional import masked_mean, patchify
from medvlp_core.nn.interfaces import Alignment, Decoder
from medvlp_core.spec.contract import Dims
from medvlp_core.testing.stub_components.modules import InfoNce, PatchDecoder, WordDecoder


class ChangedAlignment(InfoNce):
    """The stub component, with what :meth:`change` makes of its loss."""

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """Measure, then change."""
        loss = super().forward(image_tokens, text_tokens, text_is_valid).losses["global"]
        return Output(losses=self.change(loss, image_tokens))

    def change(self, loss: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        """What is wrong."""
        return {"global": loss}


class HasASecretLoss(ChangedAlignment):
    """Gives a term that it does not declare."""

    def change(self, loss: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        """Two."""
        return {"global": loss, "local": loss}


class AveragesPaddingInItsLoss(ChangedAlignment):
    """Takes the mean of all positions in its loss."""

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """Padding too."""
        return super().forward(image_tokens, text_tokens, torch.ones_like(text_is_valid))


class LosesPrecision(ChangedAlignment):
    """Gives its loss in the dtype of the features."""

    def change(self, loss: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        """Half as long under autocast."""
        return {"global": loss.to(image_tokens.dtype)}


class RestsEveryOtherStep(ChangedAlignment):
    """Uses a parameter in every other step."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.offset = nn.Parameter(torch.ones(()))
        self.calls = 0

    def change(self, loss: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        """Sometimes more."""
        self.calls += self.training
        return {"global": loss + self.offset.square() if self.calls % 2 or not self.training else loss}


class ChangedVectors(InfoNce):
    """The stub component, for those that change its vectors of texts alone."""

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """Its loss is well."""
        image, text = self.embed_image(image_tokens), InfoNce.embed_text(self, text_tokens, text_is_valid)
        return Output(losses={"global": symmetric_info_nce(image, text, self.scale())})


class EmbedsIntoTwoSpaces(ChangedVectors):
    """Gives shorter vectors of texts than of images."""

    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        """The first numbers of each."""
        return F.normalize(super().embed_text(text_tokens, text_is_valid)[:, :4], dim=-1)


class ForgetsToNormalise(ChangedVectors):
    """Gives text vectors of any length."""

    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        """Three times as long."""
        return 3 * super().embed_text(text_tokens, text_is_valid)


class WeighsTheFirstPair(ChangedAlignment):
    """Adds what only the first image has."""

    def change(self, loss: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        """The first counts more."""
        return {"global": loss + 0.1 * self.embed_image(image_tokens)[0].sum()}


class PushesPairsApart(InfoNce):
    """Has a sign wrong."""

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """Pairs are other pairs."""
        image, text = self.embed_image(image_tokens), self.embed_text(text_tokens, text_is_valid)
        return Output(losses={"global": symmetric_info_nce(image, -text, self.scale())})


class DoesNotLookAtPairs(InfoNce):
    """Compares the mean image with the mean text."""

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """Who belongs to whom plays no part."""
        image, text = self.embed_image(image_tokens), self.embed_text(text_tokens, text_is_valid)
        return Output(losses={"global": (image.mean(dim=0) - text.mean(dim=0)).square().sum() * self.scale()})


class ForgetsThatItMixes(InfoNce):
    """Compares pairs, and does not declare it."""


class LacksAMethod(Alignment):
    """Has no vectors of texts, and declares them."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.parts = InfoNce(spec, dims)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """The stub component's."""
        return self.parts.forward(image_tokens, text_tokens, text_is_valid)

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        """The stub component's."""
        return self.parts.embed_image(image_tokens)


class GoodAlignmentWithoutParameters(Alignment):
    """Compares mean tokens as they are."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """One loss."""
        image, text = self.embed_image(image_tokens), self.embed_text(text_tokens, text_is_valid)
        return Output(losses={"global": symmetric_info_nce(image, text, torch.tensor(5.0))})

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        """The mean patch."""
        return F.normalize(image_tokens.mean(dim=1), dim=-1)

    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        """The mean valid token."""
        return F.normalize(masked_mean(text_tokens, text_is_valid), dim=-1)


class GoodAlignmentWithAQueue(InfoNce):
    """Keeps texts of earlier steps as further negatives, as MoCo does; they travel with the weights."""

    queue: Tensor

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.register_buffer("queue", F.normalize(torch.randn(4, spec.dim), dim=-1))

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        """Each image against its text, the others of the batch and those of the queue."""
        image, text = self.embed_image(image_tokens), self.embed_text(text_tokens, text_is_valid)
        scores = self.scale() * image.float() @ torch.cat([text.float(), self.queue.clone()]).T
        if self.training:
            self.queue = self.first(torch.cat([text.detach().float(), self.queue]))
        return Output(losses={"global": F.cross_entropy(scores, torch.arange(len(image), device=image.device))})

    def first(self, texts: Tensor) -> Tensor:
        """The newest of them."""
        return texts[:4].clone()


class KeepsAView(GoodAlignmentWithAQueue):
    """Keeps a part of a larger tensor, which no checkpoint can hold."""

    def first(self, texts: Tensor) -> Tensor:
        """A view."""
        return texts[:4]


# ---------------------------------------------------------------------------------------------------------------- decoders


class RootOfTheMean(PatchDecoder):
    """Takes the root after the mean, so that a pair counts less beside one that is worse."""

    def forward(self, image_tokens: Tensor, image_is_masked: Tensor, image: Tensor) -> Output:
        """No mean any more."""
        output = super().forward(image_tokens, image_is_masked, image)
        return output._replace(losses={name: value.sqrt() for name, value in output.losses.items()})


class ClipsTheImage(PatchDecoder):
    """Clips the pixels in place."""

    def forward(self, image_tokens: Tensor, image_is_masked: Tensor, image: Tensor) -> Output:
        """For all who come after."""
        return super().forward(image_tokens, image_is_masked, image.clamp_(-1, 1))


class PeeksAtPixels(PatchDecoder):
    """Adds some of the pixels that it should reconstruct."""

    def forward(self, image_tokens: Tensor, image_is_masked: Tensor, image: Tensor) -> Output:
        """Cheat."""
        output = super().forward(image_tokens, image_is_masked, image)
        told = output.ports["patch_prediction"] + 0.1 * patchify(image, *self.grid)
        return Output(ports={"patch_prediction": told}, losses=output.losses)


class IgnoresTheImage(PatchDecoder):
    """Measures against nothing."""

    def forward(self, image_tokens: Tensor, image_is_masked: Tensor, image: Tensor) -> Output:
        """Zeros are as good."""
        return super().forward(image_tokens, image_is_masked, torch.zeros_like(image))


class GoodTiedDecoder(WordDecoder):
    """Has one weight under two names, as language models do."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.words = nn.Embedding(dims["V"], dims["Df"])
        self.words.weight = self.to_vocabulary.weight


class GoodWriter(Decoder):
    """Writes the text word by word: each from those before it."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.words = nn.Embedding(dims["V"], 8)
        self.context = nn.Linear(dims["Df"], 8)
        self.to_vocabulary = nn.Linear(8, dims["V"])

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, token_ids: Tensor) -> Output:
        """Predict the next word everywhere but after the last."""
        counts = torch.arange(1, token_ids.shape[1] + 1, device=token_ids.device)[:, None]
        before = self.read(self.words(token_ids)).cumsum(dim=1) / counts
        states = torch.tanh(before + self.context(masked_mean(text_tokens, text_is_valid))[:, None])
        is_scored = text_is_valid[:, 1:]
        logits = self.to_vocabulary(states[:, :-1][is_scored])
        loss = F.cross_entropy(logits.float(), token_ids[:, 1:][is_scored])
        return Output(ports={"word_logits": logits}, losses={"words": loss})

    def read(self, words: Tensor) -> Tensor:
        """The words that it has written so far."""
        return words


class WritesFromTheAnswer(GoodWriter):
    """Reads the word that comes next."""

    def read(self, words: Tensor) -> Tensor:
        """One too far."""
        return words.roll(-1, dims=1)


class GoodNextWords(Decoder):
    """Says at every position which word comes next, from the image and the words up to there."""

    def __init__(self, spec: Any, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.words = nn.Embedding(dims["V"], 8)
        self.context = nn.Linear(dims["Di"], 8)
        self.to_vocabulary = nn.Linear(8, dims["V"])

    def forward(self, image_tokens: Tensor, token_ids: Tensor, text_is_valid: Tensor) -> Output:
        """Logits at every position, scored where a word follows."""
        told = self.told(self.words(token_ids), text_is_valid)
        logits = self.to_vocabulary(torch.tanh(told + self.context(image_tokens.mean(dim=1))[:, None]))
        is_scored = text_is_valid[:, 1:]
        loss = F.cross_entropy(logits[:, :-1][is_scored].float(), token_ids[:, 1:][is_scored])
        return Output(ports={"next_word_logits": logits}, losses={"words": loss})

    def told(self, words: Tensor, is_valid: Tensor) -> Tensor:
        """The mean of the words up to each position."""
        return words.cumsum(dim=1) / torch.arange(1, words.shape[1] + 1, device=words.device)[:, None]


class LeaksTheNextWord(GoodNextWords):
    """Reads the whole text."""

    def told(self, words: Tensor, is_valid: Tensor) -> Tensor:
        """The mean of all words."""
        return masked_mean(words, is_valid)[:, None].expand_as(words)


class TellsTheLength(GoodNextWords):
    """Knows when the text will end."""

    def told(self, words: Tensor, is_valid: Tensor) -> Tensor:
        """The words so far, and how many there will be."""
        return super().told(words, is_valid) + 0.1 * is_valid.sum(dim=1)[:, None, None]
