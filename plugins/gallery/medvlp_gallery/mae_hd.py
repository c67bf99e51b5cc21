"""``gallery.region_masking``: the masking of an autoencoder of radiographs that knows where the lungs are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medvlp_core import Dims
from medvlp_core.nn import Masking, visible_count
from medvlp_gallery.specs.mae_hd import RegionMaskingSpec


class MaskedPatches(NamedTuple):
    """What :class:`RegionMasking` gives: which patches are masked, (B, N)."""

    image_is_masked: Tensor


class RegionMasking(Masking):
    """V patches stay visible in every image, shared out between inside and outside as their masked shares say.

    With n cells inside the region and m outside, ``V = int(N (1 - area inside - (1 - area) outside))``, at least 1, of which
    ``round(V (1 - inside) n / ((1 - inside) n + (1 - outside) m))`` lie inside. At the usual area these are the shares asked for.

    Shape:
        lungs (B, GH, GW) bool, True inside; image_is_masked (B, N) bool, V visible ones in every row.

    Reference:
        Wang et al., Pre-training on High Definition X-ray Images: An Experimental Study, 2024: 0.95 inside and 0.85 outside of a
        region of the chest, a fixed rectangle in its code. Reconstruction: a true contour of the lungs, whose size varies, so that
        the number of visible patches is fixed and not the two shares.
    """

    def __init__(self, spec: RegionMaskingSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.inside, self.outside = 1 - spec.inside, 1 - spec.outside
        ratio = spec.area * spec.inside + (1 - spec.area) * spec.outside
        self.visible = visible_count(dims["GH"] * dims["GW"], ratio)

    def forward(self, lungs: Tensor) -> MaskedPatches:  # type: ignore[override]
        """Draw a mask for every image."""
        is_inside = lungs.flatten(1)
        inside, outside = is_inside.sum(dim=1), (~is_inside).sum(dim=1)
        share = self.inside * inside / (self.inside * inside + self.outside * outside)
        kept = (self.visible * share).round().long()
        kept = torch.minimum(torch.maximum(kept, self.visible - outside), inside)
        draws = torch.rand(is_inside.shape, device=lungs.device)
        ranks = [(draws + 2 * ~where).argsort(dim=1).argsort(dim=1) for where in (is_inside, ~is_inside)]
        is_visible = torch.where(is_inside, ranks[0] < kept[:, None], ranks[1] < (self.visible - kept)[:, None])
        return MaskedPatches(~is_visible)
