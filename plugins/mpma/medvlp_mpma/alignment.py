"""GLA, the global and local alignment."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import (
    Alignment,
    LearnedScale,
    Output,
    at_least_float32,
    equal_texts,
    gloria_attention,
    gloria_loss,
    masked_mean,
    projection_head,
    scored_words,
    symmetric_info_nce,
    tokenwise_attention,
    tokenwise_loss,
)
from medvlp_mpma.specs import GlobalLocalSpec


class GlobalLocal(Alignment):
    """Aligns pairs as a whole, and words with patches, on tokens from before the fusion.

    Global: ``L_g = 1/2 [CE(s) + CE(s^T)]``, ``s_bc = scale * g_v^b . g_t^c``; g_v comes from the mean of the patch tokens, g_t from
    the report's [CLS], each through ``Linear-GELU-LN-Linear`` and L2-normalised; the scale is learned from 1 / 0.07, at most 100.
    Local: :func:`~medvlp_core.nn.contrastive.tokenwise_loss` or :func:`~medvlp_core.nn.contrastive.gloria_loss` on heads of their
    own, both the mean of their two directions; words are tokens (not whole words) that are neither special nor padding nor [MASK].

    Fused tokens are not aligned: they have seen the image, which would give the answer away.

    Shape:
        image_tokens (B, S, Di), text_tokens (B, L, Dt), text_is_valid, word_ids, text_is_masked, token_ids (B, L); result
        {"global": scalar, "local": scalar}, or the one that ``granularity`` names.

    Reference:
        Zhang et al., Multi-task Paired Masking with Alignment Modeling, arXiv 2305.07920: the abstracts give the two granularities
        and the purpose; the losses (after MGCA, alternatively GLoRIA) and every value are a reconstruction.
    """

    def __init__(self, spec: GlobalLocalSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec
        self.global_heads = PairHeads(dims["Di"], dims["Dt"], spec.dim) if spec.has_global else None
        self.local_heads = PairHeads(dims["Di"], dims["Dt"], spec.dim) if spec.has_local else None
        self.scale = LearnedScale(spec.tau_global) if spec.has_global else None

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        word_ids: Tensor,
        text_is_masked: Tensor | None = None,
        token_ids: Tensor | None = None,
    ) -> Output:
        """The chosen losses of a batch; for a single pair the global one is 0."""
        is_same_text = is_same_word = None
        if token_ids is not None and self.spec.same_text == "ignore":
            is_same_text = equal_texts(token_ids, text_is_valid)
        if token_ids is not None and self.spec.same_word == "ignore":
            is_same_word = token_ids.unsqueeze(1) == token_ids.unsqueeze(2)
        is_word = scored_words(text_is_valid, word_ids, text_is_masked)
        losses: dict[str, Tensor] = {}
        if self.global_heads is not None and self.scale is not None:
            image, text = self._global_vectors(image_tokens, text_tokens)
            losses["global"] = symmetric_info_nce(image, text, self.scale(), is_same_text)
        if self.local_heads is not None:
            patches, words = self.local_heads(image_tokens, text_tokens.masked_fill(~is_word.unsqueeze(-1), 0.0))
            if self.spec.local_kind == "gloria":
                losses["local"] = gloria_loss(
                    patches,
                    words,
                    is_word,
                    attention_scale=self.spec.gloria_attention_scale,
                    word_scale=self.spec.gloria_word_scale,
                    logit_scale=self.spec.gloria_logit_scale,
                    is_same_text=is_same_text,
                )
            else:
                losses["local"] = tokenwise_loss(patches, words, is_word, self.spec.tau_local, is_same_word)
        return Output(losses=losses)

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        """L2-normalised image vectors, (B, E); without global heads the mean of the patch vectors."""
        if self.global_heads is not None:
            return F.normalize(self.global_heads.image(image_tokens.mean(dim=1)), dim=-1)
        assert self.local_heads is not None
        return F.normalize(F.normalize(self.local_heads.image(image_tokens), dim=-1).mean(dim=1), dim=-1)

    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor | None = None, word_ids: Tensor | None = None) -> Tensor:
        """L2-normalised text vectors, (B, E); without global heads the mean of the word vectors."""
        if self.global_heads is not None:
            return F.normalize(self.global_heads.text(text_tokens[:, 0]), dim=-1)
        assert self.local_heads is not None
        assert text_is_valid is not None
        assert word_ids is not None
        words = F.normalize(self.local_heads.text(text_tokens), dim=-1)
        return F.normalize(masked_mean(words, scored_words(text_is_valid, word_ids, None)), dim=-1)

    def attention_maps(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        word_ids: Tensor,
        text_is_masked: Tensor | None = None,
        token_ids: Tensor | None = None,
    ) -> Tensor | None:
        """The local loss's weights from each token to the patches, (B, L, S), rows sum to 1; None without a local loss."""
        if self.local_heads is None:
            return None
        image, words = self.local_heads(image_tokens, text_tokens)
        if self.spec.local_kind == "gloria":
            is_word = scored_words(text_is_valid, word_ids, text_is_masked)
            return gloria_attention(image, words, is_word, self.spec.gloria_attention_scale)
        return tokenwise_attention(image, words, self.spec.tau_local)

    def _global_vectors(self, image_tokens: Tensor, text_tokens: Tensor) -> tuple[Tensor, Tensor]:
        assert self.global_heads is not None
        image, text = self.global_heads(image_tokens.mean(dim=1), text_tokens[:, 0])
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


class PairHeads(nn.Module):
    """One ``Linear-GELU-LN-Linear`` for each modality, into a common space; the result has at least float32.

    Shape:
        image (..., Di), text (..., Dt), results (..., E).
    """

    def __init__(self, image_width: int, text_width: int, dim: int) -> None:
        super().__init__()
        self.image, self.text = projection_head(image_width, dim), projection_head(text_width, dim)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Both projections; similarities divided by a small temperature need more than half precision."""
        return at_least_float32(self.image(image)), at_least_float32(self.text(text))
