"""Batch norm statistics of their own for clean and for masked images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class MaskedStatistics(nn.Module):
    """The running statistics that the batch norms of ``net`` use for images with hidden cells; weights are shared.

    One training step sends whole images and images with hidden cells through the same network. Common running statistics would
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
        if self._norms and not self.training:
            tracked = (int(self._norms[0].get_buffer("num_batches_tracked")), int(self.get_buffer("num_batches_tracked_0")))
            if tracked[is_masked] == 0:
                is_masked = tracked[1] > 0
        if is_masked:
            self._swap()
        try:
            yield
        finally:
            if is_masked:
                self._swap()

    def _swap(self) -> None:
        for index, norm in enumerate(self._norms):
            for name in STATISTICS:
                mine = f"{name}_{index}"
                norm._buffers[name], self._buffers[mine] = self._buffers[mine], norm._buffers[name]
