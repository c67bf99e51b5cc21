"""eCLIP: mix-up of images with what an expert's heat map makes of them, and the contrast of the appended pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import (
    Output,
    Part,
    at_least_float32,
    contrast_of_pairs,
    patchify,
    unpatchify,
)
from medvlp_core.runtime import gather_rows, local_batch_sizes
from medvlp_gallery.shared import MeanEmbeddings
from medvlp_gallery.specs.eclip import HeatmapMixupSpec

#: Shares of the training: the end of the cold start, the peak of the curriculum, its end.
COLD, PEAK, END = 0.1, 0.4, 0.8


def mixing_probability(progress: Tensor, lowest: float, highest: float) -> Tensor:
    """0 up to 0.1 of the training; then from ``lowest`` to ``highest`` until 0.4, back until 0.8, and ``lowest`` to the end.

    Shape:
        progress a scalar, result a scalar.
    """
    up, down = (progress - COLD) / (PEAK - COLD), (END - progress) / (END - PEAK)
    found = lowest + (highest - lowest) * torch.minimum(up, down).clamp(0, 1)
    return torch.where(progress < COLD, torch.zeros_like(found), found)


class HeatmapMixup(Part):
    """``x' = lam x + (1 - lam) f(x, h)`` with lam ~ Beta(a, a), in rows that are drawn with the probability of the curriculum.

    The processor f cuts both ``h x`` and x into patches, embeds them with one convolution, lets the patches of ``h x`` ask those
    of x, and puts the answers back together::

        f(x, h) = unpatchify(W attention(query = conv(h x), keys, values = conv(x)))

    In evaluation nothing is drawn and no row is mixed. Rows whose heat map is unknown are never mixed.

    Shape:
        image (B, C, H, W), heatmap (B, H, W) from 0 to 1, heatmap_is_known (B,), progress (); mixed_image and identity_image
        (= f(x, 1)) (B, C, H, W), is_mixed (B,) bool.

    Reference:
        Kumar and Marttinen, Improving Medical Multi-modal Contrastive Learning with Expert Annotations (eCLIP), ECCV 2024.
        Reconstruction: that the answers are put back by one linear layer, and that the share lam is drawn
        for each row.
    """

    def __init__(self, spec: HeatmapMixupSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec
        self.shape = (dims["H"] // spec.patch_size, dims["W"] // spec.patch_size, dims["C"], spec.patch_size, spec.patch_size)
        pixels = dims["C"] * spec.patch_size**2
        self.embed = nn.Linear(pixels, spec.width)
        self.attention = nn.MultiheadAttention(spec.width, spec.heads, batch_first=True)
        self.to_pixels = nn.Linear(spec.width, pixels)

    def process(self, image: Tensor, heatmap: Tensor) -> Tensor:
        """``f(x, h)``: (B, C, H, W), (B, H, W) to (B, C, H, W)."""
        asked, asking = (self.embed(patchify(one, *self.shape[:2])) for one in (image, image * heatmap.unsqueeze(1)))
        answers = self.attention(asking, asked, asked, need_weights=False)[0]
        return unpatchify(self.to_pixels(answers), *self.shape)

    def forward(self, image: Tensor, heatmap: Tensor, progress: Tensor, heatmap_is_known: Tensor | None = None) -> Output:
        """Mix some rows."""
        is_mixed = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        share = image.new_ones(len(image))
        if self.training:
            probability = mixing_probability(at_least_float32(progress), self.spec.lowest, self.spec.highest)
            is_mixed = torch.rand(len(image), device=image.device) < probability
            parameter = torch.full((len(image),), self.spec.mixing, device=image.device)
            share = torch.distributions.Beta(parameter, parameter, validate_args=False).sample().to(image.dtype)
        if heatmap_is_known is not None:
            is_mixed = is_mixed & heatmap_is_known
        share = torch.where(is_mixed, share, torch.ones_like(share))[:, None, None, None]
        processed, identity = self.process(image, heatmap), self.process(image, torch.ones_like(heatmap))
        mixed = share * image + (1 - share) * processed
        return Output({"mixed_image": mixed, "is_mixed": is_mixed, "identity_image": identity})


class AppendedContrast(MeanEmbeddings):
    """``L = 1/2 [CE(s) + CE(s^T)]`` over the batch and, appended, its mixed images with their texts; ``s = scale * cos(v, t)``.

    Images v_1 .. v_B, then the vectors of mixed images; texts t_1 .. t_B, then the same again. Rows that are not mixed are neither
    pairs nor negatives. The second term is the cold start of the processor, ``mean (f(x, 1) - x)^2``.

    Shape:
        image_tokens, mixed_tokens (B, S, Di), is_mixed (B,), text_tokens (B, L, Dt), text_is_valid (B, L), image and
        identity_image (B, C, H, W); result {"global": scalar, "reconstruction": scalar}, vectors (B, E).

    Reference:
        Kumar and Marttinen (eCLIP), ECCV 2024. The same text stands in a batch twice, and each copy is a negative of
        the other's image, as there. Deviations: mean pooling; the cold start's weight (0.3 in the first tenth) is in the recipe.
    """

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_is_valid: Tensor,
        mixed_tokens: Tensor,
        is_mixed: Tensor,
        image: Tensor,
        identity_image: Tensor,
    ) -> Output:
        """Both losses of a batch."""
        images = torch.cat([self.embed_image(image_tokens), self.embed_image(mixed_tokens)])
        texts = self.embed_text(text_tokens, text_is_valid).repeat(2, 1)
        is_pair = torch.cat([torch.ones_like(is_mixed), is_mixed])
        images, texts = at_least_float32(images), at_least_float32(texts)
        with torch.autocast(images.device.type, enabled=False):
            counts = local_batch_sizes(images)
            logits = self.scale() * (images @ gather_rows(texts, counts).t())
            contrast = contrast_of_pairs(logits, is_counted=is_pair, counts=counts)
            reconstruction = F.mse_loss(at_least_float32(identity_image), at_least_float32(image))
        return Output(losses={"global": contrast, "reconstruction": reconstruction})
