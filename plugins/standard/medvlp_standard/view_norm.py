"""Batch norm statistics of their own for clean and for masked images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class MaskedStatistics(nn.Module):
    """The running statistics that the batch norms of ``net`` use for images with masked cells; weights are shared.

    One training step sends whole images and images with masked cells through the same network. Common running statistics would
    be a blend that fits neither, and evaluation would be off (measured: text-to-image precision of ``mpma:small`` lost a
    fifth). The network's own statistics are those of the clean view, under their usual names. A view that was never trained
    borrows the statistics of the other one.

    Reference:
        The auxiliary batch norm of Xie et al., Adversarial Examples Improve Image Recognition, CVPR 2020.
        Deviation: weight and bias are shared.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
        self._norms = norms  # a plain list: they stay registered in the network alone
        for index, norm in enumerate(norms):
            for name in STATISTICS:
                self.register_buffer(f"{name}_{index}", getattr(norm, name).clone())

    @contextmanager
    def of_view(self, *, is_masked: bool) -> Iterator[None]:
        """Within this context the network's batch norms read, and in training update, the statistics of one view."""
        own = [norm._buffers.copy() for norm in self._norms]
        for norm, statistics in zip(self._norms, self._statistics(is_masked=is_masked), strict=True):
            norm._buffers.update(statistics)
        try:
            yield
        finally:
            for norm, buffers in zip(self._norms, own, strict=True):
                norm._buffers.update(buffers)

    def _statistics(self, *, is_masked: bool) -> list[dict[str, Tensor]]:
        """What each batch norm uses for a view. Tensors choose: a number would wait for the device and stop a trace."""
        clean = [{name: norm.get_buffer(name) for name in STATISTICS} for norm in self._norms]
        masked = [{name: self.get_buffer(f"{name}_{index}") for name in STATISTICS} for index in range(len(clean))]
        if self.training or not clean:
            return masked if is_masked else clean
        takes_masked = masked[0]["num_batches_tracked"] > 0
        if not is_masked:
            takes_masked = takes_masked & (clean[0]["num_batches_tracked"] == 0)
        pairs = zip(clean, masked, strict=True)
        return [{name: torch.where(takes_masked, theirs[name], ours[name]) for name in STATISTICS} for ours, theirs in pairs]
