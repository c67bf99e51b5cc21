"""``gallery.temporal``: the temporal module of BioViL-T."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Part, SelfAttentionBlock, sincos_positions_2d
from medvlp_gallery.specs.biovil_t import TemporalSpec


class Temporal(Part):
    """What is seen, and what has changed since the prior image.

    With projected tokens p of the current and q of the prior image, sine-cosine positions s and a learned vector t for each time::

        h         = blocks([p + s + t_0 ; q + s + t_1])
        change    = h_1 .. h_N        if the prior image is known, else the learned vector m at every place
        result    = [p ; change]

    Shape:
        image_tokens, prior_tokens (B, N, Di), prior_is_known (B,) bool or None (all known); result (B, N, 2 width).

    Reference:
        Bannur et al., Learning to Exploit Temporal Structure for Biomedical Vision-Language Processing (BioViL-T), CVPR 2023: the
        decomposition in a static and a temporal half, and a learned vector for an absent prior image. Deviations:
        the blocks of absent prior images are computed and not used, so that every parameter is used in every step; their weights
        have the core's pre-LN form; the sizes of a small recipe.
    """

    positions: Tensor

    def __init__(self, spec: TemporalSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        width = spec.width
        self.project = nn.Linear(dims["Di"], width)
        self.register_buffer("positions", sincos_positions_2d(width, dims["GH"], dims["GW"]), persistent=False)
        self.times = nn.Parameter(torch.randn(2, width) * 0.02)
        self.absent = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(SelfAttentionBlock(width, spec.heads, 2 * width) for _ in range(spec.layers))

    def forward(self, image_tokens: Tensor, prior_tokens: Tensor, prior_is_known: Tensor | None = None) -> Tensor:
        """Both halves of every token."""
        now, before = self.project(image_tokens), self.project(prior_tokens)
        joint = torch.cat([now + self.positions + self.times[0], before + self.positions + self.times[1]], dim=1)
        for block in self.blocks:
            joint = block(joint)
        change = joint[:, : now.shape[1]]
        if prior_is_known is None:
            prior_is_known = torch.ones(len(now), dtype=torch.bool, device=now.device)
        change = torch.where(prior_is_known[:, None, None], change, self.absent.to(change.dtype))
        return torch.cat([now, change], dim=-1)
