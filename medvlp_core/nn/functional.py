"""The maths that several bundles share, as plain functions on tensors.

Letters: B batch, C channels, H W pixels, N patches, Nv visible patches, L text tokens, D width, E shared width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

from medvlp_core.errors import DataError, Problem, SpecError

P = ParamSpec("P")

# ------------------------------------------------------------------------------------------------------------------- pooling


def masked_mean(x: Tensor, is_valid: Tensor) -> Tensor:
    """Mean over the valid positions: ``sum_l valid_l x_l / max(1, sum_l valid_l)``.

    A row without a valid position gives 0 with gradient 0.

    Shape:
        x (B, L, D), is_valid (B, L) bool, result (B, D).
    """
    kept = x.masked_fill(~is_valid.unsqueeze(-1), 0.0)
    return kept.sum(dim=1) / is_valid.sum(dim=1, keepdim=True).clamp(min=1).to(x.dtype)


# ------------------------------------------------------------------------------------------------------------------- patches


def patchify(image: Tensor, grid_h: int, grid_w: int) -> Tensor:
    """Cut an image into a grid of patches, each flattened to pixels in raster order with the channel last (p1 p2 c).

    Shape:
        image (B, C, H, W), result (B, N, ph * pw * C) with N = grid_h * grid_w, ph = H / grid_h, pw = W / grid_w.

    Raises:
        DataError: the grid does not divide the image (MV505).
    """
    batch, channels, height, width = image.shape
    if height % grid_h or width % grid_w:
        raise DataError(
            Problem(
                code="MV505",
                text=f"patchify: an image of {height} x {width} pixels cannot be cut into {grid_h} x {grid_w} patches",
                hint=f"height must be a multiple of {grid_h} and width a multiple of {grid_w}",
            )
        )
    cells = image.reshape(batch, channels, grid_h, height // grid_h, grid_w, width // grid_w)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid_h * grid_w, -1)


def unpatchify(patches: Tensor, grid_h: int, grid_w: int, channels: int, patch_h: int, patch_w: int) -> Tensor:
    """Put patches back together; the inverse of :func:`patchify`.

    Shape:
        patches (B, N, patch_h * patch_w * channels), result (B, channels, grid_h * patch_h, grid_w * patch_w).

    Raises:
        DataError: number or length of the patches does not fit (MV505).
    """
    batch = patches.shape[0]
    wanted = (grid_h * grid_w, patch_h * patch_w * channels)
    if tuple(patches.shape[1:]) != wanted:
        raise DataError(
            Problem(
                code="MV505",
                text=f"unpatchify: found patches of shape {tuple(patches.shape)}, expected (B, {wanted[0]}, {wanted[1]})",
                hint="N = grid_h * grid_w, and a patch holds patch_h * patch_w * channels numbers",
            )
        )
    cells = patches.reshape(batch, grid_h, grid_w, patch_h, patch_w, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, grid_h * patch_h, grid_w * patch_w)


def normalise_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalise each patch by its own pixels: ``(x - mean) / sqrt(var + eps)``, var unbiased (divided by Q - 1).

    Shape:
        patches (B, N, Q), result the same.

    Reference:
        He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022 (normalised pixel targets).
    """
    mean = patches.mean(dim=-1, keepdim=True)
    # A patch of a single number has no unbiased variance: it becomes 0 instead of NaN.
    unbiased = patches.shape[-1] > 1
    return (patches - mean) / (patches.var(dim=-1, keepdim=True, correction=int(unbiased)) + eps).sqrt()


def insert_mask_tokens(visible: Tensor, image_is_masked: Tensor, mask_token: Tensor) -> Tensor:
    """Put visible tokens back to their places in the grid and the mask token everywhere else.

    Where an encoder replaced masked patches instead of dropping them, all N tokens are there: they stay, and the mask token is
    added to the masked ones, so that a decoder knows which they are.

    Shape:
        visible (B, Nv, D) in raster order with Nv >= 1, image_is_masked (B, N) bool with Nv visible patches in every row, or
        Nv = N; mask_token (D,), result (B, N, D).
    """
    if visible.shape[1] == image_is_masked.shape[1]:
        return visible + image_is_masked.unsqueeze(-1) * mask_token.to(visible.dtype)
    is_visible = ~image_is_masked
    rank = (is_visible.cumsum(dim=1) - 1).clamp(min=0)
    placed = visible.gather(1, rank.unsqueeze(-1).expand(-1, -1, visible.shape[-1]))
    return torch.where(is_visible.unsqueeze(-1), placed, mask_token.to(visible.dtype))


