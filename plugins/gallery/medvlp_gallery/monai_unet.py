"""``gallery.monai_unet``: MONAI's U-net as a part."""

from __future__ import annotations

from monai.networks.nets import UNet
from torch import Tensor

from medvlp_core import Dims
from medvlp_core.nn import Part
from medvlp_gallery.specs.mean_teacher import MonaiUnetSpec


class MonaiUnet(Part):
    """MONAI's ``UNet`` in three dimensions, with instance norm and as many outputs as a voxel's vector has numbers.

    Shape:
        image (B, 1, S, S, S), result (B, F, S, S, S).

    Reference:
        Kerfoot et al., Left-Ventricle Quantification Using Residual U-Net, STACOM 2018; Cardoso et al., MONAI, 2022.
    """

    def __init__(self, spec: MonaiUnetSpec, dims: Dims) -> None:
        super().__init__(spec, dims)
        self.net = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=spec.width,
            channels=spec.channels,
            strides=(2,) * (len(spec.channels) - 1),
            num_res_units=1,
        )

    def forward(self, image: Tensor) -> Tensor:
        """A vector for every voxel."""
        return self.net(image)
