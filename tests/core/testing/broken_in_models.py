"""Components that are well by themselves, and wrong in a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from broken_bundle import FAULTS, SPECS, Fault, broken
from torch import Tensor

from medvlp_core.data.records import Record
from medvlp_core.nn.batch import FusedFeatures, Output
from medvlp_core.nn.interfaces import Part
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import Contract, TensorSpec
from medvlp_core.spec.roles import Role
from medvlp_core.testing.stub_components.data import Pairs
from medvlp_core.testing.stub_components.modules import CrossAttention, InfoNce, WordEncoder
from medvlp_core.testing.stub_components.specs import AlignmentSpec, FusionSpec, PairsSpec, TextEncoderSpec


@broken(FusionSpec, caught_by="trains_in_a_model", says="ValueError: at most three pairs (in broken_in_models.py, line")
class ForFewPairs(CrossAttention):
    """Takes no batch of four."""

    def forward(self, text_tokens: Tensor, text_is_valid: Tensor, image_tokens: Tensor) -> FusedFeatures:
        if len(text_tokens) > 3:
            raise ValueError("at most three pairs")
        return super().forward(text_tokens, text_is_valid, image_tokens)


@broken(AlignmentSpec, caught_by="trains_in_a_model", says="training stopped at step 1: tested.global not finite")
class BurstsOnFourPairs(InfoNce):
    """Its loss is infinite in a batch of four."""

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        losses = super().forward(image_tokens, text_tokens, text_is_valid).losses
        return Output(losses={name: value / (4 - len(image_tokens)) for name, value in losses.items()})


@broken(AlignmentSpec, caught_by="trains_in_a_model", says="returned the losses global, extra, expected global")
class ExtraLoss(InfoNce):
    """It gives a loss that it does not declare."""

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_is_valid: Tensor) -> Output:
        losses = super().forward(image_tokens, text_tokens, text_is_valid).losses
        return Output(losses={**losses, "extra": losses["global"]})


@broken(TextEncoderSpec, caught_by="reloads_from_a_checkpoint", says="in the one that was loaded the loss pairs.global differs")
class DrawsOutsideTheState(WordEncoder):
    """Adds numbers that are drawn when it is built, and not saved."""

    def __init__(self, spec: Any, dims: Any) -> None:
        super().__init__(spec, dims)
        self.shift = torch.randn(spec.width)

    def embed(self, token_ids: Tensor) -> Tensor:
        return super().embed(token_ids) + self.shift


@broken(PairsSpec)
class OfThreePairs(Pairs):
    """Small, and well."""

    def records(self, split: str) -> Sequence[Record]:
        return super().records(split)[:3]


@broken(PairsSpec)
class OfImagesAlone(Pairs):
    """Images without texts: well, and nothing to train on."""

    def records(self, split: str) -> Sequence[Record]:
        return [attrs.evolve(record, text="", text_kind="none") for record in super().records(split)]


class OfAFolder(Pairs):
    """Stands in for a source that reads a folder."""


@component("broken.of_a_folder", role=Role.DATA, build="broken_in_models:OfAFolder")
@attrs.frozen(kw_only=True)
class OfAFolderSpec(PairsSpec):
    """Refuses the absolute path that a run saves."""

    folder: str = param("chests", help="where the images lie", is_path=True)

    def problems(self) -> Iterable[tuple[str, str, str | None]]:
        if Path(self.folder).is_absolute():
            yield "folder", "folder must be relative", None


@component("broken.to_nobody", role=Role.FUSION, build="broken_in_models:ForFewPairs")
@attrs.frozen(kw_only=True)
class ToNobodySpec(FusionSpec):
    """What it gives nobody takes."""

    def contract(self) -> Contract:
        return attrs.evolve(super().contract(), gives={"acme_tokens": "B L Dt"})


class WithAMap(CrossAttention):
    """Adds the mean of a map to what it gives."""

    def forward(self, acme_map: Tensor, **needs: Tensor) -> FusedFeatures:  # type: ignore[override]
        tokens = super().forward(**needs).fused_text_tokens
        assert tokens is not None
        return FusedFeatures(fused_text_tokens=tokens + acme_map.mean(dim=(1, 2))[:, None, None])


@component("broken.of_another", role=Role.FUSION, build="broken_in_models:WithAMap")
@attrs.frozen(kw_only=True)
class OfAnotherSpec(FusionSpec):
    """Needs what only a third party's encoder gives."""

    def contract(self) -> Contract:
        needs = super().contract().needs
        return attrs.evolve(super().contract(), needs={**needs, "acme_map": "B H W"})


@component("broken.of_words_of_another", role=Role.FUSION, build="broken_in_models:WithAMap")
@attrs.frozen(kw_only=True)
class OfWordsOfAnotherSpec(FusionSpec):
    """Needs what only a third party's tokenizer gives."""

    def contract(self) -> Contract:
        needs = super().contract().needs
        return attrs.evolve(super().contract(), needs={**needs, "acme_map": "B L W"})


@component("broken.towards_one", role=Role.PART, build="broken_in_models:TowardsOne")
@attrs.frozen(kw_only=True)
class TowardsOneSpec(ComponentSpec):
    """Adds something learned to another bundle's vectors, in the view where an image is masked."""

    of_any: bool = param(False, help="take vectors of a port that the core does not know")

    def contract(self) -> Contract:
        needs = {"acme_vectors": "B 4 W"} if self.of_any else {"acme_vectors": TensorSpec.parse("B S W", port="image_tokens")}
        return Contract(needs=needs, gives={"moved": "B 4 W" if self.of_any else "B S W", "count": "B:int"}, sizes=("W",))

    @classmethod
    def examples(cls) -> tuple[ComponentSpec, ...]:
        return (cls(), cls(of_any=True))


class TowardsOne(Part):
    """``x + b``, and how many there are."""

    def __init__(self, spec: TowardsOneSpec, dims: Any) -> None:
        super().__init__(spec, dims)
        self.bias = torch.nn.Parameter(torch.zeros(dims["W"]))

    def forward(self, acme_vectors: Tensor) -> Output:
        count = torch.full((len(acme_vectors),), acme_vectors.shape[1], device=acme_vectors.device)
        return Output(ports={"moved": acme_vectors + self.bias, "count": count})


@component("broken.of_float_ids", role=Role.ALIGNMENT, build="medvlp_core.testing.stub_components.modules:InfoNce")
@attrs.frozen(kw_only=True)
class OfFloatIdsSpec(AlignmentSpec):
    """Needs ids with another dtype than every tokenizer gives."""

    def calls(self) -> dict[str, Contract]:
        calls = super().calls()
        return {**calls, "forward": attrs.evolve(calls["forward"], needs={**calls["forward"].needs, "word_ids": "B L"})}


SPECS += [OfAFolderSpec, ToNobodySpec, OfAnotherSpec, OfWordsOfAnotherSpec, TowardsOneSpec, OfFloatIdsSpec]
FAULTS[__name__] += [
    Fault("broken.of_a_folder", frozenset({"plans_again_from_resolved"}), "folder must be relative"),
    Fault("broken.to_nobody", frozenset({"trains_in_a_model"}), "no loss of the kit's stub components needs what it gives"),
    Fault("broken.of_float_ids", frozenset({"trains_in_a_model"}), "it fits into no model of the kit's stub components"),
]
