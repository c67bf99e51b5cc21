"""Zero-shot scores: how near an image lies to the prompts of a class."""

from __future__ import annotations

import torch
from torch import Tensor


def class_vectors(prompt_vectors: Tensor, counts: list[int]) -> Tensor:
    """One vector of length 1 for each class: ``m / |m|`` with ``m`` the mean over the vectors of its prompts.

    Shape:
        prompt_vectors (sum of counts, E), one class after the other; result (classes, E).
    """
    means = [vectors.mean(dim=0) for vectors in prompt_vectors.split(counts)]
    return torch.nn.functional.normalize(torch.stack(means), dim=1)
