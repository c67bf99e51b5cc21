"""ALBEF: momentum contrast with queues, matching on hard negatives, and a masking of words alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Alignment, Decoder, LearnedScale, Masking, Output, Part, at_least_float32, random_word_mask
from medvlp_core.runtime import first_row, gather_rows, local_batch_sizes
from medvlp_gallery.specs.albef import HardNegativesSpec, MatchingSpec, MomentumContrastSpec, WordMaskingSpec


class MomentumContrast(Alignment):
    """``L = 1/2 [H(y, softmax(a v_i . U)) + H(y', softmax(a t_i . V))]``, mean over the pairs; H is the cross-entropy.

    U are the teacher's vectors of the texts of this step and, behind them, of the queue; V those of images. v, t are the student's,
    v^, t^ the teacher's, a the learned scale, 1 the pair itself::

        y_i  = alpha softmax(a v^_i . U) + (1 - alpha) 1_i        y'_i = alpha softmax(a t^_i . V) + (1 - alpha) 1_i

    After each step the queues take in the teacher's rows of it and drop the oldest ones. They begin with random
    vectors.

    Shape:
        image_prefix (B, P, Di) and text_tokens (B, L, Dt), of which the first ones are taken; teacher_image, teacher_text (B, E);
        result {"contrast": scalar}, vectors (B, E).

    Reference:
        Li et al., Align before Fuse: Vision and Language Representation Learning with Momentum Distillation (ALBEF), NeurIPS 2021,
        section 3.2 and equation 6. Deviations: alpha does not rise in the first epoch; the masked words are not distilled.
    """

    image_queue: Tensor
    text_queue: Tensor

    def __init__(self, spec: MomentumContrastSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.share = spec.distillation
        self.image_projection = nn.Linear(dims["Di"], spec.dim)
        self.text_projection = nn.Linear(dims["Dt"], spec.dim)
        self.scale = LearnedScale(spec.temperature)
        self.register_buffer("image_queue", F.normalize(torch.randn(spec.queue, spec.dim), dim=-1))
        self.register_buffer("text_queue", F.normalize(torch.randn(spec.queue, spec.dim), dim=-1))

    def forward(self, image_prefix: Tensor, text_tokens: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> Output:
        """The loss of a batch."""
        image, text = self.embed_image(image_prefix), self.embed_text(text_tokens)
        image, text, teacher_image, teacher_text = map(at_least_float32, (image, text, teacher_image, teacher_text))
        with torch.autocast(image.device.type, enabled=False):
            counts = local_batch_sizes(image)
            own = torch.arange(len(image), device=image.device) + first_row(counts)
            scale = self.scale()
            by_image = self._direction(image, teacher_image, teacher_text, self.text_queue, own, counts, scale)
            by_text = self._direction(text, teacher_text, teacher_image, self.image_queue, own, counts, scale)
        return Output(losses={"contrast": 0.5 * (by_image + by_text)})

    def _direction(
        self, rows: Tensor, teacher: Tensor, others: Tensor, queue: Tensor, own: Tensor, counts: list[int], scale: Tensor
    ) -> Tensor:
        columns = torch.cat([gather_rows(others, counts), queue.to(others.dtype)])
        target = F.one_hot(own, len(columns)).to(rows.dtype)
        with torch.no_grad():
            soft = (scale * teacher @ columns.t()).softmax(dim=1)
            target = self.share * soft + (1 - self.share) * target
        return -(target * (scale * rows @ columns.t()).log_softmax(dim=1)).sum(dim=1).mean()

    def embed_image(self, image_prefix: Tensor) -> Tensor:
        """L2-normalised vectors of the first prefix token, (B, E)."""
        return F.normalize(self.image_projection(image_prefix[:, 0]), dim=-1)

    def embed_text(self, text_tokens: Tensor) -> Tensor:
        """L2-normalised vectors of position 0, (B, E)."""
        return F.normalize(self.text_projection(text_tokens[:, 0]), dim=-1)

    def after_step(self, teacher_image: Tensor, teacher_text: Tensor) -> None:
        """Put the step's vectors in front of the queues."""
        for queue, rows in ((self.image_queue, teacher_image), (self.text_queue, teacher_text)):
            queue.copy_(torch.cat([rows.to(queue.dtype), queue])[: len(queue)])


class HardNegatives(Part):
    """Text i gets an image j != i with the probability ``softmax_j(v_j . t_i)``, image i a text j with ``softmax_j(v_i . t_j)``.

    In evaluation the most probable one is taken, and nothing is drawn. A pair alone in its batch gets its own image and text.

    Shape:
        image_embedding, text_embedding (B, E), image_tokens (B, S, Di), text_tokens (B, L, Dt), text_is_valid (B, L); the same
        shapes in another order of rows.

    Reference:
        Li et al. (ALBEF), NeurIPS 2021, section 3.2: in-batch contrastive hard negatives. Negatives are those of the own process.
    """

    def __init__(self, spec: HardNegativesSpec, dims: Dims) -> None:
        super().__init__(spec, dims)

    def forward(
        self, image_embedding: Tensor, text_embedding: Tensor, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor
    ) -> Output:
        """Hand on the rows of negatives."""
        with torch.no_grad():
            found = at_least_float32(image_embedding) @ at_least_float32(text_embedding).t()
            images, texts = self._choose(found.t()), self._choose(found)
        return Output(
            {
                "other_image_tokens": image_tokens[images],
                "other_text_tokens": text_tokens[texts],
                "other_text_is_valid": text_is_valid[texts],
            }
        )

    def _choose(self, similarity: Tensor) -> Tensor:
        """A column for each row, never its own."""
        if len(similarity) == 1:
            return torch.zeros(1, dtype=torch.int64, device=similarity.device)
        is_own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        weights = similarity.masked_fill(is_own, float("-inf")).softmax(dim=1)
        return torch.multinomial(weights, 1).squeeze(1) if self.training else weights.argmax(dim=1)


class Matching(Decoder):
    """``score = w . f_0 + b`` of the first fused token; the mean over the three kinds of ``BCE(score, is it a pair?)``.

    Shape:
        matched, with_other_image, with_other_text (B, L, Df); match_score (B,) of the pairs; {"matching": scalar}.

    Reference:
        Li et al. (ALBEF), NeurIPS 2021, section 3.2 (image-text matching). Deviation: one logit and a sigmoid in place of two and
        a softmax, which is the same function.
    """

    def __init__(self, spec: MatchingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.to_score = nn.Linear(dims["Df"], 1)

    def forward(self, matched: Tensor, with_other_image: Tensor, with_other_text: Tensor) -> Output:
        """Tell pairs from negatives."""
        logits = at_least_float32(torch.stack([self.score(one) for one in (matched, with_other_image, with_other_text)]))
        target = torch.zeros_like(logits)
        target[0] = 1
        return Output(losses={"matching": F.binary_cross_entropy_with_logits(logits, target)})

    def score(self, matched: Tensor) -> Tensor:
        """How well images and texts belong together, (B, L, Df) to (B,)."""
        return self.to_score(matched[:, 0]).squeeze(-1)


class MaskedWords(NamedTuple):
    """What :class:`WordMasking` gives: which tokens are masked, and the ids with [MASK] in their places; both (B, L)."""

    text_is_masked: Tensor
    token_ids: Tensor


class WordMasking(Masking):
    """Each token, or each word, is replaced by [MASK] with one probability. The view differs in its text alone.

    Shape:
        token_ids, text_is_valid, word_ids (B, L); results (B, L).

    Reference:
        Devlin et al., BERT, NAACL 2019. Deviation: always [MASK].
    """

    def __init__(self, spec: WordMaskingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec, self.mask_id = spec, dims["Mask"]

    def forward(self, token_ids: Tensor, text_is_valid: Tensor, word_ids: Tensor) -> MaskedWords:  # type: ignore[override]
        """Draw a plan for one batch."""
        is_masked = random_word_mask(word_ids, text_is_valid, self.spec.ratio, whole_words=self.spec.whole_words)
        return MaskedWords(is_masked, token_ids.masked_fill(is_masked, self.mask_id))