def sincos_positions_2d(dim: int, grid_h: int, grid_w: int) -> Tensor:
    """Fixed position vectors: half of the numbers for the column, half for the row; each half is ``[sin(p w), cos(p w)]``.

    The frequencies are ``w_i = 10000 ** (-i / (dim / 4))``, i = 0 .. dim / 4 - 1.

    Shape:
        result (grid_h * grid_w, dim), float32, raster order.

    Raises:
        SpecError: 4 does not divide ``dim`` (MV203).

    Reference:
        He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022; the column comes first, as there.
    """
    if dim % 4:
        raise SpecError(
            Problem(
                code="MV203",
                text=f"sine-cosine positions need a width that 4 divides, found {dim}",
                hint=f"use a width of {max(4, dim - dim % 4)} or {dim + 4 - dim % 4}",
            )
        )
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows, columns = torch.meshgrid(
        torch.arange(grid_h, dtype=torch.float64), torch.arange(grid_w, dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * frequency for axis in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


# ------------------------------------------------------------------------------------------------------------------- masking


def visible_count(patches: int, ratio: float) -> int:
    """How many of ``patches`` stay visible at a mask ratio: ``int(patches * (1 - ratio))``, at least one (MAE's rule).

    Example:
        >>> visible_count(196, 0.75), visible_count(100, 0.9), visible_count(4, 0.99)
        (49, 10, 1)
    """
    # The small number undoes binary rounding: 100 * (1 - 0.9) is 9.999999999999998.
    return max(1, int(patches * (1.0 - ratio) + 1e-9))


def random_patch_mask(batch: int, patches: int, visible: int, device: torch.device) -> Tensor:
    """Mask patches at random, all but ``visible`` of them in every row; every choice is equally likely.

    Shape:
        result (batch, patches) bool, True = masked.
    """
    rank = torch.rand(batch, patches, device=device).argsort(dim=1).argsort(dim=1)
    return rank >= visible


def unit_index(word_ids: Tensor) -> Tensor:
    """Number the units of each text from 0: the pieces of one word share a number, any other token has its own.

    Shape:
        word_ids (B, L) int, -1 at special tokens and padding; result (B, L) int64, values below L.
    """
    is_start = torch.ones_like(word_ids, dtype=torch.bool)
    is_start[:, 1:] = (word_ids[:, 1:] != word_ids[:, :-1]) | (word_ids[:, 1:] < 0)
    return is_start.cumsum(dim=1) - 1


def random_word_mask(word_ids: Tensor, text_is_valid: Tensor, ratio: float, *, whole_words: bool) -> Tensor:
    """Mask each token, or each whole word, independently with probability ``ratio``; never special tokens or padding.

    Shape:
        word_ids (B, L) int, text_is_valid (B, L) bool, result (B, L) bool, True = masked.
    """
    draws = torch.rand(word_ids.shape, device=word_ids.device)
    if whole_words:
        draws = draws.gather(1, unit_index(word_ids))
    return (draws < ratio) & (word_ids >= 0) & text_is_valid


# --------------------------------------------------------------------------------------------------------------------- words


def sum_word_pieces(tokens: Tensor, word_ids: Tensor, is_scored: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the pieces of each word into one vector, at the place :func:`unit_index` gives it; other places are 0.

    Shape:
        tokens (B, L, D), word_ids (B, L) int, is_scored (B, L) bool = the positions to sum;
        result: words (B, L, D), is_word (B, L) bool, True where at least one piece was summed.
    """
    index = unit_index(word_ids)
    kept = tokens.masked_fill(~is_scored.unsqueeze(-1), 0.0)
    words = torch.zeros_like(kept).scatter_add(1, index.unsqueeze(-1).expand_as(kept), kept)
    pieces = torch.zeros_like(index).scatter_add(1, index, is_scored.to(index.dtype))
    return words, pieces > 0


# ------------------------------------------------------------------------------------------------------------------ precision


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, float64 stays: losses need more than half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorator for a loss whose first argument is a tensor: no autocast inside, half-precision arguments become float32.

    Similarities are multiplied by factors of up to 100 before a softmax; in half precision that changes the loss visibly.
    """

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        lifted = [at_least_float32(one) if isinstance(one, Tensor) and one.is_floating_point() else one for one in args]
        assert isinstance(args[0], Tensor)
        with torch.autocast(args[0].device.type, enabled=False):
            return loss(*lifted, **kwargs)  # type: ignore[arg-type]

    return wrapped
