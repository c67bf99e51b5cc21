"""Code-and-Pixels: masked cells of a table, its encoder, and what fills the cells in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Decoder, Masking, Output, Part, at_least_float32
from medvlp_gallery.specs.code_and_pixels import CellDecoderSpec, CellMaskingSpec, TableEncoderSpec


class MaskedCells(NamedTuple):
    """What :class:`CellMasking` gives: which cells are masked, (B, F)."""

    cell_is_masked: Tensor


class CellMasking(Masking):
    """Each known cell is masked with one probability, on its own.

    Shape:
        table, table_is_known (B, F); cell_is_masked (B, F) bool.

    Reference:
        Code and Pixels: Multi-Modal Contrastive Pre-training for Enhanced Tabular Data Analysis, arXiv 2501.07304 (a Bernoulli
        mask; only its abstract was read). Reconstruction: the probability.
    """

    def __init__(self, spec: CellMaskingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.ratio = spec.ratio

    def forward(self, table: Tensor, table_is_known: Tensor | None = None) -> MaskedCells:  # type: ignore[override]
        """Draw a mask for one batch."""
        is_masked = torch.rand(table.shape, device=table.device) < self.ratio
        return MaskedCells(is_masked if table_is_known is None else is_masked & table_is_known)


class ResidualBlock(nn.Module):
    """``x + s(h) c(h) h`` with ``h = conv(gelu(conv(LN x)))``: c weights channels, s cells, by what is in all of them.

    ``c(h) = sigmoid(M(mean_f h) + M(max_f h))`` with one small M, ``s(h) = sigmoid(conv([mean_d h ; max_d h]))``.

    Reference:
        Woo et al., CBAM: Convolutional Block Attention Module, ECCV 2018, in one dimension.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Conv1d(width, width, 3, padding=1), nn.Conv1d(width, width, 3, padding=1)
        self.channels = nn.Sequential(nn.Linear(width, width // 4), nn.GELU(), nn.Linear(width // 4, width))
        self.cells = nn.Conv1d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Mix neighbouring cells: (B, F, D) to the same."""
        h = self.second(nn.functional.gelu(self.first(self.norm(x).transpose(1, 2))))
        h = h * (self.channels(h.mean(dim=2)) + self.channels(h.amax(dim=2))).sigmoid().unsqueeze(-1)
        h = h * self.cells(torch.stack([h.mean(dim=1), h.amax(dim=1)], dim=1)).sigmoid()
        return x + h.transpose(1, 2)


class TableEncoder(Part):
    """``e_f = x_f w_f + b_f``, or the learned ``u + b_f`` of an unknown cell, ``m + b_f`` of a masked one; blocks; their mean.

    Shape:
        table, table_is_known, cell_is_masked (B, F); cell_tokens (B, F, D), table_vector (B, D).

    Reference:
        Code and Pixels, arXiv 2501.07304 (a 1-D ResNet with CBAM; only its abstract was read). Reconstruction: all else.
    """

    def __init__(self, spec: TableEncoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.weight, self.bias = (nn.Parameter(torch.randn(dims["F"], spec.width) * 0.5) for _ in range(2))
        self.unknown, self.masked = (nn.Parameter(torch.randn(spec.width) * 0.02) for _ in range(2))
        self.blocks = nn.ModuleList(ResidualBlock(spec.width) for _ in range(spec.blocks))
        self.norm = nn.LayerNorm(spec.width)

    def forward(self, table: Tensor, table_is_known: Tensor | None = None, cell_is_masked: Tensor | None = None) -> Output:
        """Tokens of cells, and their mean."""
        x = table.unsqueeze(-1) * self.weight
        for is_replaced, vector in (
            (None if table_is_known is None else ~table_is_known, self.unknown),
            (cell_is_masked, self.masked),
        ):
            if is_replaced is not None:
                x = torch.where(is_replaced.unsqueeze(-1), vector.to(x.dtype), x)
        x = x + self.bias
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return Output({"cell_tokens": x, "table_vector": x.mean(dim=1)})


class CellDecoder(Decoder):
    """``x'_f = a_f . c_f + d_f``; ``L = sum over masked known cells of (x' - x)^2, divided by their number``; 0 if none is.

    Shape:
        cell_tokens (B, F, D), table, cell_is_masked, table_is_known (B, F); cell_prediction (B, F); {"cells": scalar}.

    Reference:
        Code and Pixels, arXiv 2501.07304 (reconstruction of masked cells; only its abstract was read). Reconstruction: the
        squared error.
    """

    def __init__(self, spec: CellDecoderSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.weight = nn.Parameter(torch.randn(dims["F"], dims["D"]) * dims["D"] ** -0.5)
        self.bias = nn.Parameter(torch.zeros(dims["F"]))

    def forward(self, cell_tokens: Tensor, cell_is_masked: Tensor, table: Tensor, table_is_known: Tensor | None = None) -> Output:
        """Fill the cells in, and measure how well."""
        prediction = (cell_tokens * self.weight).sum(dim=-1) + self.bias
        is_scored = cell_is_masked if table_is_known is None else cell_is_masked & table_is_known
        error = (at_least_float32(prediction) - at_least_float32(table)).square()
        loss = error.masked_fill(~is_scored, 0.0).sum() / is_scored.sum().clamp(min=1)
        return Output({"cell_prediction": prediction}, {"cells": loss})
