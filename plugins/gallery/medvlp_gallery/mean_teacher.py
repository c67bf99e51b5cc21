"""A mean teacher that segments volumes, with classes that are named by prompts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp_core import Dims
from medvlp_core.nn import Decoder, Output, Part, at_least_float32, masked_mean
from medvlp_gallery.shared import known_mean
from medvlp_gallery.specs.mean_teacher import GaussianNoiseSpec, PromptClassifierSpec, SemiSupervisedSpec, VolumeNetSpec


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution of 3 x 3 x 3, normalisation over each volume's channels, GELU."""
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1), nn.GroupNorm(1, outputs), nn.GELU())


class VolumeNet(Part):
    """One halving and back: ``a = block(x)``, ``b = block(pool(a))``, result ``block([a ; up(b)])``.

    Shape:
        image (B, 1, S, S, S), result (B, F, S, S, S).

    Reference:
        Çiçek et al., 3D U-Net, MICCAI 2016. Deviation: one level, group norm, so that a volume does not depend on its batch.
    """

    def __init__(self, spec: VolumeNetSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        width = spec.width
        self.down, self.deep, self.up = _block(1, width), _block(width, 2 * width), _block(3 * width, width)

    def forward(self, image: Tensor) -> Tensor:
        """A vector for every voxel."""
        fine = self.down(image)
        coarse = F.interpolate(self.deep(F.avg_pool3d(fine, 2)), scale_factor=2.0, mode="nearest")
        return self.up(torch.cat([fine, coarse], dim=1))


class GaussianNoise(Part):
    """``x + clamp(sigma e, -largest, largest)``, e ~ N(0, 1) for each voxel; x itself in evaluation.

    Shape:
        image (B, C, D, H, W), result the same.

    Reference:
        Yu et al., Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation, MICCAI 2019 (0.1, 0.2).
    """

    def __init__(self, spec: GaussianNoiseSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.spec = spec

    def forward(self, image: Tensor) -> Tensor:
        """Add noise in training."""
        if not self.training:
            return image
        return image + (self.spec.deviation * torch.randn_like(image)).clamp(-self.spec.largest, self.spec.largest)


class PromptClassifier(Part):
    """``s_k(x) = f(x) . (U p_k + b) / sqrt(F)``, p_k the mean of the text tokens of class k, f(x) the vector of voxel x.

    Shape:
        voxel_vectors (B, F, D, H, W), prompt_tokens (K, L, Dt), prompts_is_valid (K, L), result (B, K, D, H, W).

    Reference:
        Text embeddings as classifiers of voxels, after Liu et al., CLIP-Driven Universal Model for Organ Segmentation, ICCV 2023.
        Reconstruction: a dot product in place of generated convolutions.
    """

    def __init__(self, spec: PromptClassifierSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.factor = dims["F"] ** -0.5
        self.text_projection = nn.Linear(dims["Dt"], dims["F"])

    def forward(self, voxel_vectors: Tensor, prompt_tokens: Tensor, prompts_is_valid: Tensor) -> Tensor:
        """Logits of every class at every voxel."""
        classes = self.text_projection(masked_mean(prompt_tokens, prompts_is_valid))
        return self.factor * torch.einsum("bfdhw,kf->bkdhw", voxel_vectors, classes)


class SemiSupervised(Decoder):
    """``supervised = 1/2 (CE + 1 - Dice)`` over the volumes with a mask, ``consistency = mean (p - p^)^2`` over all volumes.

    p and p^ are the probabilities of student and teacher; the Dice of a volume is the mean over the classes but the first of
    ``(2 sum_x p_k y_k + 1) / (sum_x p_k + sum_x y_k + 1)``.

    Shape:
        class_logits, teacher_logits (B, K, D, H, W), organs (B, D, H, W) int below K, organs_is_known (B,); segmentation as the
        logits: the probabilities; {"supervised": scalar, "consistency": scalar}.

    Reference:
        Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017; Dice and cross-entropy as in Yu et al., MICCAI
        2019. Deviation: the consistency's weight rises linearly (a ramp of the recipe), there as exp(-5 (1 - t)^2).
    """

    def __init__(self, spec: SemiSupervisedSpec, dims: Dims) -> None:
        super().__init__(spec, dims)

    def forward(
        self, class_logits: Tensor, teacher_logits: Tensor, organs: Tensor, organs_is_known: Tensor | None = None
    ) -> Output:
        """Both losses of a batch."""
        logits = at_least_float32(class_logits)
        shares, taught = logits.softmax(dim=1), at_least_float32(teacher_logits).detach().softmax(dim=1)
        target = F.one_hot(organs, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        space = (2, 3, 4)
        overlap, sizes = (shares * target).sum(dim=space), shares.sum(dim=space) + target.sum(dim=space)
        dice = ((2 * overlap + 1) / (sizes + 1))[:, 1:].mean(dim=1)
        entropy = F.cross_entropy(logits, organs, reduction="none").mean(dim=(1, 2, 3))
        losses = {
            "supervised": known_mean(0.5 * (entropy + 1 - dice), organs_is_known),
            "consistency": (shares - taught).square().mean(),
        }
        return Output({"segmentation": shares.to(class_logits.dtype)}, losses)
