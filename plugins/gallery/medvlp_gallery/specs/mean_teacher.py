"""Specs of the mean teacher that segments volumes by prompts. Light."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from medvlp_core import ComponentSpec, Contract, Role, component, param


@component("gallery.volume_net", role=Role.PART, build="medvlp_gallery.mean_teacher:VolumeNet")
@attrs.frozen(kw_only=True)
class VolumeNetSpec(ComponentSpec):
    """A small 3-D U-net: a vector for every voxel of a volume."""

    size: int = param(16, help="side of the volume, voxels; 2 must divide it", at_least=2)
    width: int = param(16, help="channels at full resolution, and of a voxel's vector", at_least=1)

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """The volume is halved once."""
        if self.size % 2:
            yield "size", f"size={self.size} is odd, and 2 must divide it", f"use {self.size + 1}"

    def contract(self) -> Contract:
        """Volumes with one channel."""
        side = f"{self.size} {self.size} {self.size}"
        return Contract(needs={"image": f"B 1 {side}"}, gives={"voxel_vectors": f"B {self.width} {side}"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two widths."""
        return (cls(size=8, width=4), cls(size=4, width=6))


@component(
    "gallery.monai_unet",
    role=Role.PART,
    build="medvlp_gallery.monai_unet:MonaiUnet",
    install="pip install monai",
)
@attrs.frozen(kw_only=True)
class MonaiUnetSpec(ComponentSpec):
    """MONAI's U-net: a vector for every voxel of a volume."""

    size: int = param(96, help="side of the volume, voxels; 2 to the power of the halvings must divide it", at_least=2)
    width: int = param(16, help="channels of a voxel's vector", at_least=1)
    channels: tuple[int, ...] = param((16, 32, 64, 128), help="channels of each level; one halving between two", at_least=1)

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        """At least two levels, and a size that they halve."""
        if len(self.channels) < 2:
            yield "channels", f"{len(self.channels)} level, and a U-net has at least two", None
        elif self.size % 2 ** (len(self.channels) - 1):
            yield "size", f"{2 ** (len(self.channels) - 1)} must divide size={self.size}", None

    def contract(self) -> Contract:
        """Volumes with one channel."""
        side = f"{self.size} {self.size} {self.size}"
        return Contract(needs={"image": f"B 1 {side}"}, gives={"voxel_vectors": f"B {self.width} {side}"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Two and three levels."""
        return (cls(size=8, width=4, channels=(4, 8)), cls(size=8, width=6, channels=(4, 6, 8)))


@component("gallery.gaussian_noise", role=Role.PART, build="medvlp_gallery.mean_teacher:GaussianNoise")
@attrs.frozen(kw_only=True)
class GaussianNoiseSpec(ComponentSpec):
    """Adds noise to volumes in training, as a mean teacher's inputs have it."""

    deviation: float = param(0.1, help="standard deviation of the noise", at_least=0)
    largest: float = param(0.2, help="largest size of the noise", at_least=0)

    def contract(self) -> Contract:
        """The volume, and the volume with noise."""
        return Contract(needs={"image": "B C D H W"}, gives={"noisy_image": "B C D H W"})

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """Little and no noise."""
        return (cls(), cls(deviation=0.0))


@component("gallery.prompt_classifier", role=Role.PART, build="medvlp_gallery.mean_teacher:PromptClassifier")
@attrs.frozen(kw_only=True)
class PromptClassifierSpec(ComponentSpec):
    """Compares the vector of every voxel with the text vector of every class."""

    def contract(self) -> Contract:
        """Voxels of a batch, and one text for each class, the same for all."""
        return Contract(
            needs={"voxel_vectors": "B F D H W", "prompt_tokens": "K L Dt", "prompts_is_valid": "K L:bool"},
            gives={"class_logits": "B K D H W"},
            sizes=("F", "Dt"),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """There is nothing to choose."""
        return (cls(), cls())


@component("gallery.semi_supervised", role=Role.DECODER, build="medvlp_gallery.mean_teacher:SemiSupervised")
@attrs.frozen(kw_only=True)
class SemiSupervisedSpec(ComponentSpec):
    """Segmentation where masks are known, agreement with a teacher everywhere."""

    def contract(self) -> Contract:
        """Logits of the student and of the teacher; masks may be unknown."""
        return Contract(
            needs={
                "class_logits": "B K D H W",
                "teacher_logits": "B K D H W",
                "organs": "B D H W:int",
                "organs_is_known": "B:bool?",
            },
            gives={"segmentation": "B K D H W"},
            losses=("supervised", "consistency"),
        )

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        """There is nothing to choose."""
        return (cls(), cls())


SPECS: tuple[type[ComponentSpec], ...] = (
    VolumeNetSpec,
    MonaiUnetSpec,
    GaussianNoiseSpec,
    PromptClassifierSpec,
    SemiSupervisedSpec,
)
