"""What the standard alignments have in common: projections, pooled vectors, words as units, and the shape of GLoRIA and MGCA."""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import (
    Alignment,
    Output,
    masked_mean,
    projection_head,
    scored_words,
    sum_word_pieces,
    symmetric_info_nce,
    unit_index,
)
from medvlp_standard.specs.alignment import AlignmentSpec, GloriaSpec, MgcaSpec


def projection(width: int, dim: int, kind: str) -> nn.Module:
    """A map to the shared space: ``linear`` without bias, or ``mlp`` = Linear-GELU-LN-Linear."""
    if kind == "linear":
        return nn.Linear(width, dim, bias=False)
    return projection_head(width, dim)


class GlobalHeads(nn.Module):
    """One L2-normalised vector for an image and for a text: ``normalise(project(pool(tokens)))``.

    Shape:
        image_tokens (B, S, Di), image_prefix (B, P, Di), text_tokens (B, L, Dt), text_is_valid (B, L); results (B, E).
    """

    def __init__(self, spec: AlignmentSpec, dims: Dims) -> None:
        super().__init__()
        self.image_pool, self.text_pool = spec.image_pool, spec.text_pool
        self.image_projection = projection(dims["Di"], spec.dim, spec.projection)
        self.text_projection = projection(dims["Dt"], spec.dim, spec.projection)

    def image(self, image_tokens: Tensor, image_prefix: Tensor | None) -> Tensor:
        """The image vector; only the pool ``cls`` looks at prefix tokens."""
        if self.image_pool == "cls":
            assert image_prefix is not None, "the contract needs it"
            pooled = image_prefix[:, 0]
        else:
            pooled = image_tokens.mean(dim=1)
        return F.normalize(self.image_projection(pooled), dim=-1)

    def text(self, text_tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        """The text vector."""
        pooled = text_tokens[:, 0] if self.text_pool == "cls" else masked_mean(text_tokens, text_is_valid)
        return F.normalize(self.text_projection(pooled), dim=-1)


class PooledAlignment(Alignment):
    """An alignment that embeds with :class:`GlobalHeads`. Abstract: the losses are left open."""

    def __init__(self, spec: AlignmentSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.heads = GlobalHeads(spec, dims)

    def embed_image(self, image_tokens: Tensor, image_prefix: Tensor | None = None) -> Tensor:
        """L2-normalised image vectors, (B, E)."""
        return self.heads.image(image_tokens, image_prefix)

    def embed_text(self, text_tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        """L2-normalised text vectors, (B, E)."""
        return self.heads.text(text_tokens, text_is_valid)


class WordPatchAlignment(PooledAlignment):
    """Global ``CE(s) + CE(s^T)``, ``s = scale * cos(g_v, g_t)``, and a local loss of words and patches. Abstract: the latter.

    A report without words takes no part in the local loss. Special and masked tokens are no words.

    Shape:
        image_tokens (B, S, Di), image_prefix (B, P, Di), text_tokens (B, L, Dt), text_is_valid, word_ids, text_is_masked (B, L);
        result {"global": scalar, "local": scalar}.
    """

    def __init__(self, spec: GloriaSpec | MgcaSpec, dims: Dims, *, scale: float) -> None:
        super().__init__(spec, dims)
        self.scale = scale
        self.aggregates = spec.aggregate_words
        self.patch_projection = projection(dims["Di"], spec.dim, spec.projection)
        self.word_projection = projection(dims["Dt"], spec.dim, spec.projection)

    @abstractmethod
    def local_loss(self, patches: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
        """The local loss: (B, N, E), (B, L, E), (B, L) bool to a scalar."""

    @abstractmethod
    def word_maps(self, patches: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
        """What each word attends to in its own image, (B, L, N); rows of words sum to 1."""

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        word_ids: Tensor,
        text_is_masked: Tensor | None = None,
        image_prefix: Tensor | None = None,
    ) -> Output:
        """Both losses of a batch."""
        image, text = self.heads.image(image_tokens, image_prefix), self.heads.text(text_tokens, text_is_valid)
        words, is_word = self._words(text_tokens, word_ids, scored_words(text_is_valid, word_ids, text_is_masked))
        whole = 2.0 * symmetric_info_nce(image, text, self.scale)
        return Output(losses={"global": whole, "local": self.local_loss(self.patch_projection(image_tokens), words, is_word)})

    def attention_maps(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        word_ids: Tensor,
        text_is_masked: Tensor | None = None,
        image_prefix: Tensor | None = None,
    ) -> Tensor:
        """What each token's word attends to, (B, L, S), rows sum to 1; special tokens: equal weights."""
        words, is_word = self._words(text_tokens, word_ids, scored_words(text_is_valid, word_ids, None))
        maps = self.word_maps(self.patch_projection(image_tokens), words, is_word)
        return maps_of_tokens(maps, is_word, word_ids, aggregate=self.aggregates)

    def _words(self, text_tokens: Tensor, word_ids: Tensor, is_scored: Tensor) -> tuple[Tensor, Tensor]:
        units, is_unit = word_units(text_tokens, word_ids, is_scored, aggregate=self.aggregates)
        return self.word_projection(units), is_unit


def word_units(tokens: Tensor, word_ids: Tensor, is_scored: Tensor, *, aggregate: bool) -> tuple[Tensor, Tensor]:
    """The units of a local loss: whole words (summed pieces), or single pieces.

    Shape:
        tokens (B, L, D), word_ids and is_scored (B, L); result: units (B, L, D), is_unit (B, L) bool.
    """
    return sum_word_pieces(tokens, word_ids, is_scored) if aggregate else (tokens, is_scored)


def maps_of_tokens(maps: Tensor, is_unit: Tensor, word_ids: Tensor, *, aggregate: bool) -> Tensor:
    """Give each token the map of its word; tokens that are no word (special, padding) get the same weight everywhere.

    Shape:
        maps (B, L, S) by unit, is_unit and word_ids (B, L), result (B, L, S) by token, rows sum to 1.
    """
    if aggregate:
        index = unit_index(word_ids)
        maps, is_unit = maps.gather(1, index.unsqueeze(-1).expand_as(maps)), is_unit.gather(1, index)
    return maps.masked_fill(~is_unit.unsqueeze(-1), 1.0 / maps.shape[-1])
