"""What the standard alignments have in common: projections, pooled vectors, words as units, equal texts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core.interfaces import Dims
from medvlp_core.ops import masked_mean, sum_word_pieces, unit_index
from medvlp_standard.specs.alignment import AlignmentSpec


def projection(width: int, dim: int, kind: str) -> nn.Module:
    """A map to the shared space: ``linear`` without bias, or ``mlp`` = Linear-GELU-LN-Linear."""
    if kind == "linear":
        return nn.Linear(width, dim, bias=False)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, dim))


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

    def image(self, image_tokens: Tensor, image_prefix: Tensor) -> Tensor:
        """The image vector."""
        pooled = image_prefix[:, 0] if self.image_pool == "cls" else image_tokens.mean(dim=1)
        return F.normalize(self.image_projection(pooled), dim=-1)

    def text(self, text_tokens: Tensor, text_is_valid: Tensor) -> Tensor:
        """The text vector."""
        pooled = text_tokens[:, 0] if self.text_pool == "cls" else masked_mean(text_tokens, text_is_valid)
        return F.normalize(self.text_projection(pooled), dim=-1)


def equal_texts(token_ids: Tensor, text_is_valid: Tensor) -> Tensor:
    """Which texts of a batch are the same, token by token; padding does not count.

    Shape:
        token_ids (B, L) int, text_is_valid (B, L) bool, result (B, B) bool, the diagonal True.
    """
    ids = token_ids.masked_fill(~text_is_valid, -1)
    return (ids.unsqueeze(0) == ids.unsqueeze(1)).all(dim=-1)


def scored_positions(text_is_valid: Tensor, word_ids: Tensor, text_is_masked: Tensor | None) -> Tensor:
    """Positions that a local loss looks at: real tokens of words that are not hidden, (B, L) bool."""
    is_scored = text_is_valid & (word_ids >= 0)
    return is_scored if text_is_masked is None else is_scored & ~text_is_masked


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


def mean_over(values: Tensor, is_counted: Tensor) -> Tensor:
    """Mean of the counted entries, 0 if there are none; (B,), (B,) bool to a scalar."""
    return values.masked_fill(~is_counted, 0.0).sum() / is_counted.sum().clamp(min=1)
